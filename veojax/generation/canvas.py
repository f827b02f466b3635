"""What of a clip is known before it is made, and as which tokens the network is told.

A canvas holds the clip's pixels and samples, and for each whether it is known. What fills whole latent cells is given on
the grid: picture cells all of whose pixels are known, as long as no frame before them is wholly unknown (the codec looks
back, and would see what is not there), and sound latents all of whose samples are known. Whole frames that no given
cell holds, and references, are given as stills, at their own times. Masks so round outward; `paste` restores the rest.
"""
import dataclasses
import math

import numpy as np

from veojax.data import tasks
from veojax.data.latent_clip import LatentClip, Still

FEATHER = 3             # pixels inside what is known over which pasting fades
FEATHER_SECONDS = 0.01
SETTLING = 4            # made frames beside known ones over which the codec's error on those fades out
STILLS_OF_A_RUN = 3     # of known frames that no given cell holds, as many, a latent frame apart, are given as stills


@dataclasses.dataclass
class Canvas:
  """video: uint8[T, H, W, 3] with seen: bool[T, H, W]; audio: float32[R, channels] with heard: bool[R]; either half may
  be absent. references: uint8[H, W, 3] each."""
  fps: float
  video: np.ndarray | None = None
  seen: np.ndarray | None = None
  audio: np.ndarray | None = None
  heard: np.ndarray | None = None
  references: tuple[np.ndarray, ...] = ()

  @classmethod
  def empty(cls, shape: tuple[int, int, int] | None, fps: float, sound: tuple[int, int] | None) -> 'Canvas':
    """Nothing is known of a clip of `shape` (T, H, W) and `sound` (samples, channels); None: without it."""
    return cls(fps, *((np.zeros((*shape, 3), np.uint8), np.zeros(shape, bool)) if shape else (None, None)),
               *((np.zeros(sound, np.float32), np.zeros(sound[0], bool)) if sound else (None, None)))

  def put_frames(self, first: int, video: np.ndarray, top: int = 0, left: int = 0):
    """Frames are known from `first` on, within the rectangle at (top, left) that they fill."""
    area = (slice(first, first + len(video)), slice(top, top + video.shape[1]), slice(left, left + video.shape[2]))
    if self.video[area].shape != video.shape:
      raise ValueError(f'{len(video)} frames of {video.shape[1]}x{video.shape[2]} at frame {first} do not fit the clip '
                       f'of {len(self.video)} frames of {self.video.shape[1]}x{self.video.shape[2]}; give them its size')
    self.video[area], self.seen[area] = video, True

  def put_sound(self, first: int, audio: np.ndarray):
    """Samples are known from `first` on, as far as the clip goes."""
    end = min(len(self.audio), first + len(audio))
    self.audio[first:end], self.heard[first:end] = audio[:end - first], True

  def latents(self, video_codec, audio_codec, *, keep_unknown: bool = False) -> LatentClip:
    """The clip as packing takes it, without its text; unknown latents are zero unless kept, as an edit wants them."""
    out = LatentClip(None, None, fps=self.fps)
    if self.video is not None:
      tc, sc = video_codec.temporal_compression, video_codec.spatial_compression
      whole = self.video if keep_unknown else filled(self.video, self.seen)
      latent = (np.asarray(video_codec.encode(whole)) if keep_unknown or self.seen.any() else
                np.zeros(video_codec.latent_shape(*self.seen.shape), np.float32))
      known = known_cells(self.seen, latent.shape[:3], tc, sc)
      stills = [Still(self._still(video_codec, self.video[frame]), frame / self.fps)
                for frame in loose_frames(self.seen, known, tc)]
      stills += [Still(self._still(video_codec, image), tasks.REFERENCE_TIME) for image in self.references]
      out = out._replace(
          video=latent if keep_unknown else latent * known[..., None], video_given=known, stills=tuple(stills),
          height=self.video.shape[1], width=self.video.shape[2], temporal_compression=tc, spatial_compression=sc)
    if self.audio is not None:
      latent = (np.asarray(audio_codec.encode(self.audio)) if keep_unknown or self.heard.any() else
                np.zeros((audio_codec.latent_length(len(self.audio)), audio_codec.latent_channels), np.float32))
      hop = audio_codec.sample_rate / audio_codec.latent_rate
      starts = np.minimum(np.round(np.arange(len(latent)) * hop).astype(int), len(self.heard) - 1)
      known = np.logical_and.reduceat(self.heard, starts)
      out = out._replace(audio=latent if keep_unknown else latent * known[:, None], audio_given=known,
                         latent_rate=float(audio_codec.latent_rate))
    return out

  def _still(self, video_codec, image: np.ndarray) -> np.ndarray:
    return np.asarray(video_codec.encode(image[None]))[0]

  def paste(self, clip, sample_rate: int):
    """Writes what is known over a made clip, fading over FEATHER pixels and FEATHER_SECONDS inside what is known.

    Wholly made frames beside wholly known ones are corrected by what the codec gets wrong there, so that no seam in
    time shows.
    """
    if self.video is not None:
      clip.video = settled(clip.video, self.video, self.seen)
      weight = inside(self.seen, FEATHER)[..., None]
      clip.video = np.where(weight == 1, self.video,
                            np.round(weight * self.video + (1 - weight) * clip.video)).astype(np.uint8)
    if self.audio is not None:
      weight = _ramp(self.heard, round(FEATHER_SECONDS * sample_rate))[:, None]
      clip.audio = np.where(weight == 1, self.audio, weight * self.audio + (1 - weight) * clip.audio).astype(np.float32)


