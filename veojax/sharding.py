"""The mesh, the names of its axes, and every layout of the project: a spec that is not here is one of these with a dim
more or fewer, or is seen by one function alone.

Four axes: `data` and `fsdp` split the rows of a batch, `context` splits the tokens of a row, `tensor` splits heads and
MLP width; parameters are split over `fsdp`, `context` and `tensor`. A machine with one device has a mesh of ones, and
runs the same code. Axes are Explicit: an array's type says how it lies, and an ambiguous contraction is an error, not a
surprise.

Of several slices, which only a data centre's network joins, `data` runs over the slices first and then within them: all
that slices send each other is the sum of their gradients.

Every transformer (its text encoder and audio head within it), T5, CLIP and the U-Nets have layouts for their
parameters, which training, generation and evaluation use alike. The VAEs have none: their parameters and optimizer
state are whole on every device. Their training splits a batch over its rows alone (`B`), so that `context` and `tensor`
compute the same again; their work on a clip lies on a mesh of its own (`CLIP`). Published autoencoders, which are not
trained, are whole on every device too.
"""
import contextlib
import dataclasses
import math
from typing import Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

AXES = ('data', 'fsdp', 'context', 'tensor')
ROWS = ('data', 'fsdp')

# Activations.
B = P(ROWS)
BL = P(ROWS, 'context')
BLD = P(ROWS, 'context', None)
BLNK = P(ROWS, 'context', 'tensor', None)
BSNK = P(ROWS, None, 'tensor', None)
BSMK = P(ROWS, None, ('tensor', 'context'), None)  # whole rows of the heads that `context` shares out
BLF = P(ROWS, 'context', 'tensor')
BSF = P(ROWS, None, 'tensor')
BTLNK = P(ROWS, None, 'context', 'tensor', None)
LNK = P('context', 'tensor', None)

# A codec's work on one clip, on a mesh of its own (`clip_mesh`): tiles, frames, rows of each frame; [B, T, H, W, C].
CLIP_AXES = ('tile', 'time', 'height')
CLIP = P(*CLIP_AXES)
TILE = P('tile')

# Parameters, named by their dims. What splits the tokens of a row splits parameters too, and with them gradients and
# the optimizer's state; a device gathers a layer's when it comes to it (ZeRO's stage 3; Rajbhandari et al. 2020).
PARTS = ('fsdp', 'context')
D_NK = P(PARTS, 'tensor', None)
NK_D = P('tensor', None, PARTS)
D_F = P(PARTS, 'tensor')
F_D = P('tensor', PARTS)
C_D = P(None, PARTS)
D_C = P(PARTS, None)
D_6D = P(None, None, PARTS)
D_NE = P(PARTS, None, 'tensor')          # N vectors that modulate
HWD_F = P(None, None, 'fsdp', 'tensor')  # a kernel over two dims
A_NK = P(None, 'tensor', None)           # of each axis of positions
REPLICATED = P()


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; one of them may be -1: whatever is left.

  slices: of devices, joined by a data centre's network; -1: as many as the devices say that they are.
  attention: how a token sees the keys of a row that `context` splits; models/attention.py has the ways.
  """
  data: int = -1
  fsdp: int = 1
  context: int = 1
  tensor: int = 1
  slices: int = -1
  attention: Literal['auto', 'all_to_all', 'ring', 'gather'] = 'auto'


def make_mesh(config: MeshConfig = MeshConfig(), devices=None) -> jax.sharding.Mesh:
  devices = list(devices if devices is not None else jax.devices())
  sizes = [getattr(config, axis) for axis in AXES]
  if sizes.count(-1) == 1:
    rest = math.prod(s for s in sizes if s != -1)
    sizes[sizes.index(-1)] = max(1, len(devices) // rest)
  if math.prod(sizes) != len(devices) or min(sizes) < 1:
    asked = ', '.join(f'{a}={getattr(config, a)}' for a in AXES)
    raise ValueError(f'mesh {asked} does not cover {len(devices)} devices; the sizes must multiply to {len(devices)} '
                     '(one of them may be -1)')
  parts = slices(devices, config.slices)
  if sizes[0] % len(parts):
    raise ValueError(f'mesh data={sizes[0]} on {len(parts)} slices; data runs over the slices: give a multiple of '
                     f'{len(parts)}')
  within = [sizes[0] // len(parts), *sizes[1:]]
  # An axis may be a part of one dim of a TPU's torus: fsdp=8, context=2 of 4x4.
  placed = [mesh_utils.create_device_mesh(within, part, allow_split_physical_axes=True) for part in parts]
  return jax.sharding.Mesh(np.concatenate(placed), AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def slices(devices: list, num: int = -1) -> list[list]:
  """The devices of each slice. Devices that say nothing of slices, as CPUs and GPUs, are one slice, or `num` of equal
  size in their order. Raises ValueError where `num` is not what the devices say, or does not divide them."""
  told = {}
  for device in devices:
    told.setdefault(getattr(device, 'slice_index', 0), []).append(device)
  if num in (-1, len(told)):
    return [told[index] for index in sorted(told)]
  if len(told) > 1 or num < 1 or len(devices) % num:
    raise ValueError(f'mesh slices={num}, but {len(devices)} devices are of {len(told)} slices; '
                     'give that number, or -1')
  return np.reshape(np.array(devices, object), (num, -1)).tolist()


# Parts of what compiled programs are kept by.
_attention, _num_slices = jax.make_user_context('auto'), jax.make_user_context(1)


@contextlib.contextmanager
def use(config: MeshConfig, devices=None):
  """A context with the config's mesh, its slices and its way of attention in force; gives the mesh."""
  mesh = make_mesh(config, devices)
  parts = slices(list(mesh.devices.flat), config.slices)
  with jax.set_mesh(mesh), _attention(config.attention), _num_slices(len(parts)):
    yield mesh


