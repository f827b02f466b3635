"""The video codec of the quickstart: 4×8×8, 0.6M parameters.

  veojax train --config configs/quickstart_video_vae.py --workdir quickstart/run/video_vae --config.data=quickstart/data
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'video_vae',
      'model': {'temporal_compression': 4, 'spatial_compression': 8, 'patch_time': 2, 'patch_size': 4,
                'latent_channels': 16, 'widths': (64, 128), 'encoder_depths': (1, 1), 'decoder_depths': (1, 1)},
      'crop': {'num_frames': 9, 'height': 32, 'width': 32},
      'l1_weight': 0.02,
      'kl_weight': 1e-6,
      'tile': 48,
      'optimizer': {'learning_rate': 5e-3, 'warmup_steps': 50, 'final_share': 0.02},
      'loop': {'num_steps': 4000, 'batch_size': 4, 'ema_decays': (0.99,), 'log_every': 200, 'evaluate_every': 0,
               'sample_every': 4000, 'save_every': 1000},
  })
