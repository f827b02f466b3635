"""The mesh, the names of its axes, and every layout of the project.

Four axes: `data` and `fsdp` split the rows of a batch (parameters are split over `fsdp` only), `context` splits the
tokens of a row, `tensor` splits heads and MLP width. A machine with one device has a mesh of ones, and runs the same
code. Axes are Explicit: an array's type says how it lies, and an ambiguous contraction is an error, not a surprise.
"""
import contextlib
import dataclasses
import math

import jax
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
BLF = P(ROWS, 'context', 'tensor')
BSF = P(ROWS, None, 'tensor')

# Parameters, named by their dims.
D_NK = P('fsdp', 'tensor', None)
NK_D = P('tensor', None, 'fsdp')
D_F = P('fsdp', 'tensor')
F_D = P('tensor', 'fsdp')
C_D = P(None, 'fsdp')
D_C = P('fsdp', None)
REPLICATED = P()


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; one of them may be -1: whatever is left."""
  data: int = -1
  fsdp: int = 1
  context: int = 1
  tensor: int = 1


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
  # An axis may be a part of one dim of a TPU's torus: fsdp=8, context=2 of 4x4.
  placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return jax.sharding.Mesh(placed, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def named(mesh, spec: P) -> NamedSharding:
  return NamedSharding(mesh, spec)


def in_force(spec: P) -> P | None:
  """`spec` where a mesh is in force, else None: what `out_sharding` arguments want."""
  return None if jax.sharding.get_abstract_mesh().empty else spec


def size(axis: str) -> int:
  """Devices along an axis of the mesh in force; 1 where there is none."""
  return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def default_mesh():
  """A context with a mesh in force: the one that is, or else one of all devices along `data`."""
  return jax.set_mesh(make_mesh()) if jax.sharding.get_abstract_mesh().empty else contextlib.nullcontext()
