"""`veojax compile`: a stage compiled for a topology, and what the compiled program says, as one table.

Times are bounds and estimates, not measurements. Compute: executed FLOPs at the chip's peak. Links: the bytes that a
chip sends, one collective after another over one link one way, where a torus has several, and over the network where
they leave a slice or a host: a bound from above. Matrix, elementwise and copies: the compiler's own estimate of
cycles, memory's stalls left out; attention's kernels, for which it has none, count at the peak, collectives at the
links' rates. XLA's compiler for GPUs estimates no cycles.
"""
import dataclasses
import re
import time
from collections import Counter

import jax

from veojax import host, sharding
from veojax.compiling import advice, chips, collectives, operations, stages
from veojax.compiling.collectives import Traffic
from veojax.compiling.program import Program
from veojax.config import nearest

QUICK = {'exec_time_optimization_effort': -1.0}  # of the compiler


@dataclasses.dataclass(frozen=True)
class Report:
  """Bytes, FLOPs and seconds are those of one chip and one call; num_chips: that the program runs on. Where the
  compiler refuses the program, what only a compiled program tells is None or empty."""
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
  traffic: tuple[Traffic, ...] = ()
  link_seconds: float | None = None
  mfu_bound: float | None = None          # compute at the peak, links wholly hidden behind it or it behind them
  mfu_estimated: float | None = None      # by the estimated cycles, links hidden likewise
  suggestions: tuple[advice.Remedy, ...] = ()
  more_chips: str = ''                    # what they would do, where they help

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


def compile_stage(config, topology: str, stage: str = 'train', *, hbm: float | None = None,
                  quick: bool = False) -> Report:
  """Compiles one stage of a config for a topology such as 'v5p:4x4x4'; needs the chips' compiler and no chip.

  hbm: bytes of a chip that the program may use, where that is less than all. quick: with the compiler's least effort, in
  a quarter of its time and memory; the program needs about the same, but is slower, so no cycles are told. Raises
  ValueError for an unknown stage or topology, and for a mesh that does not cover it.
  """
  if stage not in stages.STAGES:
    raise ValueError(f'no stage {stage!r}; {nearest(stage, stages.STAGES)}')
  devices = chips.devices(topology)
  chip, mesh = chips.chip(devices[0]), sharding.make_mesh(config.mesh, devices)
  work = stages.STAGES[stage](config, mesh)
  start = time.perf_counter()
  with sharding.use(config.mesh, devices), work.under():
    traced = work.function.trace(*work.arguments, **work.options)
    lowered = traced.lower(lowering_platforms=(chips.platform(devices[0]),))
  mesh = mesh if work.mesh is None else work.mesh
  share = work.flops and {kind: value / mesh.size for kind, value in work.flops.items()}
  known = Report(topology=topology, chip=chip.name, num_chips=mesh.size, mesh=dict(mesh.shape), stage=stage,
                 parameters=work.parameters, units=work.units, hbm=min(chip.hbm, hbm or chip.hbm), peak=0.0,
                 model_flops=share, compile_seconds=0.0)
  try:
    with host.without_compilation_cache():
      compiled = lowered.compile(QUICK if quick else None)
  except jax.errors.JaxRuntimeError as error:
    found = dataclasses.replace(known, peak=needed(str(error)))
  else:
    told = chip if not quick else dataclasses.replace(chip, clock=0.0)
    found = dataclasses.replace(known, **_read(compiled, told, mesh, share))
  if not found.fits:
    suggestions = advice.remedies(config, stage, work.arguments, found.mesh, found.peak, found.hbm)
    found = dataclasses.replace(found, suggestions=suggestions,
                                more_chips=advice.more_chips(config, stage, found.mesh))
  return dataclasses.replace(found, compile_seconds=time.perf_counter() - start)


def _read(compiled, chip, mesh, model) -> dict:
  """What the compiled program tells."""
  memory, program = compiled.memory_analysis(), Program(compiled.as_text())
  executed = operations.by_kind(program)
  domains = [chips.domain(device) for device in mesh.devices.flat]
  traffic = collectives.by_axis(collectives.collect(program, dict(mesh.shape), domains), chip.link, chip.network)
  compute, links = sum(executed.values()) / chip.peak, sum(t.seconds for t in traffic)
  attention = {'attention': executed['attention'] / chip.peak}
  estimated = cycles(program, chip.clock) | attention if chip.clock else {}
  bound = lambda seconds: sum(model.values()) / chip.peak / max(seconds, links) if model and seconds else None
  return dict(
      peak=peak(memory), arguments=memory.argument_size_in_bytes, temporaries=memory.temp_size_in_bytes,
      host=memory.host_temp_size_in_bytes, executed_flops=executed, compute_seconds=compute,
      estimated_seconds=estimated and estimated | {'collectives': links}, link_seconds=links, traffic=tuple(traffic),
      mfu_bound=bound(compute), mfu_estimated=bound(sum(estimated.values())))


def peak(memory) -> float:
  """Bytes that a program needs at once; where the compiler does not tell, all of what it tells."""
  return memory.peak_memory_in_bytes or (memory.argument_size_in_bytes + memory.output_size_in_bytes
                                         + memory.temp_size_in_bytes - memory.alias_size_in_bytes)


def needed(message: str) -> float:
  """Bytes that a program would use, from the compiler's refusal. Raises ValueError where it refused for another
  reason."""
  found = (re.search(r'Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm', message)
           or re.search(r'temporaries \(([\d.]+)([KMGT])\) exceeds available HBM', message))
  if not found:
    raise ValueError(f'the compiler refuses the program: {message[:600]}')
  return float(found.group(1)) * 2 ** {'K': 10, 'M': 20, 'G': 30, 'T': 40}[found.group(2)]


COPIES = ('copy', 'transpose', 'slice', 'dynamic-slice', 'dynamic-update-slice', 'concatenate', 'pad', 'gather',
          'scatter')


def cycles(program: Program, clock: float) -> dict[str, float]:
  """Seconds by the compiler's estimate: {'matrix': fusions with a product, 'elementwise': all else, 'copies'}."""
  estimate, kinds = Counter(), {}
  for item in program.executed():
    caller, opcode = item.caller.name, item.instruction.opcode
    if opcode in ('convolution', 'dot'):
      kinds[caller] = 'matrix'
    elif item.caller is item.instruction and opcode in COPIES:
      kinds[caller] = 'copies'
    found = item.instruction.attribute(r'"estimated_cycles":"(\d+)"')
    if item.caller is item.instruction and found and int(found) < 2 ** 60:  # above, it stands for unknown
      estimate[caller] += int(found) * item.times
  seconds = {'matrix': 0.0, 'elementwise': 0.0, 'copies': 0.0}
  for name, count in estimate.items():
    seconds[kinds.get(name, 'elementwise')] += count / clock
  return seconds
