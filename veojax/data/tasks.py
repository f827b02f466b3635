"""What is given of a clip in training: a task is a set of tokens at noise 0, drawn from a mixture.

Every task of generation is one of these, or a mixture of them: the network is not told which, it sees what is given.
"""
import dataclasses

import numpy as np

from veojax.data import latent_clip
from veojax.data.latent_clip import LatentClip


@dataclasses.dataclass(frozen=True)
class TaskConfig:
  """Weights of the tasks in the mixture. What a clip cannot do, for want of sound, picture or length, is `generate`.

  generate     nothing is given
  image        only the first frame is made, without sound
  sound        only the sound is made, without picture
  first_frame  the first frame is given
  extend       a beginning is given, of sound and picture, of any length
  last_frame   the last frame is given, as a still; half of the time the first one too
  keyframes    any of the stills are given
  reference    a still is given outside the clip's time
  inpaint      the cells outside a box are given, in some or all frames; or, for outpainting, those inside
  soundtrack   the picture is given
  picture      the sound is given
  forcing      nothing is given, and every latent frame has a noise level of its own (Chen et al. 2024)
  stream       a window from within the clip, of which a beginning may be given, and every later latent frame has a
               noise level of its own: what `generation.stream` asks for
  """
  generate: float = 1.0
  image: float = 0.0
  sound: float = 0.0
  first_frame: float = 0.0
  extend: float = 0.0
  last_frame: float = 0.0
  keyframes: float = 0.0
  reference: float = 0.0
  inpaint: float = 0.0
  soundtrack: float = 0.0
  picture: float = 0.0
  forcing: float = 0.0
  stream: float = 0.0

  def __post_init__(self):
    for name, weight in vars(self).items():
      if not weight >= 0:
        raise ValueError(f'tasks.{name}={weight}; a weight is 0 or more')
    if not sum(vars(self).values()) > 0:
      raise ValueError('tasks: all weights are 0; give one of them a positive weight')

  @property
  def num_stills(self) -> int:
    """Stills that a clip needs, and tokens are kept free for."""
    return 2 if self.keyframes else int(self.last_frame > 0 or self.reference > 0)


def still_frames(clip: int, num_frames: int, num_stills: int) -> np.ndarray:
  """Frames of a clip that are encoded alone: the last one, then some in between, fixed by the clip's number."""
  if num_frames < 2 or not num_stills:
    return np.zeros(0, np.int64)
  between = np.random.default_rng([clip, num_frames]).permutation(np.arange(1, num_frames - 1))
  return np.concatenate([[num_frames - 1], np.resize(between, num_stills - 1) if len(between) else
                         np.full(num_stills - 1, num_frames - 1)]).astype(np.int64)


def draw(clip: LatentClip, config: TaskConfig, rng: np.random.Generator) -> LatentClip:
  """The clip with what one task of the mixture gives. Of its stills those stay that are given."""
  plain = clip._replace(stills=())
  names = [name for name, weight in vars(config).items() if weight and DRAW[name][0](clip)]
  if not names:
    return plain
  weights = np.array([getattr(config, name) for name in names])
  name = rng.choice(names, p=weights / weights.sum())
  return DRAW[name][1](clip, plain, rng)


def _first_frame(clip, plain, rng):
  return plain._replace(video_given=_frames(clip, 1))


def _extend(clip, plain, rng):
  frames = int(rng.integers(1, len(clip.video)))
  seconds = (clip.temporal_compression * (frames - 1) + 1) / clip.fps
  heard = None
  if clip.audio is not None:
    heard = (np.arange(len(clip.audio)) + 1) / clip.latent_rate <= seconds + 1e-6
  return plain._replace(video_given=_frames(clip, frames), audio_given=heard)


def _last_frame(clip, plain, rng):
  return plain._replace(stills=clip.stills[:1], video_given=_frames(clip, 1) if rng.random() < 0.5 else None)


def _keyframes(clip, plain, rng):
  keep = rng.random(len(clip.stills)) < 0.5
  keep[rng.integers(len(keep))] = True
  return plain._replace(stills=tuple(still for still, kept in zip(clip.stills, keep) if kept))


def _reference(clip, plain, rng):
  still = clip.stills[rng.integers(len(clip.stills))]
  return plain._replace(stills=(still._replace(time=REFERENCE_TIME),))


def _inpaint(clip, plain, rng):
  t, h, w = clip.video.shape[:3]
  inside = np.zeros((t, h, w), bool)
  box = [sorted(rng.choice(size + 1, 2, replace=False)) for size in (h, w)]
  frames = slice(None) if rng.random() < 0.5 else slice(*sorted(rng.choice(t + 1, 2, replace=False)))
  inside[frames, slice(*box[0]), slice(*box[1])] = True
  given = inside if rng.random() < 0.5 else ~inside
  return plain._replace(video_given=given & ~given.all())


def _stream(clip, plain, rng):
  first, end = sorted(rng.choice(len(clip.video) + 1, 2, replace=False).tolist())
  window = latent_clip.window(plain, first, end)
  frames = int(rng.integers(end - first))
  heard = None if window.audio is None else latent_clip.sound_frames(window, len(window.audio)) < first + frames
  return window._replace(video_given=_frames(window, frames), audio_given=heard, frame_levels=True)


def _frames(clip, count):
  given = np.zeros(clip.video.shape[:3], bool)
  given[:count] = True
  return given


REFERENCE_TIME = -1.0  # seconds: where a reference stands, outside the clip
_moves = lambda clip: clip.video is not None and len(clip.video) > 1
_both = lambda clip: clip.video is not None and clip.audio is not None
_stills = lambda clip: _moves(clip) and bool(clip.stills)
_everything = lambda x: np.ones(x.shape[:-1], bool)
# What a clip must have for a task, and what the task makes of it.
DRAW = {
    'generate': (lambda clip: True, lambda clip, plain, rng: plain),
    'image': (_moves, lambda clip, plain, rng: plain._replace(video=clip.video[:1], audio=None)),
    'sound': (_both, lambda clip, plain, rng: plain._replace(video=None)),
    'first_frame': (_moves, _first_frame),
    'extend': (_moves, _extend),
    'last_frame': (_stills, _last_frame),
    'keyframes': (_stills, _keyframes),
    'reference': (_stills, _reference),
    'inpaint': (lambda clip: clip.video is not None, _inpaint),
    'soundtrack': (_both, lambda clip, plain, rng: plain._replace(video_given=_everything(clip.video))),
    'picture': (_both, lambda clip, plain, rng: plain._replace(audio_given=_everything(clip.audio))),
    'forcing': (_moves, lambda clip, plain, rng: plain._replace(frame_levels=True)),
    'stream': (_moves, _stream),
}
