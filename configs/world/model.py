"""The model of the world for the package, `veojax.load('world')`: every task of generation, 64×64×33 with stereo sound.

  bash launch/world_model.sh

prepares the data, trains on clips of half the length and three quarters of the sides first, at a third of the cost, then
on these, scores and exports. The last training by hand:

  veojax train --config configs/world/model.py --workdir runs/world/run --config.data=runs/world/data \
    --config.start=runs/world/small_run

Hardware: two cores of a CPU. A step of the first training took 1.4 s and one of the last 2 s, beside other jobs: about five
hours in all.

A row holds one clip, its two stills and its caption. A token of the picture is 2×2 latents of the codec: a quarter of the
tokens, so nearly four times the clips in the same minutes.
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'transformer',
      'video_codec': 'world',
      'audio_codec': 'world',
      'video_patch': 2,
      'tasks': {'generate': 8.0, 'image': 0.3, 'sound': 0.3, 'first_frame': 1.0, 'extend': 0.7, 'last_frame': 0.5,
                'keyframes': 0.5, 'reference': 0.3, 'inpaint': 0.7, 'soundtrack': 0.7, 'picture': 0.4, 'forcing': 0.3,
                'stream': 0.7},
      'dit': {
          'video_channels': 64, 'audio_channels': 64, 'width': 256, 'depth': 6, 'num_heads': 4, 'mlp_width': 704,
          'text': {'vocab_size': 600, 'width': 128, 'depth': 2, 'num_heads': 2, 'mlp_width': 352},
          'dtype': 'float32'},
      'pack': {'row_tokens': 312, 'text_tokens': 84, 'max_clips': 1, 'max_text': 84, 'channels': 64,
               'groups_per_clip': 22},
      # How many things there are, and where, is decided where the noise is many times the signal, since thousands of
      # latents tell of one of them. Levels that are not shifted hardly train there.
      # Sound follows what is seen: it begins when two fifths of the way are done, and goes on when the picture stands.
      'loss': {'timesteps': 'uniform', 'video_shift': 6.0, 'audio_shift': 3.0, 'audio_lag': 0.4},
      'sampling': {'num_inference_steps': 32, 'guidance_scale': 2.5, 'video_shift': 6.0, 'audio_shift': 3.0,
                   'audio_lag': 0.4},
      'clip': {'num_frames': 33, 'height': 64, 'width': 64, 'fps': 16.0},
      'prompts': ('a large red ball falls and bounces', 'a small blue metal square and a yellow rubber ball'),
      'optimizer': {'kind': 'muon', 'learning_rate': 1e-3, 'warmup_steps': 20, 'weight_decay': 0.01},
      'loop': {'num_steps': 7300, 'batch_size': 16, 'ema_decays': (0.995,), 'log_every': 50, 'evaluate_every': 0,
               'sample_every': 0, 'save_every': 100},
  })
