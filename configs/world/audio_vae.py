"""The world's audio codec, shipped with the package as 'world': 16 kHz stereo, 25 latents a second.

  veojax train --config configs/world/audio_vae.py --workdir runs/world/audio_vae --config.data=data/world

with the data of configs/world/video_vae.py, and then a finer decoder alone, on other clips, quiet sounds weighing more:

  veojax train --config configs/world/audio_vae.py --workdir runs/world/audio_decoder --config.data=data/more \
    --config.start=runs/world/audio_vae --config.learn=decoder --config.loss.stft=0.6 \
    --config.model.decoder_strides="(4,8)" --config.model.decoder_widths="(64,128,256)" --config.loop.num_steps=7000

and in the same way 3500 steps from runs/world/audio_decoder, with --config.loss.stft=1.5
--config.loss.fft_sizes="(32,64,256)" --config.optimizer.learning_rate=8e-4, and 2500 from those, with
--config.loss.stft=1.0 --config.loss.floor=0.0002, these sizes and --config.optimizer.learning_rate=6e-4: what is heard
before an impact weighs more.

Hardware: one core of a CPU, 18 minutes, 46, 16 and 10. Expect a signal to distortion of 14 dB on held-out clips.
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'audio_vae',
      'model': {'sample_rate': 16000, 'channels': 2, 'hop': 640, 'latent_channels': 64, 'strides': (8,),
                'widths': (128, 256), 'depth': 2},
      'num_latents': 26,
      'loss': {'stft': 0.2, 'fft_sizes': (32, 128, 512), 'kl': 1e-4},
      'evaluation_clips': 64,
      'optimizer': {'learning_rate': 1.2e-3, 'warmup_steps': 50, 'final_share': 0.01},
      'loop': {'num_steps': 5000, 'batch_size': 8, 'ema_decays': (0.99,), 'log_every': 100, 'evaluate_every': 0,
               'sample_every': 5000, 'save_every': 1000},
  })
