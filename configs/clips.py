"""Your own clips with captions, learned by heart: a small text → video + sound model of a folder of media.

  veojax prepare --source FOLDER --output data/clips --fps=8 --height=48 --width=64 --sample_rate=16000 \
    --channels=2 --loudness=-23 --max_seconds=2.125 --validation_fraction=0 --vocab_size=600
  veojax train --config configs/clips.py --workdir runs/clips --config.data=data/clips

The codecs are trained first, inside the same work directory. Meant for some dozens of short clips on a laptop.
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'transformer',
      'video_codec': 'configs/clips_video_vae.py',
      'audio_codec': 'configs/clips_audio_vae.py',
      'dit': {
          'video_channels': 64, 'audio_channels': 64, 'width': 192, 'depth': 6, 'num_heads': 3, 'mlp_width': 512,
          'text': {'vocab_size': 600, 'width': 96, 'depth': 2, 'num_heads': 2, 'mlp_width': 256},
          'dtype': 'float32'},
      'pack': {'row_tokens': 336, 'text_tokens': 144, 'max_clips': 5, 'max_text': 48, 'channels': 64},
      'loss': {'timesteps': 'logit_normal'},
      'sampling': {'num_inference_steps': 24, 'guidance_scale': 3.0},
      'clip': {'num_frames': 17, 'height': 48, 'width': 64, 'fps': 8.0},
      'optimizer': {'kind': 'muon', 'learning_rate': 2e-3, 'warmup_steps': 50},
      'loop': {'num_steps': 1600, 'batch_size': 8, 'ema_decays': (0.99,), 'log_every': 50, 'evaluate_every': 0,
               'sample_every': 0, 'save_every': 250},
  })
