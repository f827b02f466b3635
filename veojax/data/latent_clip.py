"""A clip as the codecs give it: what a row is packed from, and a window or a beginning of it."""
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


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
