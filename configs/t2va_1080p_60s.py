"""A minute of 1080p with sound, from the model of configs/t2va_14b.py: 14.6 billion parameters, rows of 172 032 tokens.

A minute is 960 frames at 16 a second. As one row these are two million tokens, whose attention takes nine times what
windows take: so it is made in 14 windows of 81 frames (5 s), each given the last 9 frames of the one before with their
sound (`veojax.generation.long.pieces`, under one prompt or a chain of them), and its pieces are written as they come. A
window of 1920×1080 (the codec fills up to 1088) is 171 360 + 127 tokens and its caption's. Training goes on from the
14B model's weights with rows of this length.

  veojax train --config configs/t2va_1080p_60s.py --workdir gs://BUCKET/t2va_1080p --config.data=DATA
  veojax compile --config configs/t2va_1080p_60s.py --topology v5p:4x4x4
  veojax compile --config configs/t2va_1080p_60s.py --topology v6e:4x8 --config.mesh.fsdp=4 --config.mesh.context=8 \
    --config.loop.batch_size=4 --config.loop.accumulate=2 --config.dit.remat=offload
  veojax compile --config configs/t2va_1080p_60s.py --topology v5e:8x8 --config.mesh.fsdp=4 --config.mesh.context=16 \
    --config.loop.batch_size=4 --config.loop.accumulate=2 --config.dit.remat=offload
  veojax compile --config configs/t2va_1080p_60s.py --topology v7x:2x2x1 --config.mesh.fsdp=2 --config.mesh.context=4 \
    --config.loop.batch_size=2 --config.loop.accumulate=4 --config.dit.remat=offload
  veojax compile --config configs/t2va_1080p_60s.py --topology v5p:2x2x2 --config.mesh.fsdp=2 --config.mesh.context=4 \
    --config.loop.batch_size=2 --config.loop.accumulate=4 --config.dit.remat=offload
  veojax compile --config configs/t2va_1080p_60s.py --topology v5p:2x2x1 --stage generate \
    --config.mesh.fsdp=1 --config.mesh.context=1 --config.mesh.tensor=4
  veojax compile --config configs/t2va_1080p_60s.py --topology v6e:2x2 --stage generate \
    --config.mesh.fsdp=1 --config.mesh.context=1 --config.mesh.tensor=4
  veojax compile --config configs/t2va_1080p_60s.py --topology v5e:4x4 --stage generate \
    --config.mesh.fsdp=1 --config.mesh.context=2 --config.mesh.tensor=8
  veojax compile --config configs/t2va_1080p_60s.py --topology v7x:1x1x1 --stage generate \
    --config.mesh.fsdp=1 --config.mesh.context=2

Expect, by the compiler, of a window on four chips of v5p: 31.0 of a chip's 95.7 GiB; 50 guided steps in 1585 s at the
chips' peak and 1886 s by estimated cycles, links 0.15 of the compute; an MFU of at most 84 % by these.
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
      'pack': {'row_tokens': 172032, 'text_tokens': 2048, 'max_clips': 16, 'max_text': 512, 'channels': 64},
      'loss': {'timesteps': 'logit_normal', 'video_shift': 8.0, 'audio_shift': 2.0},
      'sampling': {'num_inference_steps': 50, 'guidance_scale': 5.0, 'video_shift': 8.0, 'audio_shift': 2.0},
      'clip': {'num_frames': 81, 'height': 1080, 'width': 1920, 'fps': 16.0},
      'optimizer': {'learning_rate': 5e-5, 'schedule': 'constant', 'warmup_steps': 1000, 'b2': 0.95,
                    'weight_decay': 0.01},
      'loop': {'num_steps': 50000, 'batch_size': 8, 'ema_decays': (0.9999,), 'log_every': 10, 'evaluate_every': 2000,
               'sample_every': 5000, 'save_every': 500},
      'mesh': {'data': -1, 'fsdp': 8, 'context': 8},
  })
