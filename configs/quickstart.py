"""The quickstart: text → video + sound of the built-in world, on a laptop.

  bash launch/quickstart.sh
  veojax train --config configs/quickstart.py --workdir quickstart/run --config.data=quickstart/data

The codecs are trained first, inside the same work directory.
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'transformer',
      'video_codec': 'configs/quickstart_video_vae.py',
      'audio_codec': 'configs/quickstart_audio_vae.py',
      'dit': {
          'video_channels': 32, 'audio_channels': 64, 'width': 256, 'depth': 6, 'num_heads': 4, 'mlp_width': 704,
          'text': {'vocab_size': 600, 'width': 128, 'depth': 2, 'num_heads': 2, 'mlp_width': 320},
          'dtype': 'float32'},
      'pack': {'row_tokens': 192, 'text_tokens': 64, 'max_clips': 1, 'max_text': 64, 'channels': 64},
      'loss': {'timesteps': 'logit_normal'},
      'sampling': {'num_inference_steps': 24, 'guidance_scale': 3.0},
      'clip': {'num_frames': 17, 'height': 64, 'width': 64, 'fps': 16.0},
      'prompts': ('a large red ball falls and bounces',),
      'optimizer': {'learning_rate': 1e-3, 'warmup_steps': 100},
      'loop': {'num_steps': 2000, 'batch_size': 16, 'ema_decay': 0.999, 'evaluate_every': 500, 'sample_every': 0},
  })
