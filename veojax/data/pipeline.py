"""Batches for training, by Grain; the whole state of the data is one global row number.

A source answers `source[row]` for any row number from 0 on, as a pure function of its arguments and the row: which
epoch a row lies in, the epoch's seeded shuffle, the crop and the dropped captions all follow from the number. Batch g
of B rows, counted from row s, holds rows s + g B .. s + g B + B - 1, of which each process takes those at its
positions. Threads, workers and processes only decide who computes a row, so training goes on exactly where it stopped
with any number of them.
"""
import functools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from veojax.data import latent_clip, packing, row_plan
from veojax.data import tasks as training_tasks
from veojax.data.epochs import Epochs
from veojax.data.latent_clip import LatentClip
from veojax.data.packing import PackConfig
from veojax.data.tasks import TaskConfig
from veojax.types import Tokens

log = logging.getLogger(__name__)

# Streams of random numbers, so that one seed serves several uses; packing has 1 and 2.
SHUFFLE, CROP, DROPOUT = 3, 4, 5
MAX_ROWS = 2**48


@runtime_checkable
class Source(Protocol):
  """Rows by global number. rows_per_epoch rows are one pass over the data."""
  rows_per_epoch: int

  def __getitem__(self, row: int) -> Any: ...
  def clips_of(self, row: int) -> list[int]: ...  # numbers of the clips in it


class Lengths(NamedTuple):
  """What a row's plan needs to know of every clip, without reading it."""
  video: np.ndarray  # int64[N, 3]: latent frames, height, width; 0 without picture
  audio: np.ndarray  # int64[N]: sound latents; 0 without sound


@runtime_checkable
class LatentSource(Protocol):
  """Clips as latents, read from a cache or encoded at access; `text_ids` of a clip are left empty."""
  lengths: Lengths

  def __len__(self) -> int: ...
  def __getitem__(self, clip: int) -> LatentClip: ...
  def text(self, clip: int) -> str: ...


@functools.lru_cache(8)
def shuffled(seed: int, epoch: int, length: int) -> np.ndarray:
  """The order of an epoch, a permutation of range(length)."""
  return np.random.default_rng([seed, SHUFFLE, epoch]).permutation(length)


def one_clip(clips: np.ndarray, seed: int, row: int) -> int:
  """The clip in a row, where each row is one of `clips`."""
  epoch, at = divmod(row, len(clips))
  return int(clips[shuffled(seed, epoch, len(clips))[at]])


class CropSource:
  """Random crops in time and space of the clips that have a picture: dict(video=uint8[num_frames, height, width, 3]).

  A clip smaller or shorter than the crop is continued by its edge.
  """

  def __init__(self, dataset, num_frames: int, height: int, width: int, seed: int = 0):
    self.dataset, self.size, self.seed = dataset, (num_frames, height, width), seed
    self.clips = np.flatnonzero(dataset.index['num_frames'])
    if not len(self.clips):
      raise ValueError(f'none of the {len(dataset)} clips has a picture to train a video codec on; '
                       'prepare clips with video')

  @property
  def rows_per_epoch(self) -> int:
    return len(self.clips)

  def clips_of(self, row: int) -> list[int]:
    return [one_clip(self.clips, self.seed, row)]

  def __getitem__(self, row: int) -> dict:
    video = self.dataset[self.clips_of(row)[0]].video
    rng = np.random.default_rng([self.seed, CROP, row])
    for dim, size in enumerate(self.size):
      video = _window(video, dim, size, rng)
    pad = [(0, size - have) for size, have in zip(self.size, video.shape)] + [(0, 0)]
    return {'video': np.pad(video, pad, 'edge')}


class SoundSource:
  """Random stretches of the clips that have sound: dict(audio=float32[num_samples, channels]).

  A sound shorter than the stretch ends in silence.
  """

  def __init__(self, dataset, num_samples: int, channels: int, sample_rate: int, seed: int = 0):
    self.dataset, self.num_samples, self.channels, self.seed = dataset, num_samples, channels, seed
    self.clips = np.flatnonzero(dataset.index['num_samples'])
    if not len(self.clips):
      raise ValueError(f'none of the {len(dataset)} clips has sound to train an audio codec on; '
                       'prepare clips with sound')
    check_sample_rate(dataset, sample_rate)

  @property
  def rows_per_epoch(self) -> int:
    return len(self.clips)

  def clips_of(self, row: int) -> list[int]:
    return [one_clip(self.clips, self.seed, row)]

  def __getitem__(self, row: int) -> dict:
    audio = self.dataset[self.clips_of(row)[0]].audio
    audio = _window(audio, 0, self.num_samples, np.random.default_rng([self.seed, CROP, row]))
    audio = mix(audio, self.channels)
    return {'audio': np.pad(audio, ((0, self.num_samples - len(audio)), (0, 0)))}


