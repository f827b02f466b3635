"""What a person gives of a clip, placed on a canvas: every task is a set of what is known.

Pictures and clips are paths, which are read at the clip's size and rates, or arrays and Clips, which must have them.
"""
import dataclasses
import math
import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from veojax.data import media, pipeline
from veojax.generation.canvas import Canvas
from veojax.types import Clip

TASKS = ('generate', 'image', 'sound', 'extend', 'extend_backward', 'inpaint', 'outpaint', 'soundtrack', 'picture',
         'edit', 'loop', 'join')


@dataclasses.dataclass(frozen=True)
class Given:
  """image: the first frame. last_image: the last. keyframes: {seconds: picture}. references: pictures of what is to be
  seen, at no time of the clip. video: a clip, with its sound if it has one, that `task` says what to do with: extend,
  extend_backward, inpaint (where mask is true, bool[H, W] or bool[T, H, W], or a picture that is white there),
  outpaint, soundtrack, edit (where the mask is true, if there is one); or loop and join, see `joining`. end_video: a
  clip that the made one ends with, of the frame rate of `video`. audio: the clip's sound. task: also image (no sound) and sound (no picture); mostly it follows from the rest.
  """
  image: Any = None
  last_image: Any = None
  keyframes: Any = None
  references: Any = ()
  video: Any = None
  end_video: Any = None
  audio: Any = None
  mask: Any = None
  task: str | None = None

  def __post_init__(self):
    if self.task is not None and self.task not in TASKS:
      raise ValueError(f'task={self.task!r}; give one of {", ".join(TASKS)}')
    for name in ('extend', 'extend_backward', 'inpaint', 'outpaint', 'soundtrack', 'edit', 'join'):
      if self.task == name and self.video is None:
        raise ValueError(f'task={name!r} without a video; give the one to {name.replace("_", " ")}')
    if self.mask is not None and self.video is None:
      raise ValueError('a mask without a video; give the video that it belongs to')
    if self.task == 'inpaint' and self.mask is None:
      raise ValueError("task='inpaint' without a mask; give one that is true where something is to be made")

  def named(self) -> dict[str, Any]:
    """What is given, by its names; empty where nothing is."""
    fields = {field.name: (getattr(self, field.name), field.default) for field in dataclasses.fields(self)}
    return {name: value for name, (value, default) in fields.items() if value is not default}


NAMES = tuple(f.name for f in dataclasses.fields(Given))


LIMITS = {  # (kind, below and above what it must lie, what to give) of what `generate` is asked for
    'fps': (numbers.Real, 1e-3, math.inf, 'a number above 0.001'),
    'seed': (numbers.Integral, -2 ** 63 - 1, 2 ** 63, 'a whole number of at most 64 bits'),
    'first_index': (numbers.Integral, -1, 2 ** 32, 'a whole number, 0 for the first')}
COUNT = (numbers.Integral, 0, math.inf, 'a positive whole number')


def check(asked: dict[str, Any]):
  """Raises ValueError for what cannot be of num_frames, height and width (pixels), fps (1/s), seed and first_index."""
  for name, value in asked.items():
    kind, low, high, remedy = LIMITS.get(name, COUNT)
    if not isinstance(value, kind) or isinstance(value, bool) or not low < value < high:
      raise ValueError(f'{name}={value!r}; give {remedy}')


def check_long(model, given: dict[str, Any], strength: float | int, **counts):
  """Raises ValueError for what a clip that is made piece after piece cannot be: of a model that does not go on from
  what is given, or given its end or the whole of it."""
  check(counts)
  if not hasattr(model, 'canvas'):
    raise ValueError(f'{model.name} does not go on from given frames; make a clip of its own length at once')
  words = 'for a clip that is made piece after piece, which takes a beginning; make it at once'
  for name in ('last_image', 'end_video'):
    if given.get(name) is not None:
      raise ValueError(f'{name} {words}')
  if given.get('task') in ('image', 'extend_backward', 'edit', 'loop', 'join'):
    raise ValueError(f'task={given["task"]!r} {words}')
  if strength != 1:
    raise ValueError(f'strength={strength} {words}')


