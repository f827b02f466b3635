"""The mixture of shapes that packing is measured on, drawn from the world: clips, silent clips, images, sounds.

Three heights and three widths make nine sizes of five aspect ratios; there are four lengths and two frame rates.

  python -m veojax.data.world_mixture OUTPUT [NUM_CLIPS]

prepares a data set of each kind under OUTPUT, of NUM_CLIPS (4000) clips together; configs/mixture.py trains on them.
"""
import dataclasses
import pathlib
import sys

from veojax.data.prepare import PrepareConfig, prepare
from veojax.data.world import WorldConfig

SIDES = (64, 48, 36)
WORLD = WorldConfig(height=SIDES, width=SIDES, num_frames=(9, 17, 25, 33), fps=(12.0, 24.0), fps_min=12.0)
STILL = dataclasses.replace(WORLD, levels=('L0',), num_frames=1)
# Of each kind: its share of the clips, and how it is prepared. The first trains the tokenizer of all.
KINDS = {
    'clips': (0.5, PrepareConfig(world=WORLD, seed=0)),
    'silent': (0.15, PrepareConfig(world=WORLD, seed=1, only='picture')),
    'images': (0.25, PrepareConfig(world=STILL, seed=2, only='picture')),
    'sounds': (0.1, PrepareConfig(world=WORLD, seed=3, only='sound')),
}


def make(output, num_clips: int = 4000, *, workers: int | None = None, progress: bool = True, **changes):
  """Prepares the mixture under `output`. changes: fields of PrepareConfig, of every kind."""
  output = pathlib.Path(output)
  for kind, (share, config) in KINDS.items():
    tokenizer = None if kind == 'clips' else str(output / 'clips' / 'text.model')
    config = dataclasses.replace(config, num_clips=max(1, round(share * num_clips)), store='rendered', vocab_size=600,
                                 tokenizer=tokenizer, **changes)
    prepare('world', output / kind, config=config, workers=workers, progress=progress)


if __name__ == '__main__':
  make(sys.argv[1], *map(int, sys.argv[2:]))
