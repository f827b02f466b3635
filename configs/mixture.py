"""Clips of nine sizes, four lengths and two frame rates, silent clips, images and sounds in the same rows, from the
first step: one compiled step for all of them.

  python -m veojax.data.world_mixture data/mixture
  veojax train --config configs/mixture.py --workdir runs/mixture

What `data` names may hold pictures or sound alone; a weight is how often an epoch passes over it.
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'transformer',
      'video_codec': 'world',
      'audio_codec': 'world',
      'data': [{'path': 'data/mixture/clips'}, {'path': 'data/mixture/silent'},
               {'path': 'data/mixture/images', 'weight': 2.0}, {'path': 'data/mixture/sounds', 'weight': 0.5}],
      'dit': {
          'video_channels': 16, 'audio_channels': 64, 'width': 192, 'depth': 6, 'num_heads': 3, 'mlp_width': 512,
          'text': {'vocab_size': 600, 'width': 96, 'depth': 2, 'num_heads': 2, 'mlp_width': 256},
          'dtype': 'float32'},
      'pack': {'row_tokens': 1024, 'text_tokens': 384, 'max_clips': 16, 'max_text': 128, 'channels': 64},
      'loss': {'timesteps': 'logit_normal', 'audio_weight': 0.5, 'mean_over': 'clips'},
      'sampling': {'num_inference_steps': 24, 'guidance_scale': 3.0},
      'clip': {'num_frames': 17, 'height': 48, 'width': 64, 'fps': 12.0},
      'prompts': ('a large red ball falls and bounces',),
      'optimizer': {'learning_rate': 2e-3, 'warmup_steps': 100, 'weight_decay': 0.01},
      'loop': {'num_steps': 3000, 'batch_size': 4, 'ema_decays': (0.99,), 'log_every': 25, 'evaluate_every': 500,
               'sample_every': 0, 'save_every': 250},
  })
