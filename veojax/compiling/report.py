"""`veojax compile`: a stage compiled for a topology, and what the compiled program says, as one table.

Times are bounds, not measurements. Compute: executed FLOPs at the chip's peak. Links: the bytes that a chip sends, one
collective after another over one link one way, where a torus has several: a bound from above. Matrix and other work:
the compiler's own estimate of cycles, memory's stalls left out; kernels, for which it has none, count at the peak.
"""
import collections
import dataclasses
import re
import time

import jax

from veojax import sharding
from veojax.compiling import advice, chips, collectives, operations, stages
from veojax.compiling.program import Program
from veojax.config import nearest


@dataclasses.dataclass(frozen=True)
class Report:
  """Bytes, FLOPs and seconds are those of one chip and one call. Where the program does not fit, what only a compiled
  program tells is None or empty."""
  topology: str
  chip: str
  num_chips: int
  mesh: dict[str, int]
  stage: str
  parameters: int
  units: dict[str, int]
  compile_seconds: float
  hbm: float                        # bytes that a program may use
  peak: float                       # bytes that this one uses, or would
  arguments: float | None = None
  temporaries: float | None = None
  host: float | None = None         # bytes of host memory, by what is offloaded
  model_flops: dict[str, float] | None = None
  executed_flops: dict[str, float] = dataclasses.field(default_factory=dict)
  compute_seconds: float | None = None    # executed FLOPs at the peak
  estimated_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  collectives: dict[str, float] = dataclasses.field(default_factory=dict)  # 'axes kind': bytes sent
  link_seconds: float | None = None
  mfu_bound: float | None = None          # compute at the peak, links wholly hidden behind it or it behind them
  mfu_estimated: float | None = None      # by the estimated cycles, links hidden likewise
  suggestions: tuple[str, ...] = ()

  @property
  def fits(self) -> bool:
    return self.peak <= self.hbm

  @property
  def spare(self) -> float:
    """Share of the memory that is left; negative where the program does not fit."""
    return 1 - self.peak / self.hbm

  @property
  def waste(self) -> float | None:
    """Executed FLOPs over the model's own."""
    if not self.model_flops or not self.executed_flops:
      return None
    return sum(self.executed_flops.values()) / sum(self.model_flops.values())


def compile_stage(config, topology: str, stage: str = 'train') -> Report:
  """Compiles one stage of a config for a topology such as 'v5p:4x4x4'; needs libtpu and no TPU.

  Raises ValueError for an unknown stage or topology, and for a mesh that does not cover it.
  """
  if stage not in stages.STAGES:
    raise ValueError(f'no stage {stage!r}; {nearest(stage, stages.STAGES)}')
  devices = chips.devices(topology)
  chip, mesh = chips.chip(devices[0]), sharding.make_mesh(config.mesh, devices)
  work = stages.STAGES[stage](config, mesh)
  start = time.perf_counter()
  with jax.set_mesh(mesh):
    traced = work.function.trace(*work.arguments, **work.options)
    lowered = traced.lower(lowering_platforms=('tpu',))
  share = work.flops and {kind: value / len(devices) for kind, value in work.flops.items()}
  known = dict(topology=topology, chip=chip.name, num_chips=len(devices), mesh=dict(mesh.shape), stage=stage,
               parameters=work.parameters, units=work.units, hbm=chip.hbm, model_flops=share)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    peak = needed(str(error))
    return Report(**known, peak=peak, compile_seconds=time.perf_counter() - start,
                  suggestions=advice.remedies(config, dict(mesh.shape), peak - chip.hbm))
  seconds = time.perf_counter() - start
  return _read(compiled, chip, dict(mesh.shape), known | {'compile_seconds': seconds})


def _read(compiled, chip, mesh, known) -> Report:
  memory, program = compiled.memory_analysis(), Program(compiled.as_text())
  executed = operations.by_kind(program)
  sent = collectives.by_axis(collectives.collect(program, mesh))
  compute = sum(executed.values()) / chip.peak
  estimated = cycles(program, chip.clock) | {'attention': executed['attention'] / chip.peak}
  links = sum(sent.values()) / chip.link
  model = known['model_flops']
  bound = lambda seconds: model and sum(model.values()) / chip.peak / max(seconds, links)
  return Report(
      **known, peak=memory.peak_memory_in_bytes, arguments=memory.argument_size_in_bytes,
      temporaries=memory.temp_size_in_bytes, host=memory.host_temp_size_in_bytes, executed_flops=executed,
      compute_seconds=compute, estimated_seconds=estimated, link_seconds=links,
      collectives={f'{axes} {kind}': size for (axes, kind), size in sent.items()}, mfu_bound=bound(compute),
      mfu_estimated=bound(sum(estimated.values())))


def needed(message: str) -> float:
  """Bytes that a program would use, from the compiler's refusal. Raises ValueError where it refused for another
  reason."""
  found = (re.search(r'Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm', message)
           or re.search(r'temporaries \(([\d.]+)([KMGT])\) exceeds available HBM', message))
  if not found:
    raise ValueError(f'the compiler refuses the program: {message[:600]}')
  return float(found.group(1)) * 2 ** {'K': 10, 'M': 20, 'G': 30, 'T': 40}[found.group(2)]


def cycles(program: Program, clock: float) -> dict[str, float]:
  """Seconds by the compiler's estimate: {'matrix': fusions with a product, 'other': all else}."""
  estimate, matrix = collections.Counter(), set()
  for item in program.executed():
    if item.instruction.opcode in ('convolution', 'dot'):
      matrix.add(item.caller.name)
    found = item.instruction.attribute(r'"estimated_cycles":"(\d+)"')
    if item.caller is item.instruction and found and int(found) < 2 ** 60:  # above, it stands for unknown
      estimate[item.instruction.name] += int(found) * item.times
  seconds = {'matrix': 0.0, 'other': 0.0}
  for name, count in estimate.items():
    seconds['matrix' if name in matrix else 'other'] += count / clock
  return seconds
