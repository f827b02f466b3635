"""What to change in a config whose program does not fit: each change with what it saves, the cheapest first.

What is kept for the backward pass is counted for a transformer's config; elsewhere it is what the compiler needs beside
the arguments and, in training, one gradient.
"""
import dataclasses
import math
from typing import Any

import jax

from veojax.training import run
from veojax.training.audio_vae import AudioVAERun
from veojax.training.make_a_video import MakeAVideoRun
from veojax.training.mochi import MochiRun
from veojax.training.transformer import TransformerRun
from veojax.training.video_vae import VideoVAERun

GIB = 2 ** 30
AVERAGE = 4  # bytes of a parameter in one average of the weights
IN_TOKENS = TransformerRun, MochiRun  # whose rows `context` splits; U-Nets split only their attention's tokens
REMADE = {'none': 0.75, 'full': 0.0}  # at least this share of what a U-Net or Mochi keeps, made again; else half of it


@dataclasses.dataclass(frozen=True)
class Remedy:
  """Keys of the config with their new values, and about how many bytes of a chip that saves. file: the config that they
  are keys of, where it is another one that the config names."""
  changes: dict[str, Any]
  saves: float
  why: str
  file: str = ''

  @property
  def options(self) -> list[str]:
    """As they are given on the command line."""
    return [f'--config.{key}={value}' for key, value in self.changes.items()]

  def __str__(self) -> str:
    of = f' of {self.file}' if self.file else ''
    return f'{" ".join(self.options)}{of}: about {self.saves / GIB:.3g} GiB less; {self.why}'


def remedies(config, stage: str, arguments, mesh: dict[str, int], peak: float, hbm: float) -> tuple[Remedy, ...]:
  """First what together brings `peak` bytes down to `hbm` at the least loss of speed, where that is enough; then each
  change alone.

  arguments: the abstract ones that the stage was compiled for. Empty where only more chips help.
  """
  temporaries, excess = max(0.0, peak - sum(map(num_bytes, jax.tree.leaves(arguments)))), peak - hbm
  enough_first = lambda found: tuple(sorted(found, key=lambda remedy: remedy.saves < excess))
  if stage in ('encode', 'decode'):
    return enough_first(_codec(config, temporaries))
  singles = [remedy for remedy in _all(config, stage, arguments, mesh, temporaries) if remedy.saves > 0]
  chosen, saved = [], 0.0
  for remedy in singles:
    if saved < excess and not any(set(remedy.changes) & set(other.changes) for other in chosen):
      chosen.append(remedy)
      saved += remedy.saves
  if len(chosen) < 2 or saved < excess:
    return enough_first(singles)
  together = Remedy({k: v for r in chosen for k, v in r.changes.items()}, saved, '; '.join(r.why for r in chosen))
  return (together, *singles)


def more_chips(config, stage: str, mesh: dict[str, int]) -> str:
  """What more chips would do; '' where each of them would do the same again."""
  if stage in ('encode', 'decode'):
    return ''
  if isinstance(config, IN_TOKENS):
    return 'more chips, with mesh.fsdp or mesh.context raised'
  if not isinstance(config, (VideoVAERun, AudioVAERun)):
    return 'more chips, with mesh.fsdp or mesh.tensor raised'
  return 'more chips, with mesh.data raised' if config.loop.batch_size > mesh['data'] * mesh['fsdp'] else ''


