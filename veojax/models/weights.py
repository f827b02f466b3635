"""Weights as files: a module's parameters in safetensors, its configuration as JSON in the same file.

Names are the attributes' path, joined by dots: `blocks.attention.w_q`.
"""
import hashlib
import json
import pathlib

import jax
import numpy as np
import safetensors
import safetensors.numpy


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


def save(path, tree, metadata: dict, dtype=None):
  """Writes safetensors, in `dtype` where one is given; `metadata` as JSON under the key 'veojax'. Atomic."""
  path = pathlib.Path(path)
  arrays = {n: np.ascontiguousarray(np.asarray(a, dtype)) for n, a in names(tree).items()}
  partial = path.with_suffix('.partial')
  safetensors.numpy.save_file(arrays, partial, metadata={'veojax': json.dumps(metadata)})
  partial.chmod(0o644)  # safetensors makes files that nobody else may read
  partial.replace(path)


def load(path) -> tuple[dict, dict]:
  """({name: numpy array}, metadata). Raises ValueError for a file that is missing, truncated or not ours."""
  path = pathlib.Path(path)
  if not path.exists():
    raise ValueError(f'{path} does not exist; train that model first, or name the folder of a finished run')
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
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
