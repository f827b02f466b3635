"""One network of a published pipeline as an Orbax checkpoint: a flat dict of arrays by dotted path, in the file's
dtypes.

It is written and read some parameters at a time, so that memory need not hold the network: at most BATCH_BYTES and one
parameter (all layers of a stack).
"""
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from orbax.checkpoint.experimental import v1 as ocp

from veojax import sharding
from veojax.models import weights

BATCH_BYTES = 2 ** 29
CHUNK_BYTES = 2 ** 26  # of an array on disk: a device that wants a slice reads few more bytes than that


def write(folder: pathlib.Path, leaves: Iterable[tuple[str, jax.Array]]):
  """Writes parameters as they come; nothing is at `folder` before all are written."""
  context = ocp.Context()
  context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
  with context:
    for batch in _batches((path, leaf, leaf.nbytes) for path, leaf in leaves):
      ocp.partial.save(folder.resolve(), batch)
    ocp.partial.finalize(folder.resolve())


def _batches(items: Iterable[tuple[str, Any, int]]) -> Iterator[dict[str, Any]]:
  """Named things with their bytes, in dicts that end as soon as they pass BATCH_BYTES."""
  batch, size = {}, 0
  for name, item, num_bytes in items:
    batch[name], size = item, size + num_bytes
    if size > BATCH_BYTES:
      yield batch
      batch, size = {}, 0
  if batch:
    yield batch


def stored(folder: pathlib.Path) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes by path. ValueError where there is no checkpoint or it cannot be read."""
  try:
    found = ocp.metadata(folder.resolve()).metadata
    return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in found.items()}
  except Exception as error:  # Orbax raises many kinds for what is not a checkpoint
    raise ValueError(f'{folder} holds no checkpoint that can be read ({_line(error)}); convert the model again'
                     ) from None


def read(folder: pathlib.Path, model, on_mesh: bool = True):
  """`model`, a tree of shapes, with the parameters in `folder`: in their dtypes, laid out as it says over the mesh in
  force, or bound to no device.

  ValueError where they are those of another model, and where the checkpoint is damaged.
  """
  shapes, found = weights.names(model), stored(folder)
  weights.replace(model, found)  # names and shapes must agree before anything is read
  wanted = {path: jax.ShapeDtypeStruct(leaf.shape, found[path].dtype, sharding=_layout(leaf) if on_mesh else _alone())
            for path, leaf in shapes.items()}
  loaded = _load(folder, wanted)
  # What is bound to no device goes where it is called.
  return weights.replace(model, loaded if on_mesh else {path: jnp.asarray(np.asarray(x)) for path, x in loaded.items()})


def each(folder: pathlib.Path, names: Iterable[str]) -> Iterator[tuple[str, jax.Array]]:
  """The parameters of these names, one after another."""
  found = stored(folder)
  left_out = {path: ocp.PLACEHOLDER for path in found}
  for batch in _batches((name, found[name], found[name].size * found[name].dtype.itemsize) for name in names):
    wanted = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_alone())
              for name, leaf in batch.items()}
    loaded = _load(folder, {**left_out, **wanted})
    yield from ((name, loaded.pop(name)) for name in batch)


def _alone():
  return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _layout(leaf):
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    return _alone()
  spec = leaf.sharding.spec if isinstance(getattr(leaf, 'sharding', None), NamedSharding) else P()
  return sharding.named(mesh, spec)


def _load(folder: pathlib.Path, wanted: dict):
  try:
    return ocp.load(folder.resolve(), wanted)
  except Exception as error:
    raise ValueError(f'the checkpoint in {folder} is damaged ({_line(error)}); convert the model again') from None


def _line(error: Exception) -> str:
  return str(error).strip().split('\n', 1)[0] or type(error).__name__
