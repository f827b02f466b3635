"""How long `prepare` takes against plain PyAV decoding of the same files, in the same run.

    python tests/data/benchmark_prepare.py FOLDER [--key=value of PrepareConfig ...]
"""
import concurrent.futures
import os
import pathlib
import sys
import tempfile
import time

import av

from veojax import arguments
from veojax import config as door
from veojax.data import prepare

SUFFIXES = {'.mp4', '.mov', '.mkv', '.webm', '.avi'}


def decode(path) -> int:
  """Decodes picture and sound, one thread a file; the number of frames of both."""
  count = 0
  with av.open(str(path)) as container:
    streams = [s for s in (*container.streams.video[:1], *container.streams.audio[:1])]
    for _ in container.decode(streams):
      count += 1
  return count


def main(folder, *options):
  files = sorted(p for p in pathlib.Path(folder).rglob('*') if p.suffix in SUFFIXES)
  config = door.build(prepare.PrepareConfig, arguments.parse(list(options)), 'prepare')
  cores = len(os.sched_getaffinity(0))
  seconds = {'plain': [], 'prepare': []}
  for _ in range(3):
    start = time.perf_counter()
    with concurrent.futures.ProcessPoolExecutor(cores) as pool:
      frames = sum(pool.map(decode, files))
    seconds['plain'].append(time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as output:
      start = time.perf_counter()
      prepare.prepare(folder, output + '/data', config=config, progress=False)
      seconds['prepare'].append(time.perf_counter() - start)
  plain, prepared = min(seconds['plain']), min(seconds['prepare'])
  print(f'{len(files)} files, {frames} frames, {cores} cores: plain PyAV decoding {plain:.2f} s, '
        f'prepare {prepared:.2f} s, ratio {prepared / plain:.2f} (best of 3 each)')


if __name__ == '__main__':
  main(*sys.argv[1:])
