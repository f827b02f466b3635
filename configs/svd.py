"""Fine-tuning Stable Video Diffusion (1.5 billion parameters) on your own clips of 14 frames at 576 × 1024.

  veojax convert --source stable-video-diffusion-img2vid --output runs/svd
  veojax prepare --source FOLDER --output data/clips --fps=7 --height=576 --width=1024 --only=picture
  veojax train --config configs/svd.py --workdir runs/mine --config.model=runs/svd --config.data=data/clips
  veojax compile --config configs/svd.py --topology v5p:2x2x1 --quick
  veojax compile --config configs/svd.py --topology v5e:1x1 --stage generate --config.mesh.fsdp=1 --quick

Hardware: v5p:2x2x1 (4 chips), 4 clips a step, one a chip. Expect, by the compiler: 16.4 of a chip's 95.7 GiB; a clip is
generated on one chip of v5e in 4.5 of its 15.75 GiB. For -img2vid-xt, trained for 25 frames, add
--config.unet.num_frames=25.
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'svd',
      'unet': {'remat': 'full', 'num_frames': 14},
      'num_frames': 14, 'height': 576, 'width': 1024,
      'settings': {'num_frames': 14},
      'optimizer': {'learning_rate': 1e-5, 'schedule': 'constant', 'warmup_steps': 100, 'b2': 0.95},
      'loop': {'num_steps': 2000, 'batch_size': 4, 'ema_decays': (0.99,), 'log_every': 10, 'evaluate_every': 200,
               'sample_every': 500, 'save_every': 500},
      'mesh': {'data': 1, 'fsdp': -1},
  })
