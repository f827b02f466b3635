"""One task of preparation, as a worker process does it: a file, or a run of world scenes, to a finished piece on disk.

A piece is PATH.examples (serialized examples, one after another) and PATH.json (their sizes, captions and index, and
what was rejected and why). The JSON is renamed into place last: a piece that has it is whole, and is never made again.
"""
import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from veojax.data import datasets, loudness, scenes, workers
from veojax.data.sources import Entry
from veojax.types import Clip

WHOLE_BYTES = 256 << 20     # a file that decodes to less is read once; a longer one twice: for cuts, then by span
VERBATIM_BYTES = 256 << 20  # a file larger than this is cut and encoded again rather than stored as it is


class OutputError(ValueError):
  """The output cannot be written; the message is one line with the remedy."""


@dataclasses.dataclass(frozen=True)
class FileTask:
  entry: Entry
  config: Any  # PrepareConfig
  path: str
  threads: int = 1

  @property
  def name(self) -> str:
    return self.entry.name

  @property
  def weight(self) -> float:
    return self.entry.size


@dataclasses.dataclass(frozen=True)
class WorldTask:
  """Scenes number start to stop of `config`, a WorldConfig of one split."""
  start: int
  stop: int
  seed: int
  world: Any  # WorldConfig
  split: str  # of the data set
  store: str
  only: str | None
  path: str

  @property
  def name(self) -> str:
    return f'scenes {self.start} to {self.stop - 1}'

  @property
  def weight(self) -> float:
    return self.stop - self.start


@contextlib.contextmanager
def writing(path):
  """Turns a failure to write below `path` into an OutputError."""
  try:
    yield
  except OSError as error:
    raise OutputError(f'cannot write {path}: {error.strerror or error}; make room and permission there and run again, '
                      'finished pieces are kept') from None
  except RuntimeError as error:  # array_record's
    if 'write() failed' not in str(error):
      raise
    reason = str(error).split(';')[0]
    raise OutputError(f'cannot write {path}: {reason}; make room there and run again, '
                      'finished pieces are kept') from None


def write_json(path: str, value: dict):
  """Atomically."""
  temporary = f'{path}.{os.getpid()}.tmp'
  with writing(path):
    with open(temporary, 'w') as file:
      json.dump(value, file)
    os.replace(temporary, path)


class Piece:
  """A piece being written."""

  def __init__(self, path: str):
    self.path, self.temporary = path, f'{path}.{os.getpid()}.tmp'
    self.clips, self.rejected, self.notes = [], [], []
    with writing(path):
      self.file = open(self.temporary, 'wb')

  def add(self, id: str, clip: Clip, media: bytes | None = None):
    record = datasets.serialize(id, clip, media)
    with writing(self.path):
      self.file.write(record)
    self.clips.append({'bytes': len(record), 'text': clip.text, 'seconds': clip.duration, **datasets.sizes(clip)})

  def finish(self) -> dict:
    with writing(self.path):
      self.file.close()
      os.replace(self.temporary, self.path + '.examples')
    pairs = lambda found: [list(pair) for pair in found]  # as they will be read
    summary = {'clips': self.clips, 'rejected': pairs(self.rejected), 'notes': pairs(self.notes)}
    write_json(self.path + '.json', summary)
    return summary

  def discard(self):
    with contextlib.suppress(OSError):
      self.file.close()
    with contextlib.suppress(OSError):
      os.unlink(self.temporary)


def load(path: str) -> dict | None:
  """The summary of a finished piece, or None."""
  try:
    with open(path + '.json') as file:
      return json.load(file)
  except FileNotFoundError:
    return None


def prepare(task: FileTask | WorldTask) -> dict:
  """Makes the piece of a task and returns its summary. OutputError when the output cannot be written."""
  piece = Piece(task.path)
  try:
    (_prepare_world if isinstance(task, WorldTask) else _prepare_file)(task, piece)
    return piece.finish()
  except BaseException:
    piece.discard()
    raise


def _prepare_world(task: WorldTask, piece: Piece):
  from veojax.data import world_clip
  for number in range(task.start, task.stop):
    clip, media = without(world_clip.make(task.seed + number, task.world), task.only), None
    if task.store == 'compressed':
      media = _encode(clip)
    elif task.store == 'rendered':
      media, clip.info = datasets.scene(task.seed + number, task.world), {}  # comes again with the rendering
    piece.add(f'{task.split}-{number:08d}', clip, media)
    workers.report((number + 1 - task.start) / (task.stop - task.start))


def _prepare_file(task: FileTask, piece: Piece):
  from veojax.data import media
  entry, config = task.entry, task.config
  try:
    for start, clip, whole in _clips(entry, config, task.threads, piece):
      clip = without(clip, config.only)
      if clip.video is None and clip.audio is None:
        piece.rejected.append((f'without {config.only}', f'{entry.name} at {start:.2f} s'))
        continue
      clip.text = entry.text
      clip.info = {'file': entry.name, 'start': start}
      piece.add(f'{entry.name}@{start:.3f}', clip, _media(entry, config, clip, whole))
  except media.MediaError as error:
    # What was read before the damage is sound, but half a file is no file: all or nothing.
    reason = str(error).replace(entry.path, '').lstrip(': ') or 'unreadable'
    piece.clips.clear()
    piece.rejected.clear()
    piece.rejected.append(('cannot be read', f'{entry.name} ({reason})'))
    piece.file.seek(0)
    piece.file.truncate()
    return
  if piece.clips and config.only != 'picture' and not any(clip['num_samples'] for clip in piece.clips):
    piece.notes.append(('without sound', entry.name))
  if piece.clips and config.only != 'sound' and not any(clip['num_frames'] for clip in piece.clips):
    piece.notes.append(('without picture', entry.name))


