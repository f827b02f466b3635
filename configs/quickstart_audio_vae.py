"""The audio codec of the quickstart.

  veojax train --config configs/quickstart_audio_vae.py --workdir quickstart/run/audio_vae --config.data=quickstart/data
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'audio_vae',
      'model': {'sample_rate': 16000, 'channels': 2, 'hop': 640, 'latent_channels': 64},
      'num_latents': 24,
      'optimizer': {'learning_rate': 1e-3, 'warmup_steps': 50},
      'loop': {'num_steps': 500, 'batch_size': 8, 'ema_decay': 0.995, 'evaluate_every': 0, 'sample_every': 250},
  })
