"""Safetensors as they are published: a file, or a folder with one file or with shards and their index. No pickles."""
import contextlib
import json
import math
import pathlib
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

PICKLES = ('.pth', '.pt', '.ckpt', '.bin', '.pkl')
WEIGHTS = ('.safetensors', *PICKLES, '.h5', '.msgpack', '.onnx', '.ot')  # that networks are published in
SHARD_BYTES = 5_000_000_000
DTYPES = {'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16}  # as safetensors names them


class WeightFiles:
  """The tensors of one or more safetensors files, read one at a time. Keys begin with the prefix of their file."""

  def __init__(self, handles: dict[pathlib.Path, safetensors.safe_open], prefixes: dict[pathlib.Path, str],
               index: pathlib.Path | None, within: tuple[str, ...]):
    self.paths, self.index, self._place = list(handles), index, {}
    for path, handle in handles.items():
      for stored in handle.keys():
        key = prefixes.get(path, '') + stored
        if within and not key.startswith(within):
          continue
        if key in self._place:
          raise ValueError(f'{key} stands in {path} and in another file; copy the folder again')
        self._place[key] = handle, stored

  def keys(self) -> list[str]:
    return list(self._place)

  def header(self, key: str) -> tuple[str, tuple[int, ...]]:
    """(dtype as safetensors name it, shape), without reading the tensor."""
    handle, stored = self._place[key]
    view = handle.get_slice(stored)
    return view.get_dtype(), tuple(view.get_shape())

  def read(self, key: str) -> np.ndarray:
    handle, stored = self._place[key]
    return handle.get_tensor(stored)


@contextlib.contextmanager
def opened(source, variant: str = '', within: tuple[str, ...] = ()) -> Iterator[WeightFiles]:
  """The weights in a .safetensors file or in a folder, or in several files {path: prefix of its keys}.

  variant: 'fp16' where a folder holds several precisions and NAME.fp16.safetensors is meant, if it is there. within:
  how the keys begin of what is meant, where that is not all. ValueError for pickles and for what is missing or damaged.
  """
  prefixes = {pathlib.Path(path): prefix for path, prefix in source.items()} if isinstance(source, dict) else {}
  index, paths = None, []
  for path in prefixes or [source]:
    index, found = _files(pathlib.Path(path), variant)
    paths += found
  with contextlib.ExitStack() as stack:
    handles = {}
    for path in paths:
      try:
        handles[path] = stack.enter_context(safetensors.safe_open(path, framework='numpy'))
      except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f'{path} is truncated or no safetensors file ({error}); copy it again') from None
    yield WeightFiles(handles, prefixes, index, within)


def _files(source: pathlib.Path, variant: str) -> tuple[pathlib.Path | None, list[pathlib.Path]]:
  """(the index of shards, if there is one; the files)."""
  if not source.exists():
    raise ValueError(f'{source} does not exist; give a .safetensors file or a folder that holds one')
  refuse_pickle(source)
  if source.is_file():
    return None, [source]
  indexes, files = (_of_variant(source, pattern, variant) for pattern in ('*.safetensors.index*.json', '*.safetensors'))
  if variant and not (indexes or files):
    return _files(source, '')
  if not (indexes or files):  # the only one need not be named
    indexes, files = sorted(source.glob('*.safetensors.index*.json')), sorted(source.glob('*.safetensors'))
  if len(indexes) == 1:
    return indexes[0], _shards(indexes[0])
  if len(indexes) > 1 or len(files) > 1:
    raise ValueError(f'{source} holds {", ".join(p.name for p in indexes or files)}; give the one file that is meant, '
                     'or a folder of its own')
  if not files:
    raise ValueError(f'{source} holds no .safetensors; give the folder of the weights')
  return None, files


def _of_variant(folder: pathlib.Path, pattern: str, variant: str) -> list[pathlib.Path]:
  """model.safetensors is of no variant, model.fp16.safetensors of fp16, and so are model.safetensors.index.fp16.json
  and model.fp16-00001-of-00002.safetensors."""
  plain = {'safetensors', 'index', 'json'}
  variants = lambda p: {part.split('-')[0] for part in p.name.split('.')[1:]} - plain
  return [p for p in sorted(folder.glob(pattern)) if variants(p) == ({variant} if variant else set())]


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


def refuse_pickle(source: pathlib.Path):
  """ValueError, with how to convert it, where `source` is a pickle, or a folder whose weights are nothing else."""
  files = [source] if source.is_file() else sorted(source.iterdir())
  pickles = [path for path in files if path.suffix in PICKLES]
  if pickles and not any('.safetensors' in path.name for path in files):
    raise ValueError(_pickle(pickles[0]))


def _pickle(path: pathlib.Path) -> str:
  return (f'{path} is a pickle, which may run code when it is read; convert it once in PyTorch: '
          f"tensors = torch.load({path.name!r}, map_location='cpu', weights_only=True); "
          f"safetensors.torch.save_file(tensors.get('state_dict', tensors), '{path.stem}.safetensors')")


def write(folder, sizes: dict[str, int], tensors: Iterator[tuple[str, np.ndarray]], shard_bytes: int = SHARD_BYTES,
          stem: str = 'model'):
  """Writes tensors, whose bytes are `sizes` in the same order, as STEM.safetensors, or as shards with their index.

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
  names = [f'{stem}.safetensors'] if len(shards) == 1 else [
      f'{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors' for i in range(len(shards))]
  for name, keys in zip(names, shards):
    partial = folder / f'{name}.partial'
    safetensors.numpy.save_file({key: array for key, (_, array) in zip(keys, tensors)}, partial, {'format': 'pt'})
    partial.replace(folder / name)
  if len(shards) > 1:
    index = {'metadata': {'total_size': sum(sizes.values())},
             'weight_map': {key: name for name, keys in zip(names, shards) for key in keys}}
    (folder / f'{stem}.safetensors.index.json').write_text(json.dumps(index, indent=2))


def read_header(path: pathlib.Path) -> bytes:
  """The JSON at a safetensors file's beginning: for every key dtype, shape and place of its data, and the metadata."""
  with open(path, 'rb') as file:
    return file.read(int.from_bytes(file.read(8), 'little'))


class Blank:
  """A safetensors file that is filled piece by piece, with the header of another one.

  tensors: (dtype, shape) of what is to be written, by key. Where these are the old header's, the new file has its very
  bytes; else keys keep their order and the data lies anew.
  """

  def __init__(self, path: pathlib.Path, header: bytes, tensors: dict[str, tuple[str, tuple[int, ...]]]):
    old = json.loads(header)
    metadata = {key: old.pop(key) for key in ['__metadata__'] if key in old}
    by_place = sorted((key for key in old if key in tensors), key=lambda key: old[key]['data_offsets'])
    new, end = {}, 0
    for key in by_place:
      dtype, shape = tensors[key]
      start, end = end, end + math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
      new[key] = {'dtype': dtype, 'shape': list(shape), 'data_offsets': [start, end]}
    if new != old:
      header = json.dumps({**metadata, **new}, separators=(',', ':')).encode()
      header += b' ' * (-len(header) % 8)
    self._start = {key: 8 + len(header) + place['data_offsets'][0] for key, place in new.items()}
    self._file = open(path, 'wb')
    self._file.write(len(header).to_bytes(8, 'little') + header)
    self._file.truncate(8 + len(header) + end)

  def write(self, key: str, offset: int, array: np.ndarray):
    """Puts an array's bytes `offset` bytes into a tensor."""
    self._file.seek(self._start[key] + offset)
    self._file.write(np.asarray(array, order='C').tobytes())

  def close(self):
    self._file.close()
