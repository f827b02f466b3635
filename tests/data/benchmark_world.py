"""How many clips of the world one core renders a second, with sound and caption, in the core's own time.

    python tests/data/benchmark_world.py [NUM_CLIPS]
"""
import sys
import time

from veojax.data import world_clip
from veojax.data.world import LEVELS, WorldConfig

SIZES = ((48, 48, 17), (64, 64, 33), (128, 128, 33))


def main(num_clips: str = '200'):
  world_clip.make(0, WorldConfig())
  for height, width, num_frames in SIZES:
    for levels in (('L2', 'L3'), LEVELS[1:]):
      config = WorldConfig(height=height, width=width, num_frames=num_frames, levels=levels)
      started = time.process_time()
      for seed in range(int(num_clips)):
        world_clip.make(seed, config)
      rate = int(num_clips) / (time.process_time() - started)
      print(f'{width}x{height}x{num_frames}, {levels[0]} to {levels[-1]}: {rate:.0f} clips a second and core')


if __name__ == '__main__':
  main(*sys.argv[1:])
