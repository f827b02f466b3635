"""Fine-tuning AnimateDiff's motion modules (417 million parameters, on Stable Diffusion 1.5's 860 million, which stay) on
your own clips of 16 frames at 256 × 256.

  veojax convert --source stable-diffusion-v1-5 --motion_adapter animatediff-motion-adapter-v1-5-2 \
    --output runs/animatediff
  veojax prepare --source FOLDER --output data/clips --fps=8 --height=256 --width=256 --only=picture
  veojax train --config configs/animatediff.py --workdir runs/mine --config.model=runs/animatediff \
    --config.data=data/clips
  veojax compile --config configs/animatediff.py --topology v5e:2x2 --quick
  veojax compile --config configs/animatediff.py --topology v5e:1x1 --stage generate --config.mesh.fsdp=1 --quick

Hardware: v5e:2x2, 4 clips a step, one a chip. Expect, by the compiler: 7.0 of a chip's 15.75 GiB. 16 frames of 512 × 512
are generated on one chip in 3.6 GiB.
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'animatediff',
      'unet': {'remat': 'full'},
      'num_frames': 16, 'height': 256, 'width': 256,
      'optimizer': {'learning_rate': 1e-4, 'schedule': 'constant', 'warmup_steps': 100, 'b2': 0.999},
      'loop': {'num_steps': 2000, 'batch_size': 4, 'ema_decays': (0.99,), 'log_every': 10, 'evaluate_every': 200,
               'sample_every': 500, 'save_every': 500},
      'mesh': {'data': 1, 'fsdp': -1},
  })
