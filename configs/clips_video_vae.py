"""The video codec of configs/clips.py: 4×16×16, so that a clip of two seconds is 60 tokens.

  veojax train --config configs/clips_video_vae.py --workdir runs/clips/video_vae --config.data=data/clips
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'video_vae',
      'model': {'temporal_compression': 4, 'spatial_compression': 16, 'patch_time': 2, 'patch_size': 4,
                'latent_channels': 64, 'widths': (64, 128, 128), 'encoder_depths': (1, 1, 1),
                'decoder_depths': (1, 1, 1)},
      'crop': {'num_frames': 9, 'height': 48, 'width': 48},
      'l1_weight': 0.02,
      'kl_weight': 1e-6,
      'optimizer': {'learning_rate': 3e-3, 'warmup_steps': 50, 'final_share': 0.02},
      'loop': {'num_steps': 2500, 'batch_size': 4, 'ema_decays': (0.99,), 'log_every': 100, 'evaluate_every': 0,
               'sample_every': 2500, 'save_every': 500},
  })
