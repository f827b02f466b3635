"""The audio codec of configs/clips.py: 16 kHz stereo, 25 latents a second. Spectra lead: real sound is noise more
than tone.

  veojax train --config configs/clips_audio_vae.py --workdir runs/clips/audio_vae --config.data=data/clips
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'audio_vae',
      'model': {'sample_rate': 16000, 'channels': 2, 'hop': 640, 'latent_channels': 64, 'strides': (), 'widths': (256,),
                'depth': 2},
      'num_latents': 26,
      'loss': {'waveform': 0.3, 'stft': 0.5, 'mel': 2.0, 'fft_sizes': (256, 1024), 'kl': 1e-4},
      'optimizer': {'learning_rate': 2e-3, 'warmup_steps': 50, 'final_share': 0.02},
      'loop': {'num_steps': 2500, 'batch_size': 8, 'ema_decays': (0.99,), 'log_every': 100, 'evaluate_every': 0,
               'sample_every': 2500, 'save_every': 500},
  })
