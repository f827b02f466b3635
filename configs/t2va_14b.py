"""Text → video + sound, 14.6 billion parameters: rows of 77 824 tokens hold 5 s of 720p with sound (81 frames at 16 a
second, 75 600 + 127 tokens), or several shorter clips, or images.

  veojax train --config configs/t2va_14b.py --workdir gs://BUCKET/t2va_14b --config.data=DATA
  veojax compile --config configs/t2va_14b.py --topology v5p:4x4x4

Hardware: v5p:4x4x4 (64 chips), 16 rows a step: one row, a clip of 720p, on 4 chips. Expect, by the compiler: 31.6 of a
chip's 95.7 GiB, 67 % to spare; executed FLOPs 1.22 x the model's, the attention kernel's output being kept; links 0.19
of the compute; a step of 14.1 s at the chips' peak and 18.4 s by estimated cycles, an MFU of at most 63 % by these.

The smallest of each kind of chip that it was compiled for (the README has what they need), activations waiting in the
host's memory:

  veojax compile --config configs/t2va_14b.py --topology v5e:8x8 --config.mesh.fsdp=8 --config.mesh.context=8 \
    --config.loop.batch_size=8 --config.loop.accumulate=2 --config.dit.remat=offload
  veojax compile --config configs/t2va_14b.py --topology v5p:2x2x2 --config.mesh.fsdp=2 --config.mesh.context=4 \
    --config.loop.batch_size=2 --config.loop.accumulate=8 --config.dit.remat=offload
  veojax compile --config configs/t2va_14b.py --topology v7x:2x2x1 --config.mesh.fsdp=2 --config.mesh.context=4 \
    --config.loop.batch_size=2 --config.loop.accumulate=8 --config.dit.remat=offload
  veojax compile --config configs/t2va_14b.py --topology v6e:4x4 --config.mesh.fsdp=2 --config.mesh.context=8 \
    --config.loop.batch_size=2 --config.loop.accumulate=8 --config.dit.remat=offload
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'transformer',
      'video_codec': 'configs/t2va_video_vae.py',
      'audio_codec': 'configs/t2va_audio_vae.py',
      'dit': {
          'video_channels': 48, 'audio_channels': 64, 'width': 5120, 'depth': 40, 'num_heads': 40, 'mlp_width': 15360,
          'text': {'vocab_size': 32000, 'width': 2048, 'depth': 12, 'num_heads': 16, 'mlp_width': 6144},
          'remat': 'attention'},
      'pack': {'row_tokens': 77824, 'text_tokens': 2048, 'max_clips': 16, 'max_text': 512, 'channels': 64},
      'loss': {'timesteps': 'logit_normal', 'video_shift': 5.0, 'audio_shift': 2.0},
      'sampling': {'num_inference_steps': 50, 'guidance_scale': 5.0, 'video_shift': 5.0, 'audio_shift': 2.0},
      'clip': {'num_frames': 81, 'height': 720, 'width': 1280, 'fps': 16.0},
      'optimizer': {'learning_rate': 1e-4, 'schedule': 'constant', 'warmup_steps': 2000, 'b2': 0.95,
                    'weight_decay': 0.01},
      'loop': {'num_steps': 200000, 'batch_size': 16, 'ema_decays': (0.9999,), 'log_every': 10, 'evaluate_every': 2000,
               'sample_every': 5000, 'save_every': 500},
      'mesh': {'data': -1, 'fsdp': 16, 'context': 4},
  })
