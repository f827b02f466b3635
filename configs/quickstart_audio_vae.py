"""The audio codec of the quickstart: 16 kHz stereo, 25 latents a second.

  veojax train --config configs/quickstart_audio_vae.py --workdir quickstart/run/audio_vae --config.data=quickstart/data
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'audio_vae',
      'model': {'sample_rate': 16000, 'channels': 2, 'hop': 640, 'latent_channels': 64, 'strides': (), 'widths': (256,),
                'depth': 2},
      'num_latents': 26,
      'loss': {'stft': 0.05, 'fft_sizes': (64, 256), 'kl': 1e-4},
      'optimizer': {'learning_rate': 3e-3, 'warmup_steps': 50, 'final_share': 0.02},
      'loop': {'num_steps': 1000, 'batch_size': 8, 'ema_decays': (0.99,), 'log_every': 100, 'evaluate_every': 0,
               'sample_every': 1000, 'save_every': 500},
  })
