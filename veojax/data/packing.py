"""Clips of any shape as the tokens of one row, of a fixed number.

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
"""
import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from veojax.data.latent_clip import LatentClip, sound_frames
from veojax.types import AUDIO, GIVEN, TEXT, VIDEO, Tokens


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
  beside, num_levels = np.zeros(0, int), 1
  if clip.audio is not None:
    beside = sound_frames(clip, len(clip.audio)) - clip.first
  if clip.frame_levels:
    num_levels = len(clip.video) if clip.video is not None else 1 + int(beside.max(initial=0))
  levels = groups.levels(segment, num_levels)
  geometry = (clip.fps, clip.height, clip.width, clip.temporal_compression, clip.spatial_compression)
  if clip.audio is not None:
    position, extent = audio_geometry(len(clip.audio), clip.latent_rate, clip.height, clip.width)
    position = position + np.array([clip.first_sound / clip.latent_rate - clip.start, 0, 0], np.float32)
    at = _place(row, at, segment, AUDIO, position, extent, clip.audio,
                groups.of(segment, AUDIO, clip.audio_given, beside.clip(0, num_levels - 1), levels))
  for still in clip.stills:
    position, extent = video_geometry((1, *still.latent.shape[:2]), *geometry)
    at = _place(row, at, segment, VIDEO, position + np.array([still.time, 0, 0], np.float32), extent,
                still.latent.reshape(-1, still.latent.shape[-1]), groups.given(segment, VIDEO))
  if clip.video is not None:
    t, h, w, channels = clip.video.shape
    frames = np.arange(t).clip(0, num_levels - 1).repeat(h * w)
    at = _place(row, at, segment, VIDEO, *video_geometry((t, h, w), *geometry, clip.first > 0),
                clip.video.reshape(-1, channels), groups.of(segment, VIDEO, clip.video_given, frames, levels))
  return at


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
