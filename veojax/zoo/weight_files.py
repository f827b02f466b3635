"""Safetensors as they are published: a file, or a folder with one file or with shards and their index. No pickles."""
import contextlib
import json
import pathlib
from collections.abc import Iterator

import numpy as np
import safetensors
import safetensors.numpy

PICKLES = ('.pth', '.pt', '.ckpt', '.bin', '.pkl')
SHARD_BYTES = 5_000_000_000


class WeightFiles:
  """The tensors of one or more safetensors files, read one at a time."""

  def __init__(self, handles: dict[pathlib.Path, safetensors.safe_open]):
    self._handle = {}
    for path, handle in handles.items():
      for key in handle.keys():
        if key in self._handle:
          raise ValueError(f'{key} stands in {path} and in another shard; copy the folder again')
        self._handle[key] = handle

  def keys(self) -> list[str]:
    return list(self._handle)

  def header(self, key: str) -> tuple[str, tuple[int, ...]]:
    """(dtype as safetensors name it, shape), without reading the tensor."""
    view = self._handle[key].get_slice(key)
    return view.get_dtype(), tuple(view.get_shape())

  def read(self, key: str) -> np.ndarray:
    return self._handle[key].get_tensor(key)


@contextlib.contextmanager
def opened(source) -> Iterator[WeightFiles]:
  """The weights in a .safetensors file or in a folder. ValueError for pickles and for what is missing or damaged."""
  with contextlib.ExitStack() as stack:
    handles = {}
    for path in _paths(pathlib.Path(source)):
      try:
        handles[path] = stack.enter_context(safetensors.safe_open(path, framework='numpy'))
      except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f'{path} is truncated or no safetensors file ({error}); copy it again') from None
    yield WeightFiles(handles)


def _paths(source: pathlib.Path) -> list[pathlib.Path]:
  if not source.exists():
    raise ValueError(f'{source} does not exist; give a .safetensors file or a folder that holds one')
  if source.is_file():
    if source.suffix in PICKLES:
      raise ValueError(_pickle(source))
    return [source]
  indexes, files = sorted(source.glob('*.safetensors.index.json')), sorted(source.glob('*.safetensors'))
  if len(indexes) == 1:
    return _shards(indexes[0])
  if len(indexes) > 1 or len(files) > 1:
    raise ValueError(f'{source} holds {", ".join(p.name for p in indexes or files)}; give the one file that is meant, '
                     'or a folder of its own')
  if not files:
    pickles = sorted(p for p in source.iterdir() if p.suffix in PICKLES)
    raise ValueError(_pickle(pickles[0]) if pickles else
                     f'{source} holds no .safetensors; give the folder of the weights')
  return files


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
  try:
    names = sorted(set(json.loads(index.read_text())['weight_map'].values()))
  except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
    raise ValueError(f'{index} is no index of shards (it lacks a weight_map); copy it again') from None
  shards = [index.parent / pathlib.PurePath(name).name for name in names]
  if absent := [p.name for p in shards if not p.exists()]:
    raise ValueError(f'{index} names {", ".join(absent)}, which {"is" if len(absent) == 1 else "are"} not beside it; '
                     'copy the missing files')
  return shards


def _pickle(path: pathlib.Path) -> str:
  return (f'{path} is a pickle, which may run code when it is read; convert it once in PyTorch: '
          f"safetensors.torch.save_file(torch.load({path.name!r}, map_location='cpu', weights_only=True), "
          f"'{path.stem}.safetensors')")


def write(folder, sizes: dict[str, int], tensors: Iterator[tuple[str, np.ndarray]], shard_bytes: int = SHARD_BYTES):
  """Writes tensors, whose bytes are `sizes` in the same order, as model.safetensors, or as shards with their index.

  Memory holds one shard.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  shards, room = [], 0
  for key, size in sizes.items():
    if size > room:
      shards.append([])
      room = shard_bytes
    shards[-1].append(key)
    room -= size
  names = ['model.safetensors'] if len(shards) == 1 else [
      f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors' for i in range(len(shards))]
  for name, keys in zip(names, shards):
    partial = folder / f'{name}.partial'
    safetensors.numpy.save_file({key: array for key, (_, array) in zip(keys, tensors)}, partial, {'format': 'pt'})
    partial.replace(folder / name)
  if len(shards) > 1:
    index = {'metadata': {'total_size': sum(sizes.values())},
             'weight_map': {key: name for name, keys in zip(names, shards) for key in keys}}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index, indent=2))
