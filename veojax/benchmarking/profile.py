"""Where a step's time goes: JAX's own trace of it, summed by what the program's instructions come from."""
import collections
import pathlib
import tempfile

import jax

from veojax.benchmarking.timing import Candidate
from veojax.compiling.program import Program


def costs(candidate: Candidate, steps: int = 2) -> list[tuple[str, float]]:
  """[(instruction and where it comes from, seconds a step)], the dearest first; of all threads and devices together. A
  kernel of which an accelerator's trace names no instruction goes by its own name.

  Raises ValueError, with what there is in the trace, where nothing in it belongs to the program.
  """
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(steps):
        candidate.step()
    paths = sorted(pathlib.Path(folder).rglob('*.xplane.pb'))
    profiles = [jax.profiler.ProfileData.from_file(str(path)) for path in paths]
    origins = {i.name: i for computation in Program(candidate.text).computations.values() for i in computation.values()}
    total, lines = collections.Counter(), []
    for profile in profiles:
      total.update(seconds(profile, origins))
      lines += [f'{plane.name} / {line.name}' for plane in profile.planes for line in plane.lines]
  if not total:
    raise ValueError(f'the trace has nothing of the program; its planes and lines: {", ".join(lines) or "none"}')
  told = lambda name: f'{name}: {origins[name].op_name}' if name in origins else name
  return [(told(name), value / steps) for name, value in total.most_common()]


def seconds(profile, instructions: dict) -> collections.Counter:
  """{instruction or kernel: seconds}; of accelerators where there are any, for the host's share there is only their
  launch."""
  planes = list(profile.planes)
  devices = [plane for plane in planes if plane.name.startswith('/device:')]
  total = collections.Counter()
  for plane in devices or planes:
    lines = list(plane.lines)
    kinds = ([line for line in lines if line.name.startswith(kind)] for kind in ('XLA Ops', 'Stream'))
    for line in next(filter(None, kinds), lines):
      for event in line.events:
        name = next((str(value) for key, value in event.stats if key == 'hlo_op'), event.name if devices else '')
        # A loop's time is that of what is in it.
        if instructions[name].opcode not in ('while', 'call', 'conditional') if name in instructions else devices:
          total[name] += event.duration_ns / 1e9
  return total
