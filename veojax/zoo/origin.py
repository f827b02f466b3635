"""Published weights that come as pickles or TensorFlow checkpoints, as safetensors that remember what they were.

    python -m veojax.zoo.origin SOURCE OUTPUT.safetensors

SOURCE is a .pt or .pth file, TorchScript or a dict of tensors (PyTorch reads it; TorchScript may run code, so convert
only files that you trust), or a TensorFlow checkpoint's path without its .index (TensorFlow reads it). The metadata
keeps hashes of SOURCE (for a checkpoint, of its .data file): its sha256, and the name that git gives it, by which files
are known that lie in repositories. By these `identify` tells a network from others of the same shape, as long as the
tensors are those that were read: the metadata keeps a hash of them too.
"""
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

TENSORS = 'tensors_sha256'  # in the metadata


@dataclasses.dataclass(frozen=True)
class Origin:
  """name: what the file is known as, '' where it is not known. hash: sha256 of the source where it is recorded and the
  file holds its tensors, else of the file itself. doubt: why a source that is recorded does not count, or ''."""
  name: str
  hash: str
  doubt: str = ''


def hashes(path) -> dict[str, str]:
  """{'sha256': ..., 'git': ...} of a file."""
  path = pathlib.Path(path)
  sha256, git = hashlib.sha256(), hashlib.sha1(f'blob {path.stat().st_size}\0'.encode())
  with path.open('rb') as file:
    while piece := file.read(1 << 20):
      sha256.update(piece)
      git.update(piece)
  return {'sha256': sha256.hexdigest(), 'git': git.hexdigest()}


def identify(path, known: Mapping[str, str]) -> Origin:
  """The origin of a safetensors file. known: {'sha256:...' or 'git:...': name}; a hash may be the beginning of one."""
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      recorded = file.metadata() or {}
  except (safetensors.SafetensorError, OSError) as error:
    raise ValueError(f'{path} is missing or no safetensors file ({error}); make one with '
                     '`python -m veojax.zoo.origin SOURCE OUTPUT.safetensors`') from None
  doubt = _doubt(path, recorded) if 'sha256' in recorded else ''
  found = recorded if 'sha256' in recorded and not doubt else hashes(path)
  for key, name in known.items():
    kind, _, value = key.partition(':')
    if found.get(kind, '').startswith(value):
      return Origin(name, found['sha256'])
  return Origin('', found['sha256'], doubt)


def _doubt(path, recorded: Mapping[str, str]) -> str:
  again = 'convert it again with `python -m veojax.zoo.origin SOURCE OUTPUT.safetensors`'
  if TENSORS not in recorded:
    return f'it tells a source and no hash of its tensors; {again}'
  stat = os.stat(path)
  if recorded[TENSORS] != _content(os.path.realpath(path), stat.st_mtime_ns, stat.st_size):
    return f'its tensors are not those that were read from its source; {again}'
  return ''


@functools.lru_cache(8)  # asked for by every table of a report
def _content(path: str, mtime_ns: int, size: int) -> str:
  """sha256 of the names, kinds, shapes and bytes of a safetensors file's tensors, whatever its metadata. mtime_ns,
  size: of the file, to know one that has changed."""
  with open(path, 'rb') as file:
    header = json.loads(file.read(int.from_bytes(file.read(8), 'little')))
    header.pop('__metadata__', None)
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    while piece := file.read(1 << 20):
      digest.update(piece)
  return digest.hexdigest()


def write(tensors: Mapping[str, np.ndarray], output, source: Mapping[str, str]):
  """A safetensors file that `identify` knows by `source`, its name and hashes."""
  output = pathlib.Path(output)
  partial, told = output.with_suffix('.partial'), {'format': 'pt', **source}
  safetensors.numpy.save_file(tensors, partial, told)
  stat = partial.stat()
  told[TENSORS] = _content(os.path.realpath(partial), stat.st_mtime_ns, stat.st_size)
  safetensors.numpy.save_file(tensors, partial, told)
  partial.replace(output)


def convert(source, output):
  """Writes the tensors of `source` to a safetensors file, with the hashes of what they were read from."""
  source = pathlib.Path(source)
  data = source.with_name(f'{source.name}.data-00000-of-00001')
  if data.exists():
    tensors, file = _read_tensorflow(source), data
  elif source.is_file():
    tensors, file = _read_torch(source), source
  else:
    raise ValueError(f'{source} is no file and no checkpoint ({data.name} is not there); give the path of one')
  write(tensors, output, {'source': file.name, **hashes(file)})


def _read_torch(source) -> dict[str, np.ndarray]:
  try:
    import torch
  except ImportError:
    raise ValueError(f'{source.name} is read by PyTorch, which is not here; convert it where it is') from None
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)  # of TorchScript, in which the file is written all the same
    try:
      tensors = torch.jit.load(source, map_location='cpu').state_dict()
    except RuntimeError:  # no TorchScript
      tensors = torch.load(source, map_location='cpu', weights_only=True)
  tensors = tensors.get('state_dict', tensors)
  return {name: np.ascontiguousarray(x.numpy()) for name, x in tensors.items()}


def _read_tensorflow(source) -> dict[str, np.ndarray]:
  try:
    import tensorflow
  except ImportError:
    raise ValueError(f'{source.name} is read by TensorFlow, which is not here; convert it where it is') from None
  reader = tensorflow.train.load_checkpoint(str(source))
  return {name: np.ascontiguousarray(reader.get_tensor(name)) for name in reader.get_variable_to_shape_map()}


if __name__ == '__main__':
  convert(*sys.argv[1:])
