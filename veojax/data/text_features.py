"""Text features: what a text encoder makes of the captions of a data set, stored beside it.

A folder holds features.json (of which encoder, how many captions, the width), index.npz (where each caption's tokens
start) and tokens/, bfloat16[tokens, E], zarr3: the tokens of all captions one after another, padding left out. It is
whole when features.json is there. Writing and reading need numpy and tensorstore only.
"""
import json
import os
import pathlib
import threading
from collections.abc import Callable, Sequence

import numpy as np
import tensorstore as ts

RECORD, INDEX, TOKENS = 'features.json', 'index.npz', 'tokens'
CHUNK_TOKENS = 1024
BATCH = 16  # captions that are encoded together

Encode = Callable[[list[str]], list[np.ndarray]]  # the features float[S, E] of each text


class TextFeatures:
  """The features of each caption, float32[S, E]. Thread-safe, and picklable for worker processes."""

  def __init__(self, path: str, record: dict):
    self.path, self.record = path, record
    with np.load(os.path.join(path, INDEX)) as index:
      self.start = index['start']
    self._array, self._lock = None, threading.Lock()

  @classmethod
  def open(cls, path, encoder: str | None = None) -> 'TextFeatures':
    """ValueError where there are none, or where they are of another encoder."""
    path = os.fspath(path)
    record = read_record(path)
    if record is None:
      raise ValueError(f'there are no text features at {path}; run: veojax prepare --embed FOLDER_OF_THE_TEXT_ENCODER')
    if encoder is not None and record['encoder'] != encoder:
      raise ValueError(f'the text features at {path} are of the encoder {record["encoder"]}, this model has {encoder}; '
                       'make them again with its own')
    return cls(path, record)

  def __len__(self) -> int:
    return len(self.start) - 1

  def __getitem__(self, i: int) -> np.ndarray:
    with self._lock:
      if self._array is None:
        self._array = ts.open({'driver': 'zarr3', 'kvstore': _store(self.path)}, read=True).result()
    return self._array[int(self.start[i]):int(self.start[i + 1])].read().result().astype(np.float32)

  def __getstate__(self):
    return {**self.__dict__, '_array': None, '_lock': None}

  def __setstate__(self, state):
    self.__dict__.update(state, _lock=threading.Lock())


def read_record(path) -> dict | None:
  try:
    return json.loads((pathlib.Path(path) / RECORD).read_text())
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    raise ValueError(f'{pathlib.Path(path) / RECORD} cannot be read ({error}); delete {path} and make them again'
                     ) from None


def _store(path) -> dict:
  return {'driver': 'file', 'path': os.path.join(path, TOKENS, '')}


def write(path, texts: Sequence[str], encode: Encode, encoder: str) -> TextFeatures:
  """Encodes the captions into the folder `path`, unless this encoder's features of as many are there.

  ValueError for features that are not finite.
  """
  path, record = os.fspath(path), read_record(path)
  if record is not None and (record['encoder'], record['captions']) == (encoder, len(texts)):
    return TextFeatures(path, record)
  if record is not None:
    os.remove(os.path.join(path, RECORD))
  os.makedirs(path, exist_ok=True)
  array, lengths, pending = None, [], None
  for i in range(0, len(texts), BATCH):
    batch = encode(list(texts[i:i + BATCH]))
    tokens = np.concatenate(batch)
    if not np.isfinite(tokens).all():
      raise ValueError(f'the features of the captions {i} to {i + len(batch) - 1} are not finite; compute in float32')
    if array is None:
      array = _create(path, tokens.shape[1])
    before = sum(lengths)
    lengths += [len(features) for features in batch]
    if pending is not None:
      pending.result()
    array = array.resize(exclusive_max=[sum(lengths), None]).result()
    pending = array[before:sum(lengths)].write(tokens.astype(array.dtype.numpy_dtype))
  if pending is None:
    raise ValueError('there are no captions to encode; prepare a data set with texts')
  pending.result()
  np.savez(os.path.join(path, INDEX), start=np.cumsum([0] + lengths))
  record = {'encoder': encoder, 'captions': len(texts), 'width': int(tokens.shape[1])}
  (pathlib.Path(path) / RECORD).write_text(json.dumps(record, indent=2))
  return TextFeatures(path, record)


def _create(path: str, width: int):
  metadata = {'shape': [0, width], 'data_type': 'bfloat16',
              'chunk_grid': {'name': 'regular', 'configuration': {'chunk_shape': [CHUNK_TOKENS, width]}}}
  return ts.open({'driver': 'zarr3', 'kvstore': _store(path), 'metadata': metadata}, create=True,
                 delete_existing=True).result()