def without(clip: Clip, only: str | None) -> Clip:
  """The clip, or its picture or its sound alone."""
  if only == 'picture':
    return dataclasses.replace(clip, audio=None, sample_rate=0)
  return dataclasses.replace(clip, video=None, fps=0.0) if only == 'sound' else clip


def _encode(clip: Clip) -> bytes:
  from veojax.data import media
  if clip.video is None:
    return media.encode(clip, 'flac')
  return media.encode(clip, 'png' if len(clip.video) == 1 and clip.audio is None else 'mp4')


def _media(entry: Entry, config, clip: Clip, whole: bool) -> bytes | None:
  """What to store compressed: the file itself where the clip is all of it and nothing of it was changed."""
  if config.store == 'decoded':
    return None
  changes = (config.fps, config.height, config.width, config.max_side, config.sample_rate, config.channels,
             config.loudness, config.only, entry.audio)
  if whole and not any(changes) and entry.size <= VERBATIM_BYTES:
    with open(entry.path, 'rb') as file:
      return file.read()
  return _encode(clip)


def _clips(entry: Entry, config, threads: int, piece: Piece) -> Iterator[tuple[float, Clip, bool]]:
  """(start in seconds, clip, whether it is the whole file) of every clip that the file is cut into."""
  from veojax.data import media
  info = media.probe(entry.path)
  if info.kind == 'image' or _decoded_bytes(info, config) <= WHOLE_BYTES:
    clip = _read(entry, config, threads)
    length, cuts, take = clip.duration, _cuts_of(clip, config), functools.partial(part, clip)
  else:
    length, cuts = info.duration, _cuts_in(entry, config, threads, info)
    take = lambda start, end: _read(entry, config, threads, start, None if end == length else end - start)
  # Scenes first, then the limit within each: a scene that is too short must not be hidden by the split of another.
  for start, end in scenes.spans(length, cuts, None if info.kind == 'image' else config.max_seconds):
    whole = (start, end) == (0.0, length)
    place = entry.name if whole else f'{entry.name} [{start:.2f} to {end:.2f} s]'
    if info.kind != 'image' and end - start < config.min_seconds - 1e-6:
      piece.rejected.append((f'shorter than min_seconds={config.min_seconds:g}', place))
      continue
    clip = take(start, end)
    if clip.video is not None and clip.video.size < 4:
      piece.rejected.append(('a single pixel', place))
      continue
    if clip.audio is not None and config.loudness is not None:
      clip = dataclasses.replace(clip, audio=loudness.normalised(clip.audio, config.loudness))
    yield start, clip, whole
    workers.report(0.5 + 0.5 * end / length)


def part(clip: Clip, start: float, end: float) -> Clip:
  """The seconds [start, end) of a clip. Picture and sound are cut at the same time, that of the nearest frame."""
  video = audio = None
  if clip.video is not None:
    first = round(start * clip.fps)
    last = max(first + 1, round(end * clip.fps))
    video, start, end = clip.video[first:last], first / clip.fps, last / clip.fps
  if clip.audio is not None:
    audio = clip.audio[round(start * clip.sample_rate):round(end * clip.sample_rate)]
  return dataclasses.replace(clip, video=video, audio=audio)


def _decoded_bytes(info, config) -> float:
  height, width = info.height, info.width
  if config.max_side and max(height, width) > config.max_side:
    height, width = (side * config.max_side / max(info.height, info.width) for side in (height, width))
  elif config.height or config.width:
    height, width = config.height or info.height, config.width or info.width
  picture = (config.fps or info.fps) * height * width * 3 if info.has_video else 0
  return info.duration * (picture + 4 * info.sample_rate * info.channels)


def _read(entry: Entry, config, threads: int, start: float = 0.0, duration: float | None = None) -> Clip:
  from veojax.data import media
  sound = dict(sample_rate=config.sample_rate, channels=config.channels)
  clip = media.read(
      entry.path, fps=config.fps, height=config.height, width=config.width, max_side=config.max_side, start=start,
      duration=duration, threads=threads, **sound)
  if not entry.audio:
    return clip
  info = media.probe(entry.audio.path)
  if not info.has_audio:
    raise media.MediaError(f'{entry.audio.path}: it has no sound')
  rate = config.sample_rate or info.sample_rate
  audio_RC = np.zeros((round(clip.duration * rate), config.channels or info.channels), np.float32)
  if start < info.duration:
    heard = media.read(entry.audio.path, start=start, duration=clip.duration, threads=threads, **sound).audio
    heard = heard[:len(audio_RC)]
    audio_RC[:len(heard)] = heard  # silence after its end, as in any file whose sound is shorter than its picture
  return dataclasses.replace(clip, audio=audio_RC, sample_rate=rate)


def _cuts_of(clip: Clip, config) -> list[float]:
  """Times of the cuts in a clip at hand."""
  if clip.video is None or not config.scene_threshold or len(clip.video) < 2:
    return []
  return [k / clip.fps for k in scenes.find_cuts(scenes.distances(clip.video), config.scene_threshold)]


def _cuts_in(entry: Entry, config, threads: int, info) -> list[float]:
  """Times of the cuts in a file too long to hold in memory: decoded small, one frame at a time."""
  from veojax.data import media
  if not info.has_video or not config.scene_threshold:
    return []
  times = []
  def pictures():
    for time, frame_HW3 in media.frames(entry.path, threads=threads):
      times.append(time)
      if len(times) % 50 == 0:
        workers.report(min(0.5, 0.5 * time / info.duration))
      yield frame_HW3
  distances = scenes.distances(pictures())
  return [times[k] for k in scenes.find_cuts(distances, config.scene_threshold)]
