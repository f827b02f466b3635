"""The cache of latents as training reads it: clips of any shape as one long array of tokens, and an index.

A cache is a folder:

  cache.json   what it holds: hashes of the codecs that made it and of the data set, and the codecs' compressions
  index.npz    per clip: where its tokens start, its latent shape, fps, size in pixels, stills, caption
  video/       float16[tokens, C], zarr3 in shards of many chunks; a clip is [start, start + t h w), frame by frame,
               and after it stand the frames that were encoded alone, its stills, h w tokens each
  audio/       float16[tokens, C]; a clip is [start, start + n)
  parts/       a file for every finished part, with its captions; a part is a run of clips that alone fills its shards

`training.latents.write` makes it. Reading needs numpy and tensorstore only.
"""
import json
import os
import threading

import numpy as np
import tensorstore as ts

from veojax import files
from veojax.data.latent_clip import LatentClip, Still
from veojax.data.pipeline import Lengths

FORMAT = 2
RECORD, INDEX, PARTS = 'cache.json', 'index.npz', 'parts'
CACHE_BYTES = 2**26  # of a process, for chunks and the shards' indices


class LatentCache:
  """A finished cache, a `LatentSource`: thread-safe, and picklable for worker processes."""

  def __init__(self, path: str, record: dict):
    self.path, self.record = path, record
    with files.reading(os.path.join(path, INDEX)) as copy, np.load(copy) as index:
      self.index = dict(index)
    self.lengths = Lengths(self.index['video_shape'], self.index['audio_length'])
    self._arrays, self._lock = {}, threading.Lock()

  @classmethod
  def open(cls, path: str | os.PathLike, video_hash: str, audio_hash: str) -> 'LatentCache':
    """The cache at `path`, made by the codecs of these hashes ('' for a codec that a model does not have).

    ValueError where there is none, where it is not finished, or where other codecs made it.
    """
    path = os.fspath(path)
    record = read_record(path)
    if record is None:
      raise ValueError(f'there are no latents at {path}; encode the data set into it first')
    check_codecs(path, record, video_hash, audio_hash)
    done = len(finished_parts(path))
    if done < record['num_parts'] or not (files.path(path) / INDEX).exists():
      raise ValueError(f'the latents at {path} are not finished: {done} of {record["num_parts"]} parts; encode again, '
                       'it goes on from there')
    return cls(path, record)

  def __len__(self) -> int:
    return len(self.lengths.audio)

  def __getitem__(self, clip: int) -> LatentClip:
    """Latents of a clip, float16; text_ids are empty."""
    if not 0 <= clip < len(self):
      raise IndexError(f'clip {clip} of a cache of {len(self)}')
    shape, length = self.lengths.video[clip], int(self.lengths.audio[clip])
    frames = self._stills(clip)
    # Both reads under way before waiting for either.
    video = self._read('video', clip, int(shape.prod() + len(frames) * shape[1:].prod())) if shape.all() else None
    audio = self._read('audio', clip, length) if length else None
    number = lambda name: self.index[name][clip].item()
    cells = None if video is None else video.result().reshape(-1, *shape[1:], video.result().shape[-1])
    return LatentClip(
        video=None if cells is None else cells[:shape[0]],
        stills=tuple(Still(cells[shape[0] + i], frame / number('fps')) for i, frame in enumerate(frames)),
        audio=None if audio is None else audio.result(),
        fps=number('fps'), height=number('height'), width=number('width'),
        temporal_compression=self.record['temporal_compression'],
        spatial_compression=self.record['spatial_compression'], latent_rate=self.record['latent_rate'],
        text=self.text(clip))

  def _stills(self, clip: int) -> list[int]:
    start, end = self.index['still_start'][clip:clip + 2]
    return self.index['still_frame'][start:end].tolist()

  def text(self, clip: int) -> str:
    start, end = self.index['text_start'][clip:clip + 2]
    return self.index['text'][start:end].tobytes().decode()

  def _read(self, name, clip, length):
    start = int(self.index[f'{name}_start'][clip])
    return self._array(name)[start:start + length].read()

  def _array(self, name):
    with self._lock:
      if name not in self._arrays:
        self._arrays[name] = ts.open(
            {'driver': 'zarr3', 'kvstore': files.kvstore(os.path.join(self.path, name))}, read=True,
            recheck_cached_data=False, context=ts.Context({'cache_pool': {'total_bytes_limit': CACHE_BYTES}})).result()
      return self._arrays[name]

  def __getstate__(self):
    return {**self.__dict__, '_arrays': {}, '_lock': None}

  def __setstate__(self, state):
    self.__dict__.update(state, _lock=threading.Lock())


def read_record(path: str) -> dict | None:
  """What the cache at `path` says of itself; None where there is none."""
  try:
    return json.loads((files.path(path) / RECORD).read_text())
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as error:
    raise ValueError(f'{os.path.join(path, RECORD)} cannot be read ({error}); delete {path} and encode again'
                     ) from error


def check_codecs(path: str, record: dict, video_hash: str, audio_hash: str):
  """ValueError, naming both, where other codecs made the latents."""
  if record.get('format') != FORMAT:
    raise ValueError(f'the latents at {path} have format {record.get("format")}, this version reads {FORMAT}; encode '
                     'again into another folder')
  for name, mine in (('video', video_hash), ('audio', audio_hash)):
    if record[f'{name}_hash'] != mine:
      raise ValueError(f'the latents at {path} were made by {name} codec {record[f"{name}_hash"] or "none"}, this '
                       f'model has {mine or "none"}; encode again into another folder, or use the codec that made them')


def finished_parts(path: str) -> set[int]:
  try:
    return {int(part.name) for part in (files.path(path) / PARTS).iterdir() if part.name.isdigit()}
  except FileNotFoundError:
    return set()
