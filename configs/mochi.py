"""Fine-tuning Mochi 1 (10 billion parameters) on your own clips of 37 frames at 480 × 848.

  veojax convert --source mochi-1-preview --output runs/mochi
  veojax prepare --source FOLDER --output data/clips --fps=30 --height=480 --width=848 --only=picture \
    --embed mochi-1-preview/text_encoder
  veojax train --config configs/mochi.py --workdir runs/mine --config.model=runs/mochi --config.data=data/clips
  veojax compile --config configs/mochi.py --topology v5p:2x2x2

Hardware: v5p:2x2x2 (8 chips), 8 clips a step, one a chip. Expect, by the compiler: 33.3 of a chip's 95.7 GiB; executed
FLOPs of 2.4 s at the chips' peak, links of 1.2 s. Half of it, v5p:2x2x1 with 4 clips a step, fits too: 57.2 GiB.
`--stage generate` with mesh.tensor=4 fits v5e:2x2: 163 frames of 480 × 848 take 6.2 of 15.8 GiB.
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'mochi',
      'transformer': {'remat': 'full'},
      'num_frames': 37, 'height': 480, 'width': 848,
      'optimizer': {'learning_rate': 1e-5, 'schedule': 'constant', 'warmup_steps': 100, 'b2': 0.95},
      'loop': {'num_steps': 2000, 'batch_size': 8, 'ema_decays': (0.99,), 'log_every': 10, 'evaluate_every': 200,
               'sample_every': 500, 'save_every': 500},
      'mesh': {'data': 1, 'fsdp': -1},
  })
