"""Latents of a data set: encoded at access, or once and for all into the cache of `data.latents`.

The index of the data set and the codecs' shapes give every clip its place before anything is encoded. Consecutive clips
form parts, each of which alone fills its shards of the arrays, so parts are written by any number of processes at once,
and a part is finished or not there: a second start, with any number of processes, encodes only what is missing.
"""
import collections
import concurrent.futures
import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import os
import queue
import threading
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
import tensorstore as ts

from veojax import files, processes
from veojax.data import latents as cache, tasks
from veojax.data.latent_clip import LatentClip, Still
from veojax.data.pipeline import Lengths, check_sample_rate, mix
from veojax.training import watch
from veojax.types import Clip

CLIPS_A_DEVICE = 16  # fewer do not repay what a device costs, which compiles the codecs' programs for itself


@runtime_checkable
class VideoCodec(Protocol):
  """What is asked of a video codec. encode: uint8[T, H, W, 3] to float32[t, h, w, C]; latent_shape: (t, h, w, ...)."""
  temporal_compression: int
  spatial_compression: int
  mean_C: np.ndarray

  def encode(self, video: np.ndarray) -> np.ndarray: ...
  def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]: ...
  def hash(self) -> str: ...
  def on(self, device: jax.Device) -> 'VideoCodec': ...


@runtime_checkable
class AudioCodec(Protocol):
  """What is asked of an audio codec. encode: float32[R, channels] to float32[latent_length(R), C]."""
  sample_rate: int
  channels: int
  latent_rate: float
  mean_C: np.ndarray

  def encode(self, audio: np.ndarray) -> np.ndarray: ...
  def latent_length(self, num_samples: int) -> int: ...
  def hash(self) -> str: ...
  def on(self, device: jax.Device) -> 'AudioCodec': ...


@dataclasses.dataclass(frozen=True)
class CacheConfig:
  shard_tokens: int = 2**17  # tokens of a file, which is written whole: what is lost at most when a run is ended
  chunk_tokens: int = 2**10  # tokens read at a time

  def __post_init__(self):
    if self.chunk_tokens < 1 or self.shard_tokens % self.chunk_tokens:
      raise ValueError(f'shard_tokens={self.shard_tokens} is not a multiple of chunk_tokens={self.chunk_tokens}')


class EncodedSource:
  """A data set's clips, encoded whenever one is asked for: a `LatentSource`. Either codec may be None.

  One clip is encoded at a time, whatever the number of threads. Not for worker processes: each would need a device.
  num_stills frames of each clip are encoded alone besides (`data.tasks.still_frames`).
  """

  def __init__(self, dataset, video_codec: VideoCodec | None, audio_codec: AudioCodec | None, num_stills: int = 0):
    self.dataset, self.video_codec, self.audio_codec = dataset, video_codec, audio_codec
    index = dataset.index
    video, audio = np.zeros((len(dataset), 3), np.int64), np.zeros(len(dataset), np.int64)
    if video_codec is not None:
      for i in np.flatnonzero(index['num_frames']):
        video[i] = video_codec.latent_shape(*(int(index[k][i]) for k in ('num_frames', 'height', 'width')))[:3]
    if audio_codec is not None:
      check_sample_rate(dataset, audio_codec.sample_rate)
      for i in np.flatnonzero(index['num_samples']):
        audio[i] = audio_codec.latent_length(int(index['num_samples'][i]))
    self.lengths = Lengths(video, audio)
    frames = np.where(video.all(1), index['num_frames'], 0)
    self.stills = [tasks.still_frames(i, int(n), num_stills) for i, n in enumerate(frames)]
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self.dataset)

  def __getitem__(self, i: int) -> LatentClip:
    return self.encode(i, self.dataset[i])

  def text(self, i: int) -> str:
    return self.dataset.text(i)

  def encode(self, i: int, clip: Clip) -> LatentClip:
    """Latents of clip i, which has been read already."""
    video = audio = None
    out = LatentClip(None, None, text=clip.text)
    with self._lock:
      if self.lengths.video[i].all():
        video = np.asarray(self.video_codec.encode(clip.video))
        stills = tuple(Still(np.asarray(self.video_codec.encode(clip.video[f:f + 1]))[0], f / clip.fps)
                       for f in self.stills[i])
        out = out._replace(fps=float(clip.fps), height=clip.video.shape[1], width=clip.video.shape[2],
                           stills=stills)
      if self.lengths.audio[i]:
        audio = np.asarray(self.audio_codec.encode(mix(clip.audio, self.audio_codec.channels)))
    for name, latent, shape in (('video', video, self.lengths.video[i]), ('audio', audio, self.lengths.audio[i:i + 1])):
      if latent is not None and latent.shape[:-1] != tuple(shape):
        raise ValueError(f'clip {i}: its {name} latents are {latent.shape[:-1]}, its index says {tuple(shape)}; '
                         'prepare the data again')
      if latent is not None and not np.abs(latent).max() < np.finfo(np.float16).max:
        raise ValueError(f'clip {i}: its {name} latents are not finite in float16; this codec has not trained soundly')
    return out._replace(video=video, audio=audio, **self.compressions)

  def on(self, device: jax.Device) -> 'EncodedSource':
    """The same, encoded on a device, at the same time as others."""
    other = copy.copy(self)
    other._lock = threading.Lock()
    other.video_codec, other.audio_codec = (codec and codec.on(device) for codec in (self.video_codec, self.audio_codec))
    return other

  @property
  def compressions(self) -> dict:
    video, audio = self.video_codec, self.audio_codec
    return {'temporal_compression': video.temporal_compression if video is not None else 1,
            'spatial_compression': video.spatial_compression if video is not None else 1,
            'latent_rate': float(audio.latent_rate) if audio is not None else 0.0}


