"""Text → video + sound, 2.2 billion parameters: rows of 34 816 tokens hold 5 s of 480p with sound (81 frames of
832×480 at 16 a second, 32 760 + 127 tokens), or several shorter clips, or images.

  veojax train --config configs/t2va_2b.py --workdir gs://BUCKET/t2va_2b --config.data=DATA
  veojax compile --config configs/t2va_2b.py --topology v5e:4x4

Hardware: v5e:4x4 (16 chips), 8 rows a step: a clip of 480p on two chips. Expect, by the compiler: 11.9 of a chip's
15.75 GiB, 24 % to spare; executed FLOPs 1.22 x the model's; links 0.15 of the compute; a step of 4.6 s at the chips' peak
and 6.3 s by estimated cycles, an MFU of at most 60 % by these. One H100 trains rows of 32 768 tokens in 55.5 of 75.1
GiB, by its compiler:

  veojax compile --config configs/t2va_2b.py --topology h100:1x1x1 --config.mesh.fsdp=1 --config.mesh.context=1 \
    --config.loop.batch_size=1 --config.pack.row_tokens=32768

Eight chips of v5e, one of v5p, four of v6e, one of v7x (two devices) train it too:

  veojax compile --config configs/t2va_2b.py --topology v5e:2x4 --config.mesh.fsdp=4 --config.mesh.context=2 \
    --config.loop.batch_size=4 --config.loop.accumulate=2
  veojax compile --config configs/t2va_2b.py --topology v5p:1x1x1 --config.mesh.fsdp=1 --config.mesh.context=1 \
    --config.loop.batch_size=1 --config.loop.accumulate=8
  veojax compile --config configs/t2va_2b.py --topology v6e:2x2 --config.mesh.fsdp=4 --config.mesh.context=1 \
    --config.loop.batch_size=4 --config.loop.accumulate=2
  veojax compile --config configs/t2va_2b.py --topology v7x:1x1x1 --config.mesh.fsdp=2 --config.mesh.context=1 \
    --config.loop.batch_size=2 --config.loop.accumulate=4
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'transformer',
      'video_codec': 'configs/t2va_video_vae.py',
      'audio_codec': 'configs/t2va_audio_vae.py',
      'dit': {
          'video_channels': 48, 'audio_channels': 64, 'width': 2048, 'depth': 36, 'num_heads': 16, 'mlp_width': 6144,
          'text': {'vocab_size': 32000, 'width': 1024, 'depth': 12, 'num_heads': 8, 'mlp_width': 3072},
          'remat': 'attention'},
      'pack': {'row_tokens': 34816, 'text_tokens': 1536, 'max_clips': 16, 'max_text': 512, 'channels': 64},
      'loss': {'timesteps': 'logit_normal', 'video_shift': 3.0, 'audio_shift': 2.0},
      'sampling': {'num_inference_steps': 50, 'guidance_scale': 5.0, 'video_shift': 3.0, 'audio_shift': 2.0},
      'clip': {'num_frames': 81, 'height': 480, 'width': 832, 'fps': 16.0},
      'optimizer': {'learning_rate': 2e-4, 'schedule': 'constant', 'warmup_steps': 2000, 'b2': 0.95,
                    'weight_decay': 0.01},
      'loop': {'num_steps': 200000, 'batch_size': 8, 'ema_decays': (0.9999,), 'log_every': 10, 'evaluate_every': 2000,
               'sample_every': 5000, 'save_every': 1000},
      'mesh': {'data': -1, 'fsdp': 8, 'context': 2},
  })