def attention_way() -> str:
  """`MeshConfig.attention` of the mesh in force."""
  return _attention.value


def num_slices() -> int:
  """Slices of the mesh in force."""
  return _num_slices.value


MIN_ROWS = 4  # of latents, on a device: with fewer it would see little beside its neighbours' edges


def clip_mesh(num_tiles: int, num_chunks: int, num_rows: int, devices=None) -> jax.sharding.Mesh:
  """The devices, or this process's of the mesh in force, for a codec's work on a clip: the tiles side by side, then the
  chunks of its frames, then the rows of latents within a tile, each over as many devices as have work there; where no
  mesh is in force one device."""
  if devices is None:
    mesh = jax.sharding.get_mesh()
    devices = jax.local_devices()[:1] if mesh.empty else mesh.local_devices
  most = range(1, len(devices) + 1)
  sizes = [(a, b, c) for a in most for b in most for c in most
           if a * b * c <= len(devices) and num_rows % c == 0 and (c == 1 or num_rows // c >= MIN_ROWS)]
  work = lambda a, b, c: math.ceil(num_tiles / a) * math.ceil(num_chunks / b) / c
  best = min(sizes, key=lambda size: (work(*size), math.prod(size), size[2], size[1]))
  chosen = np.array(devices[:math.prod(best)], object).reshape(best)
  return jax.sharding.Mesh(chosen, CLIP_AXES, axis_types=(AxisType.Explicit,) * len(CLIP_AXES))


def splits(axis: str) -> bool:
  """Whether, within a `shard_map`, the axis splits what is computed."""
  mesh = jax.sharding.get_abstract_mesh()
  return axis in mesh.manual_axes and mesh.shape[axis] > 1


def named(mesh, spec: P) -> NamedSharding:
  return NamedSharding(mesh, spec)


def in_force(spec: P) -> P | None:
  """`spec` where a mesh is in force, else None: what `out_sharding` arguments want."""
  return None if jax.sharding.get_abstract_mesh().empty else spec


def size(axis: str) -> int:
  """Devices along an axis of the mesh in force; 1 where there is none."""
  return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def fill_rows(x: np.ndarray) -> np.ndarray:
  """Rows of a batch, the last one repeated up to a number that divides over the mesh in force."""
  return np.concatenate([x, np.repeat(x[-1:], -len(x) % num_row_parts(), 0)])


def num_row_parts() -> int:
  """Parts of the mesh in force that take rows of their own."""
  return math.prod(map(size, ROWS))


def rows(num_dims: int) -> P:
  """Whole rows of any number of dims."""
  return P(ROWS, *(None,) * (num_dims - 1))


def stacked(spec: P) -> P:
  """The layout of several, one after another."""
  return P(None, *spec)


def over_data(spec: P) -> P:
  """The layout with its leading dim split over `data`."""
  return P('data', *spec[1:])


def dividing(spec: P, *sizes: int | None) -> P:
  """The layout without the axes that do not divide the sizes of their dims, of several the last first; None, or no
  size, keeps them all."""
  def fitting(axes, number):
    several = axes if isinstance(axes, tuple) else (axes,)
    while several and number and number % math.prod(map(size, several)):
      several = several[:-1]
    return several if len(several) > 1 else several[0] if several else None
  sizes += (None,) * (len(spec) - len(sizes))
  return P(*(axes and fitting(axes, number) for axes, number in zip(spec, sizes)))


def whole_rows(spec: P) -> P:
  """The layout with every row on all parts that take rows."""
  return P(None, *spec[1:])


def whole_parts(spec: P) -> P:
  """The layout of a parameter that is gathered over what splits rows and tokens."""
  return P(*(None if axes in (PARTS, *PARTS) else axes for axes in spec))


def default_mesh(rows: int | None = None):
  """A context with a mesh in force: the one that is, or else one of this process's devices: along `data` as many as
  divide `rows`, along `context` the rest; all along `data` where nothing is said of rows."""
  if not jax.sharding.get_abstract_mesh().empty:
    return contextlib.nullcontext()
  devices = jax.local_devices()
  data = -1 if rows is None else math.gcd(rows, len(devices))
  return use(MeshConfig(data=data, context=1 if rows is None else -1), devices)


def no_mesh():
  """A context in which none is in force: on one device, for what is not laid out over the mesh."""
  return jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))
