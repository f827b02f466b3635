"""Clips of any shape into rows of a fixed number of tokens: which clips share a row, and the row's tokens.

A row's segments stand one after another, each as text, then sound, then stills, then picture (frame by frame, top to
bottom, left to right); padding is at the end. Positions are the centres, and extents the lengths, of what a token covers:

  picture, cell (k, i, j)   k = 0: frame 0 alone, the instant 0; k >= 1: frames tc(k-1)+1 .. tc k, as the causal codec
                            groups them, the time (tc(k-1), tc k] / fps up to the instant that the last of them shows.
                            y = ((i + 1/2) sc - H/2) / sqrt(H W), and x likewise; sc and tc are the codec's
                            compressions, H and W the pixels of the clip itself (before the codec pads it).
  sound, latent j           [j, j + 1) / rate seconds; centred in space, as large as the frame.
  still                     the cells of one frame, encoded alone, at the instant that it shows.
  text                      position 0, extent 0.

A window from within a clip (`first`, `first_sound`) begins at its own time 0, the instant before its first cell.

So what is shown has one place at every frame rate and resolution: at twice the rate two cells share what one covers
now, at twice the size four. A still image is an instant.

Noise-level groups of a row are numbered as they come; 0 is padding. What is to be made of a clip has one time in all, or
one for each latent frame and the sound beside it (`frame_levels`); text, stills and given tokens have none.

An epoch's rows are planned from the index of lengths alone, as a pure function of (seed, epoch), and every epoch has
the same number of rows. So a global row number says by one division which epoch and which clips it is made of.
"""
import bisect
import dataclasses
import functools
import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from veojax.types import AUDIO, GIVEN, TEXT, VIDEO, Tokens

SHUFFLE, SHUFFLE_ROWS = 1, 2  # streams of random numbers, so that one seed serves several uses
MAX_OPEN_ROWS = 256  # rows kept open while an epoch is planned: more fill better and take longer
# Clips of a shuffled block, and what it is sorted by: all tokens (0) fill best, text (1) where text is what runs short.
ORDERS = ((64, 0), (16, 1))


@dataclasses.dataclass(frozen=True)
class PackConfig:
  row_tokens: int = 1024   # L: all tokens of a row
  text_tokens: int = 256   # S: text tokens among them
  max_clips: int = 8       # segments of a row
  max_text: int = 128      # text tokens of one clip; longer captions are truncated by the tokenizer
  channels: int = 32       # C: the widest modality's
  groups_per_clip: int = 6  # noise-level groups: text; sound and picture, to be made and given; stills

  def __post_init__(self):
    if min(self.row_tokens, self.text_tokens, self.max_clips, self.max_text, self.channels) < 1:
      raise ValueError(f'every size of a row must be at least 1: {self}')
    if self.max_text < 2:
      raise ValueError(f'max_text={self.max_text} has no room for the beginning and end of a caption; give at least 2')
    if self.max_text > min(self.text_tokens, self.row_tokens):
      raise ValueError(f'max_text={self.max_text} does not fit a row of text_tokens={self.text_tokens}, '
                       f'row_tokens={self.row_tokens}; lower max_text')

  @property
  def num_groups(self) -> int:
    """G: padding, and those of each segment."""
    return 1 + self.groups_per_clip * self.max_clips


class Still(NamedTuple):
  """One frame encoded alone, given outside the grid: a last frame, a keyframe; at a time before 0 a reference."""
  latent: np.ndarray  # float[h, w, C]
  time: float         # seconds, when it begins to be shown