def check_sample_rate(dataset, sample_rate: int):
  """ValueError where a clip's sound has another rate."""
  rates = dataset.index['sample_rate']
  other = np.flatnonzero((dataset.index['num_samples'] > 0) & (rates != sample_rate))
  if len(other):
    raise ValueError(f'{len(other)} clips have another sample rate than the audio codec (first: clip {other[0]}, '
                     f'{rates[other[0]]} Hz, codec {sample_rate} Hz); prepare the data with sample_rate={sample_rate}')


def mix(audio: np.ndarray, channels: int) -> np.ndarray:
  """float32[R, any] to float32[R, channels]: kept where equal, otherwise the mean of the channels in each."""
  if audio.shape[1] == channels:
    return audio
  return np.repeat(audio.mean(1, keepdims=True, dtype=np.float32), channels, 1)


def _window(x, dim, size, rng):
  """A random stretch of `size` along `dim`, or all where there is less."""
  start = int(rng.integers(max(0, x.shape[dim] - size) + 1))
  return x[(slice(None),) * dim + (slice(start, start + size),)]


class RowSource:
  """Packed rows (`Tokens`, no batch dim) of clips' latents with their captions.

  A caption is dropped (the empty prompt stands in) with probability caption_dropout, and a task decides what of the clip
  is given, both drawn per epoch and clip. A clip longer than a row is cut to its beginning; one of which not even a frame
  fits, or with neither picture nor sound, is left out. `report` counts both. weights: float[N], how often an epoch holds
  each clip (see `epochs`); once, if None.
  """

  def __init__(self, latents: LatentSource, tokenizer, config: PackConfig, seed: int = 0, caption_dropout: float = 0.1,
               tasks: TaskConfig = TaskConfig(), weights: np.ndarray | None = None):
    self.latents, self.tokenizer, self.config = latents, tokenizer, config
    self.seed, self.caption_dropout, self.tasks = seed, caption_dropout, tasks
    video, audio = (np.asarray(x, np.int64).reshape(len(latents), -1) for x in latents.lengths)
    text = np.array([len(self._encode(latents.text(i))) for i in range(len(latents))], np.int64)
    frame = video[:, 1] * video[:, 2]
    self.room = np.where(video[:, 0] > 1, tasks.num_stills * frame, 0)  # tokens kept free for stills
    total = text + video.prod(1) + audio[:, 0] + self.room
    keep = (total > text) & (text + np.maximum(frame, 1) + self.room <= config.row_tokens)
    self.clips = np.flatnonzero(keep)
    self.lengths = np.stack([np.minimum(total, config.row_tokens), text], 1)[keep]
    if not len(self.clips):
      raise ValueError(f'none of {len(latents)} clips fits rows of {config.row_tokens} tokens; raise row_tokens, or '
                       'prepare smaller clips')
    weights = np.ones(len(latents)) if weights is None else np.asarray(weights, np.float64)
    self.epochs = Epochs(self.lengths, weights[keep], seed)
    self.rows_per_epoch = row_plan.num_rows(self.epochs.bound, config, seed)
    used = self.lengths[self.epochs[0], 0].sum()
    self.report = {'clips': len(self.clips), 'left out': int(len(keep) - keep.sum()),
                   'cut': int((keep & (total > config.row_tokens)).sum()), 'rows per epoch': self.rows_per_epoch,
                   'fill': float(used / (self.rows_per_epoch * config.row_tokens))}
    self._plans, self._lock = {}, threading.Lock()
    if self.report['left out'] or self.report['cut']:
      log.warning('rows of %d tokens: %d clips cut to their beginning, %d left out (a single latent frame does not '
                  'fit, or there is neither picture nor sound)', config.row_tokens, self.report['cut'],
                  self.report['left out'])

  def __getstate__(self):
    return {**self.__dict__, '_plans': {}, '_lock': None}

  def __setstate__(self, state):
    self.__dict__.update(state, _lock=threading.Lock())

  def __getitem__(self, row: int) -> Tokens:
    return packing.pack([self._read(clip, row // self.rows_per_epoch) for clip in self.clips_of(row)], self.config)

  def clips_of(self, row: int) -> list[int]:
    """Numbers, in `latents`, of the clips in a row, segment by segment."""
    epoch, at = divmod(row, self.rows_per_epoch)
    with self._lock:  # one thread plans, the others wait for it
      if epoch not in self._plans:
        # Read ahead across the end of an epoch, rows of two are wanted at a time.
        self._plans = {**dict(list(self._plans.items())[-1:]), epoch: self._plan(epoch)}
      clips, rows = self._plans[epoch]
    return clips[rows[at]].tolist()

  def _plan(self, epoch):
    clips = self.epochs[epoch]
    rows = row_plan.plan(self.lengths[clips], self.config, self.seed, epoch, self.rows_per_epoch, self.epochs.bound)
    return self.clips[clips], rows

  def _encode(self, text):
    return self.tokenizer.encode(text, max_length=self.config.max_text)

  def _read(self, clip, epoch) -> LatentClip:
    rng = np.random.default_rng([self.seed, DROPOUT, epoch, clip])
    dropped = rng.random() < self.caption_dropout
    latents = self.latents[clip]
    stills, whole = latents.stills, latents._replace(
        text_ids=self._encode('' if dropped else latents.text), stills=())
    part = latent_clip.cut(whole, self.config.row_tokens - int(self.room[clip]))
    # Of a clip that was cut no later frame is known.
    return training_tasks.draw(part._replace(stills=stills) if part is whole else part, self.tasks, rng)


# Batches.


def make_iterator(source: Source, start_row: int, batch_size: int, positions: Sequence[int] | None = None,
                  num_threads: int = 8, num_workers: int = 0) -> 'Batches':
  """This process's part of the batches from row start_row on, without end: the rows at `positions` of each batch of
  batch_size, all by default.

  num_threads read; num_workers processes are worth their copying only where rows are decoded from compressed media, and
  then the source must be picklable. Both 0: everything in the caller's thread.
  """
  positions = list(range(batch_size) if positions is None else positions)
  if start_row < 0 or not positions or not all(0 <= position < batch_size for position in positions):
    raise ValueError(f'start_row={start_row}, positions={positions} of batch_size={batch_size}: out of range')
  return Batches(_Share(source, start_row, batch_size, positions), num_threads, num_workers)


class _Share:
  """The rows of one process, numbered from 0, as Grain's source."""

  def __init__(self, source, start_row, batch_size, positions):
    self.source, self.start_row, self.batch_size, self.positions = source, start_row, batch_size, positions

  def __len__(self):
    return MAX_ROWS

  def __getitem__(self, i: int):
    batch, at = divmod(i, len(self.positions))
    return self.source[self.start_row + batch * self.batch_size + self.positions[at]]


class Batches:
  """Iterator over stacked batches; `next_row`, where the next one begins, is all there is to save. Close after use."""

  def __init__(self, share: _Share, num_threads: int, num_workers: int):
    import grain  # slow to import
    self._share, self.next_row = share, share.start_row
    mine = len(share.positions)
    buffer = max(num_threads, 2 * mine) if num_threads else 0
    rows = grain.MapDataset.source(share).to_iter_dataset(grain.ReadOptions(num_threads, buffer))
    if num_workers:
      _parse_absl_flags()
      # Whole rows are dealt out to the workers in turn and batched here: batched there, each worker would put together
      # batches of its own rows, and the number of workers would decide which rows meet.
      rows = rows.mp_prefetch(grain.MultiprocessingOptions(num_workers, max(1, 2 * mine // num_workers)),
                             worker_init_fn=_start_worker)
    self._open = [iter(rows.batch(mine, batch_fn=stack))]
    # Also when it is dropped or the program ends without closing it: later, Grain's own clean-up would fail noisily.
    self._finish = weakref.finalize(self, _close, self._open)

  def __iter__(self):
    return self

  def __next__(self):
    if not self._open:
      raise ValueError(f'these batches were closed; make an iterator that starts at row {self.next_row}')
    batch = next(self._open[0])
    self.next_row += self._share.batch_size
    return batch

  def close(self):
    """Ends threads and workers."""
    self._finish()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def _close(iterators: list):
  while iterators:
    iterators.pop().close()


def stack(rows: list) -> Any:
  """Rows (dicts or named tuples of arrays) as one with a leading batch dim."""
  first = rows[0]
  if isinstance(first, dict):
    return {name: np.stack([row[name] for row in rows]) for name in first}
  return type(first)(*(np.stack(field) for field in zip(*rows)))


def _start_worker(index: int, count: int):
  """An interrupt is for the training loop to answer; a worker only ends with it, however that ends."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
  multiprocessing.parent_process().join()
  os._exit(1)


def _parse_absl_flags():
  """Grain's workers read absl flags, which only programs started by absl.app have parsed."""
  from absl import flags
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(sys.argv[:1])
