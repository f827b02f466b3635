"""Weights as files: a module's parameters in safetensors, its configuration as JSON in the same file.

Names are the attributes' path, joined by dots: `blocks.attention.w_q`. Files may be in parts, NAME-00001-of-00002 and so
on, each with some of the parameters.
"""
import hashlib
import json

import jax
import numpy as np
import safetensors
import safetensors.numpy

from veojax import files, processes
from veojax.models import layers

SHIPPED = files.path(__file__).resolve().parent.parent / 'weights'  # what the project has trained itself, with a card


def locate(name):
  """The folder that comes with the package under this name, or else the path itself, which may be in a bucket."""
  shipped = SHIPPED / files.path(name).name
  return shipped if str(name) == shipped.name and shipped.is_dir() else files.path(name)


def abstract(make):
  """The tree of shapes and layouts of `make(rngs)`, of which nothing is computed: not even the key, which under a
  topology's mesh has no device to be on."""
  return jax.eval_shape(lambda: make(layers.Rngs(jax.random.key(0))))


def names(tree) -> dict:
  """{dotted path: leaf} of a module or any tree of modules; the inverse is `replace`."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  flat = {}
  for path, leaf in leaves:
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    flat[name.removesuffix('.value')] = leaf
  return flat


def replace(tree, flat: dict):
  """`tree` with its leaves taken from {dotted path: array}. Raises ValueError for missing, unexpected or misshapen."""
  wanted = names(tree)
  missing, unexpected = sorted(wanted.keys() - flat.keys()), sorted(flat.keys() - wanted.keys())
  misshapen = [f'{n} {list(flat[n].shape)} for {list(wanted[n].shape)}'
               for n in wanted if n in flat and tuple(flat[n].shape) != tuple(wanted[n].shape)]
  problems = [f'{kind}: {", ".join(rows[:5])}{" ..." if len(rows) > 5 else ""}' for kind, rows in
              (('missing', missing), ('unexpected', unexpected), ('misshapen', misshapen)) if rows]
  if problems:
    raise ValueError(f'the weights are those of another model; {"; ".join(problems)}')
  return jax.tree.unflatten(jax.tree.structure(tree), [flat[n] for n in wanted])


def like(tree, other):
  """`other`'s values, each with the type and the layout that `tree` has. Raises ValueError as `replace` does."""
  values = replace(tree, names(other))
  return jax.tree.map(lambda x, value: put(np.asarray(value, x.dtype), x.sharding), tree, values)


def put(value, layout: jax.sharding.Sharding) -> jax.Array:
  """A host's array, or one of other devices, in a layout. Of a host's each device gets its part alone: `device_put`
  would, of several processes, gather all that they have on every device, to compare."""
  if isinstance(value, jax.Array):
    return jax.device_put(value, layout)
  return jax.make_array_from_callback(value.shape, layout, lambda index: value[index])


def save(path, tree, metadata: dict, dtype=None, part_bytes: int | None = None):
  """Writes safetensors, in `dtype` where one is given; `metadata` as JSON under the key 'veojax'. Each file is atomic.

  part_bytes: where there is more, it is written in parts of at most so many bytes (or of one parameter). All processes
  that hold a part of the tree call it, and process 0 writes.
  """
  arrays = {}
  for name, array in names(tree).items():
    whole = processes.fetch(array)
    if processes.is_first():
      arrays[name] = np.ascontiguousarray(whole.astype(dtype or whole.dtype))
  if not processes.is_first():
    return
  groups = _groups(arrays, part_bytes)
  for i, group in enumerate(groups, 1):
    with files.writing(path if len(groups) == 1 else _part(path, i, len(groups))) as draft:
      safetensors.numpy.save_file(group, draft, metadata={'veojax': json.dumps(metadata)})
      draft.chmod(0o644)  # safetensors makes files that nobody else may read


def _groups(arrays: dict, part_bytes: int | None) -> list[dict]:
  """The arrays in their order, as few groups as `part_bytes` allows."""
  groups, room = [{}], part_bytes
  for name, array in arrays.items():
    if part_bytes and array.nbytes > room and groups[-1]:
      groups.append({})
      room = part_bytes
    groups[-1][name] = array
    room = room and room - array.nbytes
  return groups


def _part(path, number: int, of: int):
  path = files.path(path)
  return path.parent / f'{path.stem}-{number:05}-of-{of:05}{path.suffix}'


def found(path) -> list:
  """The files of these weights that are there: `path`, or parts of it, or none."""
  path = files.path(path)
  if path.exists():
    return [path]
  return sorted(path.parent.glob(f'{path.stem}-*-of-*{path.suffix}')) if path.parent.exists() else []


def load(path) -> tuple[dict, dict]:
  """({name: numpy array}, metadata). Raises ValueError for a file that is missing, truncated or not ours."""
  path, there = files.path(path), found(path)
  if there == [path]:
    return _load(path)
  if not there:
    raise ValueError(f'{path} does not exist; train that model first, or name the folder of a finished run')
  parts = [_part(path, i + 1, len(there)) for i in range(len(there))]
  if there != parts:
    raise ValueError(f'{path} is in parts, of which there are {", ".join(p.name for p in there)}; copy all of them again')
  loaded = [_load(part) for part in parts]
  return {name: array for arrays, _ in loaded for name, array in arrays.items()}, loaded[0][1]


def _load(path) -> tuple[dict, dict]:
  """As `load`, of one file."""
  try:
    with files.reading(path) as copy, safetensors.safe_open(copy, framework='numpy') as file:
      metadata = json.loads((file.metadata() or {})['veojax'])
      return {name: file.get_tensor(name) for name in file.keys()}, metadata
  except (safetensors.SafetensorError, KeyError, OSError) as error:
    raise ValueError(f'{path} is truncated or not written by veojax ({error}); '
                     'copy it again or train it anew') from None


def fingerprint(tree, metadata: dict) -> str:
  """Sixteen hex digits that change with any weight or any word of the metadata (sha256)."""
  digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
  for name, array in sorted(names(tree).items()):
    digest.update(name.encode())
    digest.update(np.ascontiguousarray(np.asarray(array)).tobytes())
  return digest.hexdigest()[:16]