def canvas(model, given: Given, asked: dict, edit: bool = False) -> Canvas:
  """The canvas of a model's clip. asked: those of num_frames, height, width and fps that were asked for."""
  check(asked)
  clip = dataclasses.replace(model.config.clip, **asked)
  # Outpainting asks for a frame larger than the video's.
  size = model.config.clip if given.task == 'outpaint' else clip
  video, end = (read(v, model, clip, (size.height, size.width), asked) for v in (given.video, given.end_video))
  task = given.task or ('edit' if edit and video is not None else _task(given, clip, asked, video))
  if edit and task != 'edit':
    raise ValueError(f'strength below 1 edits a video, and the task is {task!r}; give video=... or leave strength at 1')
  if given.mask is not None and task not in ('inpaint', 'edit'):
    raise ValueError(f"a mask with task={task!r}; give it with task='inpaint', or with a strength below 1 to edit there")
  if end is not None and not task.startswith('extend'):
    raise ValueError(f"an end_video with task={task!r}; leave the task out, or give task='join'")
  if video is not None or end is not None:
    clip = _sized(clip, asked, [one for one in (video, end) if one is not None], task)
  if task == 'image':
    clip = dataclasses.replace(clip, num_frames=1)
  parts = _halves(model, task, clip, given)
  out = Canvas.empty((clip.num_frames, clip.height, clip.width) if parts[0] else None, clip.fps,
                     (model.num_samples(clip.num_frames, clip.fps), model.audio_codec.channels) if parts[1] else None)
  if video is not None:
    _place(out, video, task, _mask(given.mask, clip), model)
  if end is not None:
    _place(out, end, 'extend_backward', None, model)
  _place_pictures(out, given, clip)
  if given.audio is not None:
    out.put_sound(0, samples(given.audio, model))
  return out


def _task(given, clip, asked, video) -> str:
  """The task that follows from what is given."""
  if video is None and given.end_video is not None:
    return 'extend_backward'
  if video is None:
    return 'picture' if given.audio is not None else 'generate'
  frames, height, width = video.video.shape[:3]
  if given.mask is not None:
    return 'inpaint'
  if given.end_video is not None:
    return 'extend'
  if height < asked.get('height', height) or width < asked.get('width', width):
    return 'outpaint'
  if asked.get('num_frames', frames) > frames:
    return 'extend'
  if video.audio is None:
    return 'soundtrack'
  raise ValueError(f'a video of {frames} frames of {height}x{width} with sound is given whole, and nothing is left to '
                   'make; ask for more num_frames, give a mask or a strength below 1, or name the task')


def _sized(clip, asked, videos, task):
  """The clip's sizes where videos are given, one or that and the one to end with: theirs, unless asked for."""
  rates = sorted({one.fps for one in videos})
  if rates[-1] - rates[0] > 1e-6:
    raise ValueError(f'the video and the end_video have {videos[0].fps} and {videos[1].fps} frames a second; give both '
                     'at one rate')
  _, height, width = videos[0].video.shape[:3]
  frames = known = sum(len(one.video) for one in videos)
  if task.startswith('extend'):
    frames += clip.num_frames
  sizes = {'num_frames': frames, 'height': height, 'width': width, 'fps': rates[0]}
  sized = dataclasses.replace(clip, **{k: v for k, v in sizes.items() if k not in asked})
  if len(videos) > 1 and known >= sized.num_frames:
    raise ValueError(f'the video and the end_video fill {known} frames, and nothing is left to make of '
                     f'{sized.num_frames}; ask for more num_frames')
  return sized


def _halves(model, task, clip, given) -> tuple[bool, bool]:
  """Whether the clip has picture, and sound."""
  picture = model.video_codec is not None and task != 'sound'
  sound = model.audio_codec is not None and task != 'image' and (clip.num_frames > 1 or given.audio is not None)
  if not picture and not sound:
    raise ValueError(f'task={task!r} with a model that makes no {"sound" if task == "sound" else "picture"}')
  return picture, sound


def _place(out: Canvas, video: Clip, task: str, mask, model):
  frames, height, width = video.video.shape[:3]
  if task == 'edit':  # everything stands there, and nothing is known
    if out.video.shape != video.video.shape:
      raise ValueError(f'an edit has the size of its video, {frames} frames of {height}x{width}, and asked for are '
                       f'{len(out.video)} of {out.video.shape[1]}x{out.video.shape[2]}; ask for no other')
    out.video[:] = video.video
    if mask is not None:
      out.seen[:] = ~mask
  else:
    first = len(out.video) - frames if task == 'extend_backward' else 0
    top, left = (out.video.shape[1] - height) // 2, (out.video.shape[2] - width) // 2
    if min(first, top, left, len(out.video) - first - frames) < 0:
      raise ValueError(f'a video of {frames} frames of {height}x{width} does not fit the clip of {len(out.video)} '
                       f'frames of {out.video.shape[1]}x{out.video.shape[2]}; ask for more, or give less of it')
    out.put_frames(first, video.video, top, left)
    if task == 'inpaint':
      out.seen &= ~mask
  if video.audio is not None and out.audio is not None and task != 'soundtrack':
    sound = samples(video, model)
    start = round(first / out.fps * model.audio_codec.sample_rate) if task != 'edit' else 0
    if task == 'edit':
      out.audio[:len(sound)] = sound[:len(out.audio)]
    else:
      out.put_sound(start, sound)