def fingerprint(dataset) -> str:
  """Hash of what tells data sets apart without reading them whole: how prepared and, but for the world, from which
  files; all shapes, 64 of the captions."""
  digest = hashlib.sha256(json.dumps(dataset.info.get('config'), sort_keys=True, default=str).encode())
  digest.update((dataset.info.get('source') or '').encode())
  for name in sorted(dataset.index):
    digest.update(name.encode() + np.ascontiguousarray(dataset.index[name]).tobytes())
  for i in np.unique(np.linspace(0, len(dataset) - 1, 64).astype(int)):
    digest.update(dataset.text(int(i)).encode() + b'\0')
  return digest.hexdigest()[:16]


def cached(path: str | os.PathLike, dataset, video_codec: VideoCodec | None, audio_codec: AudioCodec | None, *,
           num_stills: int = 0) -> cache.LatentCache:
  """The cache at `path`, of all clips: what is missing is encoded by all processes of the run. Errors: as `write`."""
  write_ = functools.partial(write, path, dataset, video_codec, audio_codec, num_stills=num_stills)
  with watch.alone():
    write_(process_index=jax.process_index(), process_count=jax.process_count(), progress=processes.is_first())
  processes.wait()
  watch.mark()
  processes.on_first(lambda: write_(progress=False))  # the index, where no process has seen all parts finished
  hashes = [codec.hash() if codec is not None else '' for codec in (video_codec, audio_codec)]
  return cache.LatentCache.open(path, *hashes)


