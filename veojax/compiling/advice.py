"""What to change in a config whose program does not fit: each change with what it saves, the cheapest first."""
import dataclasses
import math
from typing import Any

import jax

from veojax.training.transformer import TransformerRun

GIB = 2 ** 30
AVERAGE = 4  # bytes of a parameter in one average of the weights


@dataclasses.dataclass(frozen=True)
class Remedy:
  """Keys of the config with their new values, and about how many bytes of a chip that saves."""
  changes: dict[str, Any]
  saves: float
  why: str

  @property
  def options(self) -> list[str]:
    """As they are given on the command line."""
    return [f'--config.{key}={value}' for key, value in self.changes.items()]

  def __str__(self) -> str:
    return f'{" ".join(self.options)}: about {self.saves / GIB:.3g} GiB less; {self.why}'


def remedies(config, stage: str, arguments, mesh: dict[str, int], excess: float) -> tuple[Remedy, ...]:
  """First what together saves `excess` bytes at the least loss of speed, where that is enough; then each change alone.

  arguments: the abstract ones that the stage was compiled for. Empty where only more chips help.
  """
  if stage in ('encode', 'decode'):
    if not hasattr(config, 'overlap'):  # a published pipeline's or a transformer's config
      return ()
    tile = getattr(config, 'tile', 0) // 2
    return (Remedy({'tile': tile, 'overlap': config.overlap // 2}, excess, 'a quarter of the pixels'),) if tile else ()
  singles = [remedy for remedy in _all(config, stage, arguments, mesh) if remedy.saves > 0]
  chosen, saved = [], 0.0
  for remedy in singles:
    if saved < excess and not any(set(remedy.changes) & set(other.changes) for other in chosen):
      chosen.append(remedy)
      saved += remedy.saves
  if len(chosen) < 2 or saved < excess:
    return tuple(sorted(singles, key=lambda remedy: remedy.saves < excess))
  together = Remedy({k: v for r in chosen for k, v in r.changes.items()}, saved, '; '.join(r.why for r in chosen))
  return (together, *singles)


def _all(config, stage, arguments, mesh):
  fsdp, rows = mesh['fsdp'], config.loop.batch_size / (mesh['data'] * mesh['fsdp'])
  split, split_heads = (sum(num_bytes(x) for x in jax.tree.leaves(arguments[0]) if axis in axes(x))
                        for axis in ('fsdp', 'tensor'))
  for axis in ('data', 'context'):
    if mesh[axis] % 2 == 0 and (axis == 'data' or stage == 'train' and rows % 2 == 0):
      yield Remedy({f'mesh.{axis}': mesh[axis] // 2, 'mesh.fsdp': 2 * fsdp}, split / 2,
                   'what is kept of every parameter lies over twice as many chips')
      break
  if stage == 'generate':
    if mesh['context'] % 2 == 0 and config.dit.num_heads % (2 * mesh['tensor']) == 0:
      yield Remedy({'mesh.context': mesh['context'] // 2, 'mesh.tensor': 2 * mesh['tensor']}, split_heads / 2,
                   'every layer lies over twice as many chips')
    if mesh['data'] % 2 == 0:
      yield Remedy({'mesh.data': mesh['data'] // 2, 'mesh.context': 2 * mesh['context']}, split,
                   'half of the rows at once, each over twice as many chips')
    return
  kept = activations(config, mesh) if isinstance(config, TransformerRun) else float(GIB)
  halved = {'loop.batch_size': config.loop.batch_size // 2, 'loop.accumulate': 2 * config.loop.accumulate}
  if rows % 2 == 0:
    yield Remedy(halved, kept / 2, 'half of the rows at once')
  elif config.loop.batch_size % 2 == 0 and mesh['data'] % 2 == 0:
    yield Remedy(halved | {'mesh.data': mesh['data'] // 2, 'mesh.context': 2 * mesh['context']}, kept / 2,
                 'half of the rows at once, each over twice as many chips')
  if isinstance(config, TransformerRun):
    now = widths(config.dit)[config.dit.remat]
    for remat, width in widths(config.dit).items():
      if width < now:
        yield Remedy({'dit.remat': remat}, kept * (1 - width / now), f'{REMATS[remat]}, the rest is made again')
  if len(config.loop.ema_decays) > 1:
    parameters = sum(num_bytes(x) for x in jax.tree.leaves(arguments[0].model)) / 4
    yield Remedy({'loop.ema_decays': f'({config.loop.ema_decays[0]},)'},
                 parameters * AVERAGE * (len(config.loop.ema_decays) - 1), 'one average of the weights')


def axes(x) -> set[str]:
  """Axes of the mesh that an abstract array is split over."""
  return {axis for part in x.sharding.spec if part for axis in ((part,) if isinstance(part, str) else part)}


def num_bytes(x) -> int:
  """Of an abstract array on one device."""
  return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


REMATS = {'dots': 'products with parameters are kept', 'attention': "attention's outputs are kept",
          'offload': "layers' inputs and attention's outputs wait in the host's memory",
          'full': "only each layer's input is kept"}


def widths(dit) -> dict[str, float]:
  """For each way to rematerialise, about how many arrays of the model's width a token and layer keeps."""
  ratio = dit.mlp_width / dit.width
  return {'none': 16 + 5 * ratio, 'dots': 5 + 2 * ratio, 'attention': 2.0, 'full': 1.0,
          'offload': 0.0}


def activations(config: TransformerRun, mesh: dict[str, int]) -> float:
  """Bytes on a chip of what is kept for the backward pass."""
  rows = max(1, config.loop.batch_size // (mesh['data'] * mesh['fsdp']))
  size = 2 if config.dit.dtype == 'bfloat16' else 4
  tokens = rows * config.pack.row_tokens / mesh['context']
  return widths(config.dit)[config.dit.remat] * tokens * config.dit.width * config.dit.depth * size
