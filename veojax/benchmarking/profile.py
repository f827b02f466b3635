"""Where a step's time goes: JAX's own trace of it, summed by what the program's instructions come from."""
import collections
import pathlib
import tempfile

import jax

from veojax.benchmarking.timing import Candidate
from veojax.compiling.program import Program


def costs(candidate: Candidate, steps: int = 2) -> list[tuple[str, float]]:
  """[(instruction and where it comes from, seconds a step)], the dearest first; of all threads and devices together."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(steps):
        candidate.step()
    paths = sorted(pathlib.Path(folder).rglob('*.xplane.pb'))
    total = collections.Counter()
    for path in paths:
      total.update(_by_instruction(jax.profiler.ProfileData.from_file(str(path))))
  # A loop's time is that of what is in it.
  origins = {i.name: i.op_name for computation in Program(candidate.text).computations.values()
             for i in computation.values() if i.opcode not in ('while', 'call', 'conditional')}
  return [(f'{name}: {origins[name]}', seconds / steps) for name, seconds in total.most_common() if name in origins]


def _by_instruction(profile) -> collections.Counter:
  """{instruction: seconds}; of an accelerator where there is one, for the host's share there is only its launch."""
  total, planes = collections.Counter(), list(profile.planes)
  for plane in [p for p in planes if p.name.startswith('/device:')] or planes:
    lines = list(plane.lines)
    for line in [l for l in lines if l.name == 'XLA Ops'] or lines:
      for event in line.events:
        name = next((value for key, value in event.stats if key == 'hlo_op'), None)
        if name is not None:
          total[str(name)] += event.duration_ns / 1e9
  return total
