"""The quickstart: text → video + sound of the built-in world, on a laptop.

  bash launch/quickstart.sh
  veojax train --config configs/quickstart.py --workdir quickstart/run --config.data=quickstart/data

The codecs are the world's, which come with the package (configs/world/).
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'transformer',
      'video_codec': 'world',
      'audio_codec': 'world',
      'dit': {
          'video_channels': 16, 'audio_channels': 64, 'width': 192, 'depth': 6, 'num_heads': 3, 'mlp_width': 512,
          'text': {'vocab_size': 600, 'width': 96, 'depth': 2, 'num_heads': 2, 'mlp_width': 256},
          'dtype': 'float32'},
      'pack': {'row_tokens': 264, 'text_tokens': 56, 'max_clips': 1, 'max_text': 56, 'channels': 64},
      'loss': {'timesteps': 'logit_normal', 'video_shift': 2.0, 'audio_weight': 0.5},
      'sampling': {'num_inference_steps': 24, 'guidance_scale': 3.0},
      'clip': {'num_frames': 17, 'height': 48, 'width': 48, 'fps': 16.0},
      'prompts': ('a large red ball falls and bounces',),
      'optimizer': {'kind': 'muon', 'learning_rate': 2e-3, 'warmup_steps': 50, 'weight_decay': 0.01},
      'loop': {'num_steps': 600, 'batch_size': 16, 'ema_decays': (0.99,), 'log_every': 25, 'evaluate_every': 0,
               'sample_every': 0, 'save_every': 150},
  })
