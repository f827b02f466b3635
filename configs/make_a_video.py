"""Make-A-Video's recipe (Singer et al. 2022), small enough for a laptop: text to video of the built-in world from
pictures with captions, and from clips whose captions nothing reads.

  veojax prepare --source world --output data/small --num_clips=2000 --world.height=32 --world.width=32 \
    --world.num_frames=33 --world.sample_rate=0
  veojax train --config configs/make_a_video.py --workdir runs/image --config.data=data/small
  veojax train --config configs/make_a_video.py --workdir runs/video --config.data=data/small --config.part=video \
    --config.start=runs/image
  veojax train --config configs/make_a_video.py --workdir runs/smooth --config.data=data/small \
    --config.part=interpolation --config.start=runs/video --config.loop.num_steps=1000
  veojax train --config configs/make_a_video.py --workdir runs/large --config.data=data/small \
    --config.part=super_resolution --config.start=runs/smooth --config.loop.num_steps=1000
  veojax generate --model runs/large --prompt "a large red ball falls and bounces" --output clip.mp4

Each run is a model of all parts up to it: pictures of 16×16, 8 frames, 29 frames, 29 frames of 32×32. One more network
enlarges every frame alone, from the same noise: prepare the world at 64×64, and

  veojax train --config configs/make_a_video.py --workdir runs/larger --config.data=data/large \
    --config.part=super_resolution --config.start=runs/large --config.super_resolution.num_frames=1 \
    --config.super_resolution.height=64 --config.super_resolution.width=64

`data` may name several data sets by weight, of pictures with captions for `image` and of clips for the others. The
sizes of the paper are the defaults of `MakeAVideoRun`, or near them: 16 frames of 64×64, interpolated by 5, then
256×256.
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'make_a_video',
      'part': 'image',
      'embedder': {
          'embedding_dim': 64, 'widths': (32, 64, 96), 'groups': 8, 'prior_width': 128, 'prior_depth': 3,
          'prior_head_dim': 64,
          'text': {'vocab_size': 600, 'width': 96, 'depth': 2, 'num_heads': 2, 'mlp_width': 256}},
      'unet': {'widths': (48, 96), 'attention': (False, True), 'depth': 1, 'head_dim': 48, 'groups': 8,
               'condition_dim': 64},
      'num_frames': 8, 'height': 16, 'width': 16,
      'interpolation': {'num_frames': 9, 'factor': 4},
      'super_resolution': {
          'num_frames': 8, 'height': 32, 'width': 32, 'factor': 2,
          'unet': {'widths': (32, 64), 'attention': (False, False), 'depth': 1, 'head_dim': 32, 'groups': 8,
                   'condition_dim': 32, 'given_channels': 3}},
      'objective': {'process': 'vp_cosine', 'prediction': 'v'},
      'dtype': 'float32',
      'frame_skips': (1, 2, 4),
      'settings': {'num_inference_steps': 32, 'guidance_scale': 2.0},
      'optimizer': {'learning_rate': 1e-3, 'warmup_steps': 50},
      'loop': {'num_steps': 2000, 'batch_size': 16, 'ema_decays': (0.99,), 'log_every': 25, 'evaluate_every': 500,
               'sample_every': 0, 'save_every': 500},
  })
