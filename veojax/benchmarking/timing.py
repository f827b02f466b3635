"""What is timed, and how: every candidate's steps in turn, so that what else the machine does falls on all alike."""
import dataclasses
import sys
import time
import traceback
from collections.abc import Callable

import jax


def device_peak() -> float | None:
  """Bytes that the first device has held at once since the process began, where it tells."""
  stats = jax.local_devices()[0].memory_stats()
  return float(stats['peak_bytes_in_use']) if stats and 'peak_bytes_in_use' in stats else None


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One step that waits for its own result. flops: the model's own of one step, on all devices; units: how many of what
  a step handles; step() may return the seconds that it waited for data; compile_seconds: of reading it, where a cache
  keeps it; predicted: bytes of a device at once by the compiler; text: the compiled program's; peak(): bytes
  that were held."""
  name: str
  step: Callable[[], float | None]
  flops: float
  units: dict[str, float]
  compile_seconds: float
  predicted: float | None = None
  text: str = ''
  peak: Callable[[], float | None] = device_peak


@dataclasses.dataclass(frozen=True)
class Measured:
  """seconds: of every timed step; cpu_seconds: of the process's threads, in the same steps together; predicted and
  peak: bytes of a device at once, by the compiler and as the device has counted them."""
  name: str
  seconds: tuple[float, ...]
  cpu_seconds: float
  waited: float | None      # seconds of these steps that went by waiting for data
  flops: float
  units: dict[str, float]
  compile_seconds: float
  predicted: float | None
  peak: float | None

  @property
  def best(self) -> float:
    return min(self.seconds)

  @property
  def median(self) -> float:
    return sorted(self.seconds)[len(self.seconds) // 2]

  @property
  def rate(self) -> float:
    """FLOP/s of the model's own in the median step."""
    return self.flops / self.median


def attempt(failures: dict[str, str], part: str, function, *arguments, raised: type[Exception] | tuple = ()):
  """function(*arguments); None where it fails, which is noted in `failures` and told in full on stderr: a kernel that
  does not fit must not lose what else is measured. Errors of the type `raised` are raised all the same."""
  try:
    return function(*arguments)
  except raised:
    raise
  except Exception as error:  # compilers, kernels and other projects have each their own
    failures[part] = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
    print(f'{part} fails:', *traceback.format_exception(error), sep='\n', file=sys.stderr)


def measure(candidates: list[Candidate], steps: int, failures: dict[str, str], warmup: int = 1) -> list[Measured]:
  """Times `steps` steps of each, in turn, after `warmup` that count for nothing. One that fails is left out, and noted
  in `failures`."""
  if steps < 1:
    raise ValueError(f'steps={steps}; give at least 1')
  seconds, cpu, waited = ([[] for _ in candidates] for _ in range(3))

  def timed(i):
    start, start_cpu = time.perf_counter(), time.process_time()
    waited[i].append(candidates[i].step())
    seconds[i].append(time.perf_counter() - start)
    cpu[i].append(time.process_time() - start_cpu)
  for candidate in candidates:
    for _ in range(warmup):
      attempt(failures, candidate.name, candidate.step)
  for _ in range(steps):
    for i, candidate in enumerate(candidates):
      if candidate.name not in failures:
        attempt(failures, candidate.name, timed, i)
  return [Measured(c.name, tuple(s), sum(t), None if None in w else sum(w), c.flops, c.units, c.compile_seconds,
                   c.predicted, c.peak()) for c, s, t, w in zip(candidates, seconds, cpu, waited)
          if c.name not in failures]


def compiled(function, *arguments, **options):
  """(compiled function, seconds of tracing, lowering and compiling, bytes at once by the compiler)."""
  start = time.perf_counter()
  jitted = function if hasattr(function, 'trace') else jax.jit(function)
  program = jitted.trace(*arguments, **options).lower().compile()
  seconds, memory = time.perf_counter() - start, program.memory_analysis()
  return program, seconds, memory and float(memory.peak_memory_in_bytes or 0) or None
