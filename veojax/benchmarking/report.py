"""`veojax benchmark`: what a config's steps take on the devices that are here, against matrix products of the same run.

MFU is the model's own FLOPs (compiling/model_flops.py has the formula; attention over whole rows, nothing computed
twice) in the median step, over what the best of several matrix products of the same precision does in the same run; and
over the chip's data sheet, where the chip is known.
"""
import dataclasses

import jax
import jax.numpy as jnp

from veojax import sharding
from veojax.benchmarking import candidates, kernels, peers, products, profile, timing
from veojax.benchmarking.timing import Measured
from veojax.compiling.chips import CHIPS
from veojax.config import nearest
from veojax.training.transformer import TransformerRun

WHATS = (*candidates.STAGES, 'attention')


@dataclasses.dataclass(frozen=True)
class Report:
  """products: FLOP/s of all devices together by size; datasheet: the same by the chip's data sheet, where known."""
  device: str
  num_devices: int
  dtype: str
  products: dict[str, float]
  datasheet: float | None
  measured: tuple[Measured, ...]
  costs: tuple[tuple[str, float], ...] = ()  # the dearest instructions of the first, seconds a step
  error: float | None = None  # of attention, against float32 dense attention

  @property
  def peak(self) -> float:
    return max(self.products.values())


def benchmark(config, what: str = 'train', *, steps: int = 5, peer: str | None = None, workdir=None,
              profiled: int = 0) -> Report:
  """Times one of WHATS of a config; beside it the same through a peer, where one is named. profiled: how many of the
  dearest instructions are named.

  workdir: of a run, whose data and latents then feed the training step. Raises ValueError for what there is not.
  """
  check(config, what, peer)
  dtype = dtype_of(config)
  if what == 'attention':  # by itself, on one device
    return _timed(kernels.candidates(config), sharding.make_mesh(devices=jax.devices()[:1]), dtype, steps, profiled,
                  error=kernels.error(config))
  with sharding.use(config.mesh) as mesh:
    timed = [candidates.STAGES[what](config, mesh, workdir)]
    if peer:
      timed.append(peers.diffusers(config, what))
    return _timed(timed, mesh, dtype, steps, profiled)


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


def _timed(timed, mesh, dtype, steps, profiled, error=None) -> Report:
  measured = timing.measure(timed, steps)
  costs = profile.costs(timed[0])[:profiled] if profiled else ()
  kind, devices = jax.devices()[0].device_kind, mesh.devices.size
  return Report(kind, devices, dtype, products.best(mesh, jnp.dtype(dtype)),
                CHIPS[kind].peak * devices if kind in CHIPS else None, tuple(measured), tuple(costs), error)
