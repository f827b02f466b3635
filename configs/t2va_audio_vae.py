"""The audio codec of configs/t2va_2b.py and t2va_14b.py: 48 kHz stereo into 25 latents a second of 64 channels.

  veojax train --config configs/t2va_audio_vae.py --workdir runs/t2va/audio_vae --config.data=DATA
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'audio_vae',
      'model': {'sample_rate': 48000, 'channels': 2, 'hop': 1920, 'latent_channels': 64, 'strides': (2, 4),
                'widths': (256, 512, 1024), 'depth': 3},
      'num_latents': 50,
      'loss': {'waveform': 0.3, 'stft': 0.5, 'mel': 2.0, 'kl': 1e-4},
      'optimizer': {'learning_rate': 2e-4, 'warmup_steps': 1000},
      'loop': {'num_steps': 400000, 'batch_size': 64, 'ema_decays': (0.9999,), 'log_every': 100,
               'evaluate_every': 5000, 'sample_every': 5000, 'save_every': 2000},
  })
