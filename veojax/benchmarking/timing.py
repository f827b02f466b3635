"""What is timed, and how: every candidate's steps in turn, so that what else the machine does falls on all alike."""
import dataclasses
import time
from collections.abc import Callable

import jax


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One step that waits for its own result. flops: the model's own of one step, on all devices; units: how many of what
  a step handles; step() may return the seconds that it waited for data; text: the compiled program's."""
  name: str
  step: Callable[[], float | None]
  flops: float
  units: dict[str, int]
  compile_seconds: float
  memory: float | None = None  # bytes of a device at once, as the compiler or the device tells
  text: str = ''


@dataclasses.dataclass(frozen=True)
class Measured:
  """seconds: of every timed step; cpu_seconds: of the process's threads, in the same steps together."""
  name: str
  seconds: tuple[float, ...]
  cpu_seconds: float
  waited: float | None      # seconds of these steps that went by waiting for data
  flops: float
  units: dict[str, int]
  compile_seconds: float
  memory: float | None

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


def measure(candidates: list[Candidate], steps: int, warmup: int = 1) -> list[Measured]:
  """Times `steps` steps of each, in turn, after `warmup` that count for nothing."""
  if steps < 1:
    raise ValueError(f'steps={steps}; give at least 1')
  for candidate in candidates:
    for _ in range(warmup):
      candidate.step()
  seconds, cpu, waited = ([[] for _ in candidates] for _ in range(3))
  for _ in range(steps):
    for i, candidate in enumerate(candidates):
      start, start_cpu = time.perf_counter(), time.process_time()
      waited[i].append(candidate.step())
      seconds[i].append(time.perf_counter() - start)
      cpu[i].append(time.process_time() - start_cpu)
  return [Measured(c.name, tuple(s), sum(t), None if None in w else sum(w), c.flops, c.units, c.compile_seconds,
                   c.memory or device_peak()) for c, s, t, w in zip(candidates, seconds, cpu, waited)]


def compiled(function, *arguments, **options):
  """(compiled function, seconds of tracing, lowering and compiling, bytes at once by the compiler)."""
  start = time.perf_counter()
  jitted = function if hasattr(function, 'trace') else jax.jit(function)
  program = jitted.trace(*arguments, **options).lower().compile()
  seconds, memory = time.perf_counter() - start, program.memory_analysis()
  return program, seconds, memory and float(memory.peak_memory_in_bytes or 0) or None


def device_peak() -> float | None:
  """Bytes that the first device has held at once since the process began, where it tells."""
  stats = jax.local_devices()[0].memory_stats()
  return float(stats['peak_bytes_in_use']) if stats and 'peak_bytes_in_use' in stats else None
