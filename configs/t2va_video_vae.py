"""The video codec of configs/t2va_2b.py and t2va_14b.py: 4×16×16 into 48 channels, so that 81 frames of 720p are
75 600 tokens. Widths are multiples of 128, and pixels enter and leave as patches: a matrix unit has nothing to do with
three channels.

  veojax train --config configs/t2va_video_vae.py --workdir runs/t2va/video_vae --config.data=DATA
  veojax compile --config configs/t2va_video_vae.py --topology v5e:4x4

By the compiler 64 crops on 16 chips of v5e take 4.7 of a chip's 15.75 GiB.
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'video_vae',
      'model': {'temporal_compression': 4, 'spatial_compression': 16, 'patch_time': 1, 'patch_size': 4,
                'latent_channels': 48, 'widths': (128, 256, 512), 'encoder_depths': (2, 2, 3),
                'decoder_depths': (3, 3, 4), 'dtype': 'bfloat16'},
      'crop': {'num_frames': 17, 'height': 256, 'width': 256},
      'kl_weight': 1e-6,
      'tile': 512, 'overlap': 128,
      'optimizer': {'learning_rate': 1e-4, 'warmup_steps': 1000},
      'loop': {'num_steps': 400000, 'batch_size': 64, 'ema_decays': (0.9999,), 'log_every': 100,
               'evaluate_every': 5000, 'sample_every': 5000, 'save_every': 2000},
  })