def cell_frames(k: int, temporal_compression: int) -> slice:
  """The frames of latent frame k."""
  return slice(max(0, temporal_compression * (k - 1) + 1), temporal_compression * k + 1)


def known_cells(seen: np.ndarray, shape: tuple[int, int, int], tc: int, sc: int) -> np.ndarray:
  """bool[t, h, w]: cells all of whose pixels are known, before the first frame of which nothing is."""
  t, h, w = shape
  frames = np.stack([seen[cell_frames(k, tc)].all(0) for k in range(t)])
  rows = np.logical_and.reduceat(frames, np.arange(h) * sc, 1)
  known = np.logical_and.reduceat(rows, np.arange(w) * sc, 2)
  lost = np.flatnonzero(~seen.any((1, 2)))
  if len(lost):
    known[math.ceil((lost[0] + tc - 1) / tc) if lost[0] else 0:] = False
  return known


def loose_frames(seen: np.ndarray, known: np.ndarray, tc: int) -> list[int]:
  """Known whole frames to be given as stills: of each run that no given cell holds, a few, a latent frame apart; of one
  that follows given cells the last, which is nearest to what is to be made."""
  held = np.zeros(len(seen), bool)
  for k in range(len(known)):
    held[cell_frames(k, tc)] = known[k].all()
  loose = seen.all((1, 2)) & ~held
  edges = np.flatnonzero(np.diff(np.concatenate([[0], loose.astype(int), [0]])))
  frames = []
  for first, end in edges.reshape(-1, 2).tolist():
    if first and held[first - 1]:
      frames.append(end - 1)
    else:
      frames += range(first, end, tc)[:STILLS_OF_A_RUN]
  return frames


def filled(video: np.ndarray, seen: np.ndarray) -> np.ndarray:
  """The clip with something plausible where nothing is known: the pixel's last known value, else its next known one,
  else the mean colour of what is known."""
  if seen.all() or not seen.any():
    return video
  frame = np.arange(len(video))[:, None, None]
  last = np.maximum.accumulate(np.where(seen, frame, -1), 0)
  after = np.minimum.accumulate(np.where(seen, frame, len(video))[::-1], 0)[::-1]
  index = np.where(last >= 0, last, np.where(after < len(video), after, 0))
  out = np.take_along_axis(video, index[..., None], 0)
  never = (last < 0) & (after == len(video))
  out[never] = video[seen].mean(0).round().astype(np.uint8)
  return out


def settled(made: np.ndarray, video: np.ndarray, seen: np.ndarray) -> np.ndarray:
  """Made frames, corrected by what is wrong in the nearest wholly known frame, less with distance."""
  whole, lost = seen.all((1, 2)), ~seen.any((1, 2))
  correction, total = np.zeros(made.shape, np.float32), np.zeros(len(made), np.float32)
  for edge in np.flatnonzero(whole):
    for step in (-1, 1):
      for distance in range(1, SETTLING + 1):
        frame = edge + step * distance
        if not 0 <= frame < len(made) or not lost[frame]:
          break
        weight = 1 - distance / (SETTLING + 1)
        correction[frame] += weight * (video[edge] - made[edge].astype(np.float32))
        total[frame] += weight
  out = made + correction / np.maximum(total, 1)[:, None, None, None]
  return np.round(np.clip(out, 0, 255)).astype(np.uint8)


def inside(seen: np.ndarray, feather: int) -> np.ndarray:
  """float32[T, H, W]: 0 at what is unknown, rising to 1 `feather` pixels inside of what is known, within each frame."""
  weight = np.ones(seen.shape, np.float32)
  padded = np.pad(seen, ((0, 0), (feather, feather), (feather, feather)), 'edge')
  for r in range(1, feather + 1):
    size = 2 * r - 1
    window = np.lib.stride_tricks.sliding_window_view(
        padded[:, feather - r + 1:padded.shape[1] - feather + r - 1, feather - r + 1:padded.shape[2] - feather + r - 1],
        (size, size), (1, 2))
    weight = np.minimum(weight, np.where(window.all((-1, -2)), 1, (r - 1) / feather))
  return weight.astype(np.float32)


def _ramp(heard: np.ndarray, length: int) -> np.ndarray:
  """float32[R]: 0 at what is unknown, rising to 1 over `length` samples inside of what is known."""
  unknown = np.flatnonzero(~heard)
  if not len(unknown):
    return np.ones(len(heard), np.float32)
  at = np.searchsorted(unknown, np.arange(len(heard)))
  before = np.arange(len(heard)) - unknown[np.maximum(at - 1, 0)]
  after = unknown[np.minimum(at, len(unknown) - 1)] - np.arange(len(heard))
  distance = np.minimum(np.where(at > 0, before, len(heard)), np.where(at < len(unknown), after, len(heard)))
  return np.clip(distance / max(1, length), 0, 1).astype(np.float32)
