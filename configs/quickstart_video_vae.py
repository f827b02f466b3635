"""The video codec of the quickstart.

  veojax train --config configs/quickstart_video_vae.py --workdir quickstart/run/video_vae --config.data=quickstart/data
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'video_vae',
      'model': {'temporal_compression': 4, 'spatial_compression': 16, 'patch_time': 4, 'patch_size': 8,
                'latent_channels': 32, 'widths': (192, 256), 'encoder_depths': (1, 2), 'decoder_depths': (2, 2)},
      'crop': {'num_frames': 17, 'height': 64, 'width': 64},
      'optimizer': {'learning_rate': 1e-3, 'warmup_steps': 50},
      'loop': {'num_steps': 1000, 'batch_size': 4, 'ema_decay': 0.995, 'evaluate_every': 0, 'sample_every': 500},
  })