class LatentClip(NamedTuple):
  """One clip as the codecs give it, with what places it in time and space, and what of it is given.

  video: float[t, h, w, C] or None; audio: float[n, C] or None. height and width are pixels, 0 without picture.
  """
  video: np.ndarray | None
  audio: np.ndarray | None
  text_ids: Sequence[int] = ()
  fps: float = 0.0
  height: int = 0
  width: int = 0
  temporal_compression: int = 1
  spatial_compression: int = 1
  latent_rate: float = 0.0  # sound latents a second
  text: str = ''            # the caption, before the tokenizer
  video_given: np.ndarray | None = None  # bool[t, h, w]; None: nothing
  audio_given: np.ndarray | None = None  # bool[n]
  stills: tuple[Still, ...] = ()
  frame_levels: bool = False  # every latent frame has a noise level of its own (diffusion forcing)
  first: int = 0        # numbers, in the whole clip, of the first latent frame and the first sound latent: above 0 in a
  first_sound: int = 0  # window from within a clip

  @property
  def num_tokens(self) -> int:
    picture = math.prod(self.video.shape[:3]) if self.video is not None else 0
    stills = sum(math.prod(still.latent.shape[:2]) for still in self.stills)
    return len(self.text_ids) + (len(self.audio) if self.audio is not None else 0) + stills + picture

  @property
  def start(self) -> float:
    """Seconds of the whole clip before this window."""
    return (self.first - 1) * self.temporal_compression / self.fps if self.first else 0.0


@dataclasses.dataclass(frozen=True)
class Rows:
  """Which clips stand in each row of an epoch: row r holds clips[start[r]:start[r + 1]]."""
  clips: np.ndarray  # int64[number of clips]
  start: np.ndarray  # int64[number of rows + 1]

  def __len__(self):
    return len(self.start) - 1

  def __getitem__(self, row: int) -> np.ndarray:
    return self.clips[self.start[row]:self.start[row + 1]]


# Planning.


def plan(lengths: np.ndarray, config: PackConfig, seed: int, epoch: int, rows: int | None = None,
         bound: np.ndarray | None = None) -> Rows:
  """Rows of an epoch: every clip exactly once, always `num_rows(bound, config, seed)` rows (pass it where known).

  lengths: int[N, 2], for each clip its tokens and the text tokens among them. bound: the lengths that no epoch's
  exceed, where they change from epoch to epoch. Best fit over a shuffled order (Johnson 1974), so which clips meet
  differs from epoch to epoch.
  """
  bound = lengths if bound is None else bound
  rows = num_rows(bound, config, seed) if rows is None else rows
  for attempt in range(4):
    bins = _fewest(lengths, config, seed, epoch, attempt)
    if len(bins) <= rows:
      break
  else:
    bins = _fewest(bound, config, seed, 0, 0)
  _split(bins, rows)
  bins = [bins[i] for i in np.random.default_rng([seed, SHUFFLE_ROWS, epoch]).permutation(rows)]
  start = np.cumsum([0] + [len(b) for b in bins])
  return Rows(np.concatenate([np.array(b, np.int64) for b in bins]), start)


