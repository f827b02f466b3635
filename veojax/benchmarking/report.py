"""`veojax benchmark`: what a config's steps take on the devices that are here, against matrix products of the same run.

MFU is the model's own FLOPs (compiling/model_flops.py has the formula; attention over whole rows, nothing computed
twice) in the median step, over what the best of several matrix products of the same precision does in the same run; and
over the chip's data sheet, where the chip is known.
"""
import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from veojax import sharding
from veojax.benchmarking import candidates, kernels, peers, products, profile, timing
from veojax.benchmarking.kernels import Error
from veojax.benchmarking.timing import Candidate, Measured
from veojax.compiling.chips import CHIPS
from veojax.config import nearest
from veojax.training.transformer import TransformerRun

WHATS = (*candidates.STAGES, 'attention')


@dataclasses.dataclass(frozen=True)
class Report:
  """products: FLOP/s of all devices together by size; datasheet: the same by the chip's data sheet, where known;
  failures: what did not run, by part; done: that nothing is left to measure."""
  device: str
  num_devices: int
  dtype: str
  datasheet: float | None
  products: dict[str, float] = dataclasses.field(default_factory=dict)
  measured: tuple[Measured, ...] = ()
  costs: tuple[tuple[str, float], ...] = ()  # the dearest instructions of the first, seconds a step
  errors: tuple[Error, ...] = ()             # of attention, against float32 dense attention
  failures: dict[str, str] = dataclasses.field(default_factory=dict)
  done: bool = False

  @property
  def peak(self) -> float | None:
    return max(self.products.values(), default=None)

  @property
  def fine(self) -> bool:
    """Whether all ran, and every error is within its bound."""
    return not self.failures and all(error.fine for error in self.errors)


def benchmark(config, what: str = 'train', **options) -> Report:
  """The last of `parts`."""
  *_, found = parts(config, what, **options)
  return found


def parts(config, what: str = 'train', *, steps: int = 5, peer: str | None = None, workdir=None, profiled: int = 0,
          with_products: bool = True) -> Iterator[Report]:
  """Times one of WHATS of a config; beside it the same through a peer, where one is named. Gives the report after each
  part of it, with what is measured so far: errors, products, steps, the profile. A part that fails is told in it.

  workdir: of a run, whose data and latents then feed the training step. profiled: how many of the dearest instructions
  are named. Raises ValueError for what there is not.
  """
  check(config, what, peer)
  alone = what == 'attention'  # by itself, on one device
  one = contextlib.nullcontext(sharding.make_mesh(devices=jax.devices()[:1]))
  with one if alone else sharding.use(config.mesh) as mesh:
    kind, devices, failures, dtype = jax.devices()[0].device_kind, mesh.devices.size, {}, dtype_of(config)
    found = Report(kind, devices, dtype, CHIPS[kind].peak * devices if kind in CHIPS else None)
    grown = lambda **more: dataclasses.replace(found, failures=dict(failures), **more)
    if alone:
      yield (found := grown(errors=kernels.errors(config, failures)))
    if with_products:
      rates = timing.attempt(failures, 'products', products.best, mesh, jnp.dtype(dtype))
      yield (found := grown(products=rates or {}))
    timed = _alone(config, failures) if alone else _beside(config, what, mesh, workdir, peer, failures)
    yield (found := grown(measured=tuple(timing.measure(timed, steps, failures))))
    if profiled and timed and timed[0].name not in failures:
      costs = timing.attempt(failures, 'profile', profile.costs, timed[0])
      found = grown(costs=tuple(costs or ())[:profiled])
    yield grown(done=True)


def _alone(config, failures) -> list[Candidate]:
  made = (timing.attempt(failures, name, make) for name, make in kernels.candidates(config).items())
  return [candidate for candidate in made if candidate is not None]


def _beside(config, what, mesh, workdir, peer, failures) -> list[Candidate]:
  """A stage of the config and what belongs beside it. Raises ValueError for a stage that the config has not."""
  made = [timing.attempt(failures, what, candidates.STAGES[what], config, mesh, workdir, raised=ValueError)]
  if what == 'decode' and isinstance(config, TransformerRun):
    made.append(timing.attempt(failures, 'decode, whole clip', candidates.whole_clip, config))
  if peer:
    made.append(timing.attempt(failures, peer, peers.diffusers, config, what))
  return [candidate for candidate in made if candidate is not None]


def dtype_of(config) -> str:
  """Of the computation: a published model's config has it itself, others their network's."""
  return next(part for part in (config, getattr(config, 'dit', None), getattr(config, 'model', None))
              if hasattr(part, 'dtype')).dtype


def check(config, what: str, peer: str | None):
  """Raises ValueError where there is nothing of this name to time, or no such peer for it."""
  if what not in WHATS:
    raise ValueError(f'nothing {what!r} to time; {nearest(what, WHATS)}')
  if what in ('forward', 'attention') and not isinstance(config, TransformerRun):
    raise ValueError(f'{what} of a config of {config.stage!r}, which is timed as a whole; give --what train or generate, '
                     'or the config of a transformer')
  if peer:
    peers.check(peer, what, config)
