"""Every task of generation on one model, of clips of the built-in world: what is given, and at which noise, is drawn
anew for each clip and epoch from the mixture `tasks`.

  veojax prepare --source world --output data/world
  veojax train --config configs/tasks.py --workdir runs/tasks --config.data=data/world

A row holds one clip, its two stills and its caption; groups_per_clip lets every latent frame and the sound beside it
have a noise level of its own, as `veojax generate --stream` wants.
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'transformer',
      'video_codec': 'world',
      'audio_codec': 'world',
      'tasks': {'generate': 3.0, 'image': 0.3, 'sound': 0.3, 'first_frame': 1.0, 'extend': 1.0, 'last_frame': 0.7,
                'keyframes': 0.7, 'reference': 0.5, 'inpaint': 1.0, 'soundtrack': 0.7, 'picture': 0.5, 'forcing': 0.5,
                'stream': 1.0},
      'dit': {
          'video_channels': 16, 'audio_channels': 64, 'width': 192, 'depth': 6, 'num_heads': 3, 'mlp_width': 512,
          'text': {'vocab_size': 600, 'width': 96, 'depth': 2, 'num_heads': 2, 'mlp_width': 256},
          'dtype': 'float32'},
      'pack': {'row_tokens': 336, 'text_tokens': 56, 'max_clips': 1, 'max_text': 56, 'channels': 64,
               'groups_per_clip': 14},
      'loss': {'timesteps': 'logit_normal', 'audio_weight': 0.5},
      'sampling': {'num_inference_steps': 24, 'guidance_scale': 3.0},
      'clip': {'num_frames': 17, 'height': 48, 'width': 48, 'fps': 16.0},
      'prompts': ('a large red ball falls and bounces',),
      'optimizer': {'kind': 'muon', 'learning_rate': 2e-3, 'warmup_steps': 50, 'weight_decay': 0.01},
      'loop': {'num_steps': 3000, 'batch_size': 16, 'ema_decays': (0.99,), 'log_every': 25, 'evaluate_every': 500,
               'sample_every': 0, 'save_every': 250},
  })