def _place_pictures(out: Canvas, given: Given, clip):
  if not isinstance(given.keyframes or {}, Mapping):
    raise ValueError(f"keyframes={given.keyframes!r}; give pictures by their seconds, as {{0.5: 'middle.png'}}")
  if isinstance(given.references, (str, os.PathLike)) or not isinstance(given.references, (Sequence, np.ndarray)):
    raise ValueError(f"references={given.references!r}; give a list of pictures, as ['face.png']")
  pictures = dict(given.keyframes or {})
  if given.image is not None:
    pictures[0.0] = given.image
  if given.last_image is not None:
    pictures[(clip.num_frames - 1) / clip.fps] = given.last_image
  if (pictures or given.references) and out.video is None:
    raise ValueError("pictures are given, and the clip has none; leave out task='sound'")
  for seconds, picture in pictures.items():
    try:
      frame = round(float(seconds) * clip.fps)
    except (TypeError, ValueError, OverflowError):
      raise ValueError(f"a keyframe at {seconds!r}; give its seconds, as {{0.5: 'middle.png'}}") from None
    if not 0 <= frame < clip.num_frames:
      raise ValueError(f'a keyframe at {seconds} s lies outside the clip, which ends at '
                       f'{clip.num_frames / clip.fps:.3f} s; give a time within it')
    out.put_frames(frame, _picture(picture, clip)[None])
  out.references = tuple(_picture(picture, clip) for picture in given.references)


def _seen(clip: Clip, name: str) -> np.ndarray:
  if clip.video is None:
    raise ValueError(f'the {name} that is given has no picture, only sound; give a file of pictures')
  return clip.video


def _picture(picture, clip) -> np.ndarray:
  """uint8[H, W, 3] of a path, an array or a Clip."""
  if isinstance(picture, (str, os.PathLike)):
    picture = media.read(picture, height=clip.height, width=clip.width)
  if isinstance(picture, Clip):
    picture = _seen(picture, 'picture')[0]
  picture = np.asarray(picture)
  if picture.dtype != np.uint8 or picture.shape != (clip.height, clip.width, 3):
    raise ValueError(f'a picture is {picture.dtype}{list(picture.shape)}; give uint8[{clip.height}, {clip.width}, 3], '
                     'or a path, which is read at that size')
  return picture


def read(video, model, clip, size, asked) -> Clip | None:
  """A video at the clip's frame rate; a path is read at `size`, (height, width)."""
  if video is None:
    return None
  if isinstance(video, (str, os.PathLike)):
    audio = model.audio_codec
    video = media.read(video, fps=clip.fps, height=size[0], width=size[1],
                       sample_rate=audio and audio.sample_rate, channels=audio and audio.channels)
  if isinstance(video, np.ndarray):
    video = Clip(video=video, fps=clip.fps)
  if not isinstance(video, Clip):
    raise ValueError(f'a video is of type {type(video).__name__}; give a path, an array or a Clip')
  if video.video is None:
    raise ValueError('the video that is given has no picture; give it as audio=...')
  if abs(video.fps - asked.get('fps', video.fps)) > 1e-6:
    raise ValueError(f'the video has {video.fps} frames a second, asked for are {asked["fps"]}; give its path, which '
                     'is read at the rate asked for')
  return video


def samples(sound, model) -> np.ndarray:
  """float32[R, channels] at the codec's rate, of a path, an array or a Clip."""
  codec = model.audio_codec
  if codec is None:
    raise ValueError('sound is given to a model that has none; leave it out')
  if isinstance(sound, (str, os.PathLike)):
    sound = media.read(sound, sample_rate=codec.sample_rate, channels=codec.channels)
  if isinstance(sound, Clip):
    if sound.audio is None:
      raise ValueError('the audio that is given has no sound; give a file or a clip that has')
    if sound.sample_rate != codec.sample_rate:
      raise ValueError(f'the sound has {sound.sample_rate} samples a second, the model {codec.sample_rate}; give its '
                       'path, which is read at that rate')
    sound = sound.audio
  sound = np.asarray(sound)
  if sound.ndim != 2 or not np.issubdtype(sound.dtype, np.floating):
    raise ValueError(f'a sound is {sound.dtype}{list(sound.shape)}; give float32[samples, channels], or a path')
  return pipeline.mix(sound.astype(np.float32), codec.channels)


def _mask(mask, clip) -> np.ndarray | None:
  """bool[T, H, W], true where something is to be made."""
  if mask is None:
    return None
  if isinstance(mask, (str, os.PathLike)):
    mask = _seen(media.read(mask, height=clip.height, width=clip.width), 'mask').mean(-1) > 127
    mask = mask[0] if len(mask) == 1 else mask
  mask = np.asarray(mask).astype(bool)
  shape = (clip.num_frames, clip.height, clip.width)
  if mask.shape not in (shape, shape[1:]):
    raise ValueError(f'the mask has shape {list(mask.shape)}; give {list(shape[1:])} for all frames or {list(shape)}')
  return np.broadcast_to(mask, shape)
