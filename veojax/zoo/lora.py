"""Low-rank changes of published matrices (LoRA, Hu et al. 2021): W + weight (alpha / r) up down, from safetensors.

Files name a matrix by its published key, in one of these ways; alpha is r where a file has none:

  unet.KEY.processor.to_q_lora.{down,up}.weight    diffusers, as MotionLoRA is published
  unet.KEY.to_q.lora_{A,B}.weight                  peft; or .lora.{down,up}.weight
  ….temporal_transformer.….attention_blocks.0.…    the names of AnimateDiff's makers

A change is added to the parameters of a network once, in float32, and costs nothing after that.
"""
import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from veojax.models import weights
from veojax.zoo import weight_files, weight_table
from veojax.zoo.weight_table import Rule

_MAKERS = (('.attention_blocks.0', '.attn1'), ('.attention_blocks.1', '.attn2'), ('.temporal_transformer', ''))
_KEY = re.compile(r'(?:unet\.|base_model\.model\.)?(?P<module>.+?)'
                  r'(?:\.processor\.(?P<part>to_(?:q|k|v|out))_lora\.(?P<a>down|up)\.weight'
                  r'|\.lora_(?P<b>[AB])(?:\.default)?\.weight|\.lora\.(?P<c>down|up)\.weight|\.(?P<alpha>alpha))')
_DOWN = {'down': 'down', 'A': 'down', 'up': 'up', 'B': 'up'}


@dataclasses.dataclass(frozen=True)
class Change:
  """Of one matrix [out, in], in PyTorch's layout: up [out, r], down [r, in]."""
  up: np.ndarray
  down: np.ndarray
  alpha: float

  def matrix(self) -> np.ndarray:
    rank = self.down.shape[0]
    up, down = (z.astype(np.float32).reshape(len(z), -1) for z in (self.up, self.down))
    return np.float32(self.alpha / rank) * (up @ down)


def read(path) -> dict[str, Change]:
  """The changes in a file, or in a folder that holds one, by the keys of the weights that they change. ValueError
  where there are none."""
  halves = {}
  with weight_files.opened(pathlib.Path(path)) as files:
    for key in files.keys():
      match = _KEY.fullmatch(key)
      if match is None:
        raise ValueError(f'{path} holds {key}, which is no low-rank change; give the safetensors of a LoRA of the '
                         'U-Net')
      module = match['module']
      for theirs, ours in _MAKERS:
        module = module.replace(theirs, ours)
      if match['part']:
        module += f'.{match["part"]}'
      module += '.0' if module.endswith('.to_out') else ''
      kind = 'alpha' if match['alpha'] else _DOWN[match['a'] or match['b'] or match['c']]
      halves.setdefault(f'{module}.weight', {})[kind] = files.read(key)
  for key, found in halves.items():
    if not {'up', 'down'} <= found.keys() or found['up'].shape[1] != found['down'].shape[0]:
      raise ValueError(f'{path} holds half a change of {key}; copy it again')
  if not halves:
    raise ValueError(f'{path} holds no low-rank change; give the safetensors of a LoRA of the U-Net')
  return {key: Change(found['up'], found['down'], float(found.get('alpha', found['down'].shape[0])))
          for key, found in halves.items()}


def merged(networks: Mapping[str, tuple[nnx.Module, Sequence[Rule]]], changes: Sequence[tuple[str, float]]
           ) -> dict[str, nnx.Module]:
  """The networks {name: (module, the table of its published keys)} with the changes [(path, weight)] added.

  ValueError for a change of a matrix that none of them has.
  """
  added = {name: {} for name in networks}
  for path, weight in changes:
    for key, change in read(path).items():
      name, place, value = _place(path, key, change, networks)
      whole = added[name].setdefault(place[0], {})
      whole[place[1]] = whole.get(place[1], 0) + np.float32(weight) * value
  out = {}
  for name, (module, _) in networks.items():
    leaves = weights.names(module)
    for path, layers in added[name].items():
      leaves[path] = _added(leaves[path], layers)
    out[name] = weights.replace(module, leaves)
  return out


def _place(path, key: str, change: Change, networks):
  """(network, place in it, value in that place's shape)."""
  for name, (module, table) in networks.items():
    shapes = weights.names(module)
    for rule in table:
      places = rule.places(key)
      if places and places[0][0] in shapes:
        entry, matrix = weight_table.Entry(key, rule, places), change.matrix()
        shape = entry.source_shape(shapes)
        if int(np.prod(shape)) != matrix.size or shape[0] != matrix.shape[0]:
          raise ValueError(f'{path} changes {key} as {list(matrix.shape)}, which is {list(shape)} here; give the LoRA '
                           'of this model')
        (place, value), = entry.read(matrix.reshape(shape), shapes).items()
        return name, place, value
  raise ValueError(f'{path} changes {key}, which this model has not; give the LoRA of this model')


def _added(leaf, layers: dict):
  """The leaf with values added, at places of its leading axis where layers are stacked; laid out as it was."""
  value = np.zeros(leaf.shape, np.float32)
  for layer, change in layers.items():
    value[... if layer is None else layer] += change
  layout = getattr(leaf, 'sharding', None)
  value = jax.device_put(value, layout) if layout is not None else jnp.asarray(value)
  return (leaf.astype(jnp.float32) + value).astype(leaf.dtype)