def _codec(config, temporaries):
  """Smaller pieces of what is encoded or decoded at once."""
  if isinstance(config, TransformerRun):
    if config.video_codec.endswith('.py'):
      for remedy in _codec(run.build(run.read_config(config.video_codec)), temporaries):
        yield dataclasses.replace(remedy, file=config.video_codec)
  elif isinstance(config, VideoVAERun):
    if config.tile // 2 and config.tile // 2 % config.model.spatial_compression == 0:
      yield Remedy({'tile': config.tile // 2, 'overlap': config.overlap // 2}, temporaries * 3 / 4,
                   'a quarter of the pixels')
  elif hasattr(config, 'settings'):
    settings = config.settings
    chunk = settings.chunk or settings.num_frames
    fewer, kept = {'settings.chunk': chunk // 2}, chunk // 2 / chunk
    if chunk > 1:
      yield Remedy(fewer, temporaries * (1 - kept), 'fewer frames at once')
    if isinstance(config, MochiRun):
      tile = (settings.tile or max(settings.height, settings.width)) // 2
      now, then = (math.prod(min(side or size, size) for size in (settings.height, settings.width))
                   for side in (settings.tile, tile))
      yield Remedy({'settings.tile': tile}, temporaries * (1 - then / now), 'parts of a frame')
      if chunk > 1:
        yield Remedy(fewer | {'settings.tile': tile}, temporaries * (1 - kept * then / now), 'less of a clip at once')


def _all(config, stage, arguments, mesh, temporaries):
  fsdp, rows = mesh['fsdp'], config.loop.batch_size / (mesh['data'] * mesh['fsdp'])
  split, split_heads = (sum(num_bytes(x) for x in jax.tree.leaves(arguments[0]) if axis in axes(x))
                        for axis in ('fsdp', 'tensor'))
  for axis in ('data', 'context'):
    if mesh[axis] % 2 == 0 and (axis == 'data' or stage == 'train' and rows % 2 == 0):
      yield Remedy({f'mesh.{axis}': mesh[axis] // 2, 'mesh.fsdp': 2 * fsdp}, split / 2,
                   'what is kept of every parameter lies over twice as many chips')
      break
  if stage == 'generate':
    for axis in ('context', 'data'):
      if mesh[axis] % 2 == 0 and shares_heads(config, 2 * mesh['tensor']):
        yield Remedy({f'mesh.{axis}': mesh[axis] // 2, 'mesh.tensor': 2 * mesh['tensor']}, split_heads / 2,
                     'every layer lies over twice as many chips')
        break
    if mesh['data'] % 2 == 0 and isinstance(config, IN_TOKENS):
      yield Remedy({'mesh.data': mesh['data'] // 2, 'mesh.context': 2 * mesh['context']}, split,
                   'half of the rows at once, each over twice as many chips')
    return
  parameters = sum(map(num_bytes, jax.tree.leaves(arguments[0].model)))
  kept = activations(config, mesh) if isinstance(config, TransformerRun) else max(0.0, temporaries - parameters)
  halved = {'loop.batch_size': config.loop.batch_size // 2, 'loop.accumulate': 2 * config.loop.accumulate}
  if rows % 2 == 0:
    yield Remedy(halved, kept / 2, 'half of the rows at once')
  elif config.loop.batch_size % 2 == 0 and mesh['data'] % 2 == 0 and isinstance(config, IN_TOKENS):
    yield Remedy(halved | {'mesh.data': mesh['data'] // 2, 'mesh.context': 2 * mesh['context']}, kept / 2,
                 'half of the rows at once, each over twice as many chips')
  yield from _remat(config, kept)
  if len(config.loop.ema_decays) > 1:
    yield Remedy({'loop.ema_decays': f'({config.loop.ema_decays[0]},)'},
                 parameters / 4 * AVERAGE * (len(config.loop.ema_decays) - 1), 'one average of the weights')


def _remat(config, kept):
  """Less kept for the backward pass."""
  if isinstance(config, TransformerRun):
    now = widths(config.dit)[config.dit.remat]
    for remat, width in widths(config.dit).items():
      if width < now:
        yield Remedy({'dit.remat': remat}, kept * (1 - width / now), f'{REMATS[remat]}, the rest is made again')
    return
  key, network = trained(config)
  if key:
    yield Remedy({f'{key}.remat': 'full'}, kept * REMADE.get(network.remat, 0.5),
                 f'{REMATS["full"]}, the rest is made again')


def trained(config) -> tuple[str, Any]:
  """(key, config) of the network of a config of a published model's, or of Make-A-Video's; ('', None) of others."""
  if isinstance(config, MakeAVideoRun):
    return ('super_resolution.unet' if config.part == 'super_resolution' else 'unet'), config.network.unet
  return next(((key, getattr(config, key)) for key in ('transformer', 'unet') if hasattr(config, key)), ('', None))


def shares_heads(config, parts: int) -> bool:
  """Whether so many parts can have equal shares of the attention's heads; U-Nets keep whole what does not divide."""
  if isinstance(config, TransformerRun):
    return config.dit.num_heads % parts == 0
  return not isinstance(config, MochiRun) or config.transformer.num_attention_heads % parts == 0


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