def write(path: str | os.PathLike, dataset, video_codec: VideoCodec | None, audio_codec: AudioCodec | None, *,
          num_stills: int = 0, config: CacheConfig = CacheConfig(), process_index: int = 0, process_count: int = 1,
          num_threads: int = 4, progress: bool = True) -> cache.LatentCache | None:
  """Encodes into the cache at `path` what is not there yet; None where other processes still have parts to write.

  The devices of this process encode clips of their own, a device for every CLIPS_A_DEVICE; num_threads read ahead.
  ValueError where `path` holds latents of other codecs, of another data set or with another number of stills, or cannot
  be written to; what it holds is kept.
  """
  path = os.fspath(path)
  source = EncodedSource(dataset, video_codec, audio_codec, num_stills)
  codecs = {'video': video_codec, 'audio': audio_codec}
  hashes = {name: codec.hash() if codec is not None else '' for name, codec in codecs.items()}
  record = {'format': cache.FORMAT, **{f'{name}_hash': value for name, value in hashes.items()},
            'dataset': fingerprint(dataset), 'num_stills': num_stills, **source.compressions,
            **dataclasses.asdict(config)}
  with _explained(path):
    (files.path(path) / cache.PARTS).mkdir(parents=True, exist_ok=True)
  have = cache.read_record(path)
  if have is not None:
    cache.check_codecs(path, have, hashes['video'], hashes['audio'])
    if have['dataset'] != record['dataset']:
      raise ValueError(f'the latents at {path} are of another data set ({have["dataset"]}, this one is '
                       f'{record["dataset"]}); encode into another folder')
    if have.get('num_stills', 0) != num_stills:
      raise ValueError(f'the latents at {path} have {have.get("num_stills", 0)} stills a clip, the tasks want '
                       f'{num_stills}; encode into another folder')
    record = have
  layout = _layout(source, record['shard_tokens'])
  record['num_parts'] = len(layout.parts) - 1
  with _explained(path):
    files.write(os.path.join(path, cache.RECORD), json.dumps(record, indent=2).encode())
    done = cache.finished_parts(path)
    parts = [p for p in range(process_index, record['num_parts'], process_count) if p not in done]
    arrays = {name: _array(os.path.join(path, name), layout.size[name], len(codec.mean_C), record)
              for name, codec in codecs.items() if codec is not None and layout.size[name]}
  _write_parts(path, source, layout, arrays, parts, num_threads, progress)
  if len(cache.finished_parts(path)) < record['num_parts']:
    return None
  with _explained(path):
    index = _index(path, dataset, source, layout)
    with files.writing(os.path.join(path, cache.INDEX)) as draft:
      np.savez(draft, **index)
  return cache.LatentCache.open(path, hashes['video'], hashes['audio'])


class Layout(NamedTuple):
  parts: np.ndarray             # int64[number of parts + 1]: part p is clips parts[p] .. parts[p + 1] - 1
  start: dict[str, np.ndarray]  # of 'video' and 'audio': int64[N], where a clip's tokens start
  size: dict[str, int]          # tokens of the whole array


