"""Fine-tuning Mochi 1 (10 billion parameters) on your own clips of 37 frames at 480 × 848.

  veojax convert --source mochi-1-preview --output runs/mochi
  veojax prepare --source FOLDER --output data/clips --fps=30 --height=480 --width=848 --only=picture \
    --embed mochi-1-preview/text_encoder
  veojax train --config configs/mochi.py --workdir runs/mine --config.model=runs/mochi --config.data=data/clips \
    --config.loop.batch_size=4
  veojax compile --config configs/mochi.py --topology v5p:2x2x1 --config.loop.batch_size=4
  veojax compile --config configs/mochi.py --topology v5e:2x2 --stage generate --config.mesh.tensor=4 \
    --config.settings.num_frames=163

Hardware: v5p:2x2x1, the 4 chips of one host, as fine-tuning is one process; 4 clips a step, one a chip. Expect, by the
compiler: 57.2 of a chip's 95.7 GiB; executed FLOPs of 2.4 s at the chips' peak. 163 frames of 480 × 848 are generated
on v5e:2x2 in 6.2 of 15.8 GiB. A host of 8 chips takes the 8 clips a step of the config.
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