def num_rows(lengths: np.ndarray, config: PackConfig, seed: int) -> int:
  """Rows of every epoch: enough for the plans of the first few epochs as they come.

  A later epoch that comes out longer is shuffled again, and at last takes the rows of epoch 0, which are known to do;
  one that comes out shorter has some of its rows split.
  """
  _check(lengths, config)
  probes = min(8, max(1, 100_000 // len(lengths)))
  most = max(len(_fewest(lengths, config, seed, epoch, 0)) for epoch in range(probes))
  return min(len(lengths), most + most // 500)


def _check(lengths, config):
  if not len(lengths):
    raise ValueError('there are no clips to pack; prepare some, or see why all of them were left out')
  if lengths[:, 0].min() < 1 or lengths[:, 0].max() > config.row_tokens or lengths[:, 1].max() > config.text_tokens:
    raise ValueError(f'clips of {lengths[:, 0].min()} to {lengths[:, 0].max()} tokens, at most {lengths[:, 1].max()} '
                     f'of them text, do not fit rows of {config.row_tokens} tokens, {config.text_tokens} of them text; '
                     'raise row_tokens and text_tokens, or prepare shorter or smaller clips')


def _fewest(lengths, config, seed, epoch, attempt) -> list[list[int]]:
  """The better of the plans that the orders give."""
  shuffled = np.random.default_rng([seed, SHUFFLE, epoch, attempt]).permutation(len(lengths))
  return min((_best_fit(_order(shuffled, lengths, *order), lengths, config) for order in ORDERS), key=len)


def _order(shuffled, lengths, size, by):
  """A shuffled order, in short blocks the longest first: they fill better, and who meets whom is left to chance."""
  blocks = np.array_split(shuffled, max(8, len(shuffled) // size))
  return np.concatenate([block[np.argsort(-lengths[block, by], kind='stable')] for block in blocks])


def _best_fit(order, lengths, config) -> list[list[int]]:
  """Each clip in turn into the fullest open row that still takes it."""
  tokens, text = lengths[:, 0].tolist(), lengths[:, 1].tolist()
  smallest, smallest_text = min(tokens), min(text)
  bins, text_room = [], []
  open_rows = []  # sorted (room, row)
  for clip in order.tolist():
    at = bisect.bisect_left(open_rows, (tokens[clip], -1))
    while at < len(open_rows) and text_room[open_rows[at][1]] < text[clip]:
      at += 1
    if at < len(open_rows):
      room, row = open_rows.pop(at)
    else:
      room, row = config.row_tokens, len(bins)
      bins.append([])
      text_room.append(config.text_tokens)
    bins[row].append(clip)
    room -= tokens[clip]
    text_room[row] -= text[clip]
    if room >= smallest and text_room[row] >= smallest_text and len(bins[row]) < config.max_clips:
      bisect.insort(open_rows, (room, row))
      if len(open_rows) > MAX_OPEN_ROWS:
        del open_rows[0]
  return bins


def _split(bins, rows):
  """Moves clips out of the rows with the most of them until there are `rows` rows."""
  heap = [(-len(b), i) for i, b in enumerate(bins)]
  heapq.heapify(heap)
  while len(bins) < rows:
    size, i = heapq.heappop(heap)
    assert size < -1, (size, rows)
    bins.append([bins[i].pop()])
    heapq.heappush(heap, (size + 1, i))


# Tokens.


def pack(clips: Sequence[LatentClip], config: PackConfig) -> Tokens:
  """One row, without the batch dim; segment s is clips[s - 1]. ValueError where the clips do not fit."""
  total, text = sum(c.num_tokens for c in clips), sum(len(c.text_ids) for c in clips)
  if len(clips) > config.max_clips or total > config.row_tokens or text > config.text_tokens:
    raise ValueError(f'{len(clips)} clips of {total} tokens, {text} of them text, do not fit a row of max_clips='
                     f'{config.max_clips}, row_tokens={config.row_tokens}, text_tokens={config.text_tokens}')
  row, at, text_at = empty_row(config), 0, 0
  groups = Groups(row)
  for segment, clip in enumerate(clips, 1):
    ids = np.asarray(clip.text_ids, np.int32)
    end = text_at + len(ids)
    row.text[text_at:end] = ids
    row.text_segment[text_at:end] = segment
    row.text_index[at:at + len(ids)] = np.arange(text_at, end)
    nowhere = np.zeros((len(ids), 3), np.float32)
    at = _place(row, at, segment, TEXT, nowhere, nowhere, None, groups.given(segment, TEXT) if len(ids) else 0)
    at = _place_media(row, at, segment, clip, groups)
    text_at = end
  return row


def _place_media(row, at, segment, clip, groups) -> int:
  frames = np.zeros(clip.video.shape[:3], int) if clip.video is not None else np.zeros((1, 1, 1), int)
  if clip.frame_levels:
    frames += np.arange(len(frames))[:, None, None]
  levels = groups.levels(segment, len(frames) if clip.frame_levels else 1)
  geometry = (clip.fps, clip.height, clip.width, clip.temporal_compression, clip.spatial_compression)
  if clip.audio is not None:
    position, extent = audio_geometry(len(clip.audio), clip.latent_rate, clip.height, clip.width)
    position = position + np.array([clip.first_sound / clip.latent_rate - clip.start, 0, 0], np.float32)
    beside = np.clip(sound_frames(clip, len(clip.audio)) - clip.first, 0, frames.max())
    at = _place(row, at, segment, AUDIO, position, extent, clip.audio,
                groups.of(segment, AUDIO, clip.audio_given, beside, levels))
  for still in clip.stills:
    position, extent = video_geometry((1, *still.latent.shape[:2]), *geometry)
    at = _place(row, at, segment, VIDEO, position + np.array([still.time, 0, 0], np.float32), extent,
                still.latent.reshape(-1, still.latent.shape[-1]), groups.given(segment, VIDEO))
  if clip.video is not None:
    at = _place(row, at, segment, VIDEO, *video_geometry(clip.video.shape[:3], *geometry, clip.first > 0),
                clip.video.reshape(-1, clip.video.shape[-1]),
                groups.of(segment, VIDEO, clip.video_given, frames.ravel(), levels))
  return at


def sound_frames(clip: LatentClip, length: int) -> np.ndarray:
  """int[length]: the latent frame, counted in the whole clip, beside which each sound latent is heard."""
  middle = (clip.first_sound + np.arange(length) + 0.5) / clip.latent_rate
  return np.ceil(middle * clip.fps / clip.temporal_compression - 1e-9).astype(int)


def window(clip: LatentClip, first: int, end: int) -> LatentClip:
  """Latent frames first to end, counted in the whole clip, with the sound beside them; the last frame of what `clip`
  holds keeps the sound after it too."""
  last = clip.first + len(clip.video)
  out = clip._replace(video=clip.video[first - clip.first:end - clip.first], first=first)
  if clip.audio is None:
    return out
  beside = np.minimum(sound_frames(clip, len(clip.audio)), last - 1)
  low, high = np.searchsorted(beside, [first, end])
  return out._replace(audio=clip.audio[low:high], first_sound=clip.first_sound + int(low))


class Groups:
  """Gives out the noise-level groups of a row, in order."""

  def __init__(self, row: Tokens):
    self.row, self.next, self.num_levels, self.known = row, 1, 0, {}

  def levels(self, segment: int, count: int) -> np.ndarray:
    """Numbers of `count` new times."""
    self.num_levels += count
    return np.arange(self.num_levels - count, self.num_levels)

  def given(self, segment: int, modality: int) -> int:
    return self._group(segment, modality, GIVEN)

  def of(self, segment: int, modality: int, given, frame, levels) -> np.ndarray:
    """The group of every token, from whether it is given and from its frame's number among `levels`."""
    level = np.where(False if given is None else np.ravel(given), GIVEN, levels[frame])
    values, index = np.unique(level, return_inverse=True)
    return np.array([self._group(segment, modality, int(v)) for v in values])[index]

  def _group(self, segment, modality, level) -> int:
    key = segment, modality, level
    if key not in self.known:
      if self.next >= len(self.row.group_modality):
        raise ValueError(f'segment {segment} has more noise levels than the row\'s {len(self.row.group_modality)} groups '
                         'hold; raise groups_per_clip')
      self.known[key] = self.next
      self.row.group_segment[self.next], self.row.group_modality[self.next] = segment, modality
      self.row.group_level[self.next] = level
      self.next += 1
    return self.known[key]


def unpack(row: Tokens, segment: int, video_shape: tuple[int, int, int, int] | None = None,
           audio_shape: tuple[int, int] | None = None) -> tuple[np.ndarray | None, np.ndarray | None]:
  """(video [t, h, w, C], audio [n, C]) of a segment of one row (no batch dim); None where no shape is given."""
  def take(modality, shape):
    if shape is None:
      return None
    mine, count = np.flatnonzero((row.segment == segment) & (row.modality == modality)), math.prod(shape[:-1])
    if len(mine) < count:
      raise ValueError(f'segment {segment} has {len(mine)} tokens of modality {modality}; shape {shape} wants {count}')
    return np.asarray(row.latent)[mine[len(mine) - count:], :shape[-1]].reshape(shape)  # stills stand before the grid
  return take(VIDEO, video_shape), take(AUDIO, audio_shape)


@functools.lru_cache(64)
def video_geometry(shape: tuple[int, int, int], fps: float, height: int, width: int, temporal_compression: int,
                   spatial_compression: int, within: bool = False) -> tuple[np.ndarray, np.ndarray]:
  """(position, extent) of the cells of a picture, float32[t h w, 3] each: (seconds, y, x). height, width: pixels.
  `within`: none of them is a clip's frame 0, an instant."""
  t, h, w = shape
  end = temporal_compression * (np.arange(t) + within)
  start = np.maximum(end - temporal_compression, 0)
  unit = math.sqrt(height * width)
  y = ((np.arange(h) + 0.5) * spatial_compression - height / 2) / unit
  x = ((np.arange(w) + 0.5) * spatial_compression - width / 2) / unit
  position = np.stack(np.meshgrid((start + end) / (2 * fps), y, x, indexing='ij'), -1)
  extent = np.empty_like(position)
  extent[..., 0] = ((end - start) / fps)[:, None, None]
  extent[..., 1:] = spatial_compression / unit
  return _frozen(position), _frozen(extent)


@functools.lru_cache(64)
def audio_geometry(length: int, latent_rate: float, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """(position, extent) of sound latents, float32[length, 3] each; as large as the frame, or 1 x 1 without picture."""
  unit = math.sqrt(height * width) or 1.0
  position = np.zeros((length, 3))
  position[:, 0] = (np.arange(length) + 0.5) / latent_rate
  extent = np.tile([1 / latent_rate, (height or 1) / unit, (width or 1) / unit], (length, 1))
  return _frozen(position), _frozen(extent)


def _frozen(geometry):
  out = geometry.reshape(-1, 3).astype(np.float32)
  out.flags.writeable = False  # shared by every clip of this shape
  return out


def empty_row(config) -> Tokens:
  L, S, G = config.row_tokens, config.text_tokens, config.num_groups
  ints = {name: np.zeros(size, np.int32) for name, size in (
      ('modality', L), ('segment', L), ('group', L), ('group_modality', G), ('group_segment', G), ('group_level', G),
      ('text', S), ('text_segment', S), ('text_index', L))}
  ints['group_level'][:] = GIVEN
  return Tokens(latent=np.zeros((L, config.channels), np.float32), position=np.zeros((L, 3), np.float32),
                extent=np.zeros((L, 3), np.float32), **ints)


def _place(row, at, segment, modality, position, extent, latent, group) -> int:
  """Writes tokens of one modality, of one group or each of its own, from `at` on; returns where they end."""
  end = at + len(position)
  if end == at:
    return at
  if latent is not None:
    if latent.shape[-1] > row.latent.shape[-1]:
      raise ValueError(f'latents of {latent.shape[-1]} channels do not fit tokens of {row.latent.shape[-1]}; '
                       'raise channels')
    row.latent[at:end, :latent.shape[-1]] = latent
  row.modality[at:end], row.segment[at:end], row.group[at:end] = modality, segment, group
  row.position[at:end], row.extent[at:end] = position, extent
  return end


def cut(clip: LatentClip, num_tokens: int) -> LatentClip:
  """The longest beginning of a clip that fits num_tokens, picture and sound ending together; caption whole."""
  if clip.num_tokens <= num_tokens:
    return clip
  room = num_tokens - len(clip.text_ids)
  if clip.video is None:
    return clip._replace(audio=clip.audio[:room])
  t, h, w, _ = clip.video.shape
  if h * w > room:
    raise ValueError(f'one latent frame of {h} x {w} does not fit {room} tokens; raise row_tokens')
  sound = len(clip.audio) if clip.audio is not None else 0
  for keep in range(min(t, room // (h * w)), 0, -1):
    seconds = (clip.temporal_compression * (keep - 1) + 1) / clip.fps
    heard = min(sound, math.ceil(seconds * clip.latent_rate))
    if keep * h * w + heard <= room:
      break
  heard = min(heard, room - keep * h * w)
  return clip._replace(video=clip.video[:keep], audio=clip.audio[:heard] if sound else None)