def _layout(source: EncodedSource, shard_tokens: int) -> Layout:
  """Clips one after another, each followed by its stills; a part ends before either array's shard would be passed.

  What is left empty of its last shards costs nothing: chunks never written are not stored.
  """
  video, audio = source.lengths
  stills = video[:, 1:].prod(1) * [len(frames) for frames in source.stills]
  tokens = np.stack([video.prod(1) + stills, audio], 1).tolist()
  parts, starts = [0], []
  base, used = [0, 0], [0, 0]
  for i, clip in enumerate(tokens):
    if i > parts[-1] and any(u + n > shard_tokens for u, n in zip(used, clip)):
      parts.append(i)
      base = [b + -(-u // shard_tokens) * shard_tokens for b, u in zip(base, used)]
      used = [0, 0]
    starts.append([b + u for b, u in zip(base, used)])
    used = [u + n for u, n in zip(used, clip)]
  starts = np.array(starts, np.int64).reshape(-1, 2)
  size = [b + u for b, u in zip(base, used)]
  return Layout(np.array(parts + [len(tokens)]), {'video': starts[:, 0], 'audio': starts[:, 1]},
                {'video': size[0], 'audio': size[1]})


def _index(path, dataset, source, layout):
  """What index.npz holds; fps, height and width are 0 where there are no latents of a picture."""
  text = []
  for part in range(len(layout.parts) - 1):
    text += [t.encode() for t in json.loads(files.path(_part(path, part)).read_bytes())]
  lengths, seen = source.lengths, source.lengths.video.all(1)
  pictures = {name: np.where(seen, dataset.index[name], 0) for name in ('fps', 'height', 'width')}
  return {'video_start': layout.start['video'], 'video_shape': lengths.video, 'audio_start': layout.start['audio'],
          'audio_length': lengths.audio, **pictures, 'still_frame': np.concatenate([*source.stills, np.zeros(0, int)]),
          'still_start': np.cumsum([0] + [len(frames) for frames in source.stills]),
          'text': np.frombuffer(b''.join(text), np.uint8), 'text_start': np.cumsum([0] + [len(t) for t in text])}


def _part(path, part):
  return os.path.join(path, cache.PARTS, f'{part:06d}')


def _array(path, size, channels, record):
  raw = {'name': 'bytes', 'configuration': {'endian': 'little'}}  # latents do not compress
  sharding = {'chunk_shape': [record['chunk_tokens'], channels], 'codecs': [raw],
              'index_codecs': [raw, {'name': 'crc32c'}]}
  grid = {'name': 'regular', 'configuration': {'chunk_shape': [record['shard_tokens'], channels]}}
  metadata = {'shape': [size, channels], 'data_type': 'float16', 'chunk_grid': grid,
              'codecs': [{'name': 'sharding_indexed', 'configuration': sharding}]}
  return ts.open({'driver': 'zarr3', 'kvstore': files.kvstore(path), 'metadata': metadata}, create=True,
                 open=True).result()


def _write_parts(path, source, layout, arrays, parts, num_threads, progress):
  """Reads ahead in threads, encodes clips side by side, and writes each part while the next is encoded."""
  clips = [i for p in parts for i in range(layout.parts[p], layout.parts[p + 1])]
  pending = None
  bar = _bar(len(source), len(source) - len(clips), progress)
  with _encoding(source, clips, num_threads) as latents, bar as advance:
    for part in parts:
      encoded = []
      for _ in range(layout.parts[part], layout.parts[part + 1]):
        encoded.append(next(latents))
        watch.mark()
        advance()
      _finish(path, pending)
      tokens = {name: _tokens(encoded, name) for name in arrays}
      first = {name: layout.start[name][layout.parts[part]] for name in arrays}
      writes = [arrays[name][first[name]:first[name] + len(x)].write(x) for name, x in tokens.items() if len(x)]
      pending = part, [clip.text for clip in encoded], writes
    _finish(path, pending)


def _tokens(encoded, name):
  latents = []
  for clip in encoded:
    if (latent := getattr(clip, name)) is not None:
      latents += [latent, *(still.latent for still in clip.stills if name == 'video')]
  return np.concatenate([x.reshape(-1, x.shape[-1]) for x in latents]).astype(np.float16) if latents else []


def _finish(path, pending):
  if pending is not None:
    part, text, writes = pending
    with _explained(path):
      for write_ in writes:
        write_.result()
      files.write(_part(path, part), json.dumps(text).encode())


@contextlib.contextmanager
def _encoding(source, clips, num_threads):
  """Iterator over the latents of the clips in order; each is read ahead by a thread, and encoded on the first device
  that is free."""
  free = queue.SimpleQueue()
  devices = jax.local_devices()[:max(1, len(clips) // CLIPS_A_DEVICE)]
  for device in devices:
    free.put(source.on(device) if len(devices) > 1 else source)
  with (concurrent.futures.ThreadPoolExecutor(max(1, num_threads)) as readers,
        concurrent.futures.ThreadPoolExecutor(len(devices)) as encoders):
    def encoded(i, clip):
      there = free.get()
      try:
        return there.encode(i, clip.result())
      finally:
        free.put(there)

    def ahead():
      waiting = collections.deque()
      for i in clips:
        clip = readers.submit(source.dataset.__getitem__, int(i))
        waiting.append(encoders.submit(encoded, int(i), clip))
        if len(waiting) > 2 * (num_threads + len(devices)):
          yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()
    try:
      yield ahead()
    finally:
      for pool in (encoders, readers):
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _bar(total, done, show):
  """A progress bar with time left; gives the function that advances it by a clip."""
  if not show:
    yield lambda: None
    return
  from rich import progress
  columns = (progress.TextColumn('{task.description}'), progress.BarColumn(), progress.MofNCompleteColumn(),
             progress.TimeRemainingColumn())
  with progress.Progress(*columns) as bar:
    task = bar.add_task('encoding latents', total=total, completed=done)
    yield lambda: bar.advance(task)


@contextlib.contextmanager
def _explained(path):
  """A failure to write, as one line for the user."""
  try:
    yield
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or str(error).split('\n', 1)[0]
    raise ValueError(f'cannot write latents to {path}: {reason}; make room or choose another folder and start again '
                     '(finished parts are kept)') from error
