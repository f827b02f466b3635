"""Two clips joined by a made one, and a clip made into a loop.

The made clip begins with the end of the first and ends with the beginning of the second, both given; what is given is
pasted, so that every seam lies inside the clips themselves, in picture and in sound.
"""
import dataclasses

import numpy as np

from veojax.generation import tasks
from veojax.generation.export import Sample
from veojax.types import Clip

TASKS = ('loop', 'join')
OF_ONE_CLIP = ('image', 'last_image', 'keyframes', 'audio', 'mask')  # what a loop's clip is made from, not its joint
CONTEXT = 9  # frames of each clip, at most, that the made one is shown


def generate(model, prompt: str, *, task: str, video=None, end_video=None, num_frames=None, height=None, width=None,
             fps=None, **options) -> Sample:
  """`join` and `loop` as `Model.generate` calls them: clips are paths too, and num_frames counts the whole result.

  A loop without a video is made of a clip of the prompt. By default the made frames and their context, at most half of
  them, are as many as the model makes at once.
  """
  if task == 'join' and video is None:
    raise ValueError("task='join' without a video; give the clip to lead from")
  if task == 'join' and end_video is None:
    raise ValueError("task='join' without an end_video; give the clip to lead to")
  if task == 'loop' and end_video is not None:
    raise ValueError("task='loop' with an end_video; leave it out, or give task='join'")
  if options.get('strength', 1) != 1:
    raise ValueError(f'strength={options["strength"]} with task={task!r}, which keeps its clips; edit one at a time')
  of_clip = {name: options.pop(name) for name in OF_ONE_CLIP if options.get(name) is not None}
  if of_clip and video is not None:
    raise ValueError(f'{", ".join(of_clip)} with task={task!r} of clips that are given; leave it out')
  asked = {k: v for k, v in {'height': height, 'width': width, 'fps': fps}.items() if v is not None}
  size = dataclasses.replace(model.config.clip, **asked)
  read = lambda clip: tasks.read(clip, model, size, (size.height, size.width), asked)
  context = min(CONTEXT, max(1, size.num_frames // 4))
  made = max(1, size.num_frames - 2 * context)
  if video is None:
    video = model.generate(prompt, **asked, **of_clip, **options,
                           num_frames=size.num_frames if num_frames is None else max(1, num_frames - made))
  clips = [read(video)] + ([read(end_video)] if task == 'join' else [])
  if num_frames is not None:
    made = num_frames - sum(len(clip.video) for clip in clips)
    if made < 1:
      raise ValueError(f'num_frames={num_frames} is no more than the {num_frames - made} that are given; ask for more')
  return (loop if task == 'loop' else join)(model, prompt, *clips, made, context, **options)


def join(model, prompt: str, first: Clip, second: Clip, num_frames: int, context: int = CONTEXT, **options) -> Sample:
  """first, `num_frames` made frames and second, as one clip. options: as of `Model.generate`.

  Raises ValueError where the clips differ in size or rates.
  """
  _check(first, second, num_frames)
  context = min(context, len(first.video), len(second.video))
  tail, head = _part(first, -context, None), _part(second, 0, context)
  made = model.generate(prompt, video=tail, end_video=head, paste=True, fps=first.fps,
                        num_frames=len(tail.video) + num_frames + len(head.video), **options)
  video = np.concatenate([first.video[:-context], made.video, second.video[context:]])
  audio = None
  if first.audio is not None and made.audio is not None:
    rate = first.sample_rate
    audio = np.concatenate([first.audio[:_samples(first, len(first.video) - context, rate)], made.audio,
                            second.audio[_samples(second, context, rate):]])
  return dataclasses.replace(made, video=video, audio=audio)


def loop(model, prompt: str, clip: Clip, num_frames: int, context: int = CONTEXT, **options) -> Sample:
  """The clip, followed by `num_frames` made frames that lead back to its beginning."""
  joined = join(model, prompt, clip, clip, num_frames, context, **options)
  end = len(clip.video) + num_frames
  audio = None if joined.audio is None else joined.audio[:_samples(joined, end, joined.sample_rate)]
  return dataclasses.replace(joined, video=joined.video[:end], audio=audio)


def _part(clip: Clip, first: int, end: int | None) -> Clip:
  """Frames first to end with their sound; negative from the end."""
  start, stop, _ = slice(first, end).indices(len(clip.video))
  audio = None
  if clip.audio is not None:
    audio = clip.audio[_samples(clip, start, clip.sample_rate):_samples(clip, stop, clip.sample_rate)]
  return dataclasses.replace(clip, video=clip.video[start:stop], audio=audio)


def _samples(clip: Clip, frames: int, rate: int) -> int:
  return round(frames / clip.fps * rate)


def _check(first: Clip, second: Clip, num_frames: int):
  if num_frames < 1:
    raise ValueError(f'num_frames={num_frames}; give at least one frame to be made')
  sizes = [(*c.video.shape[1:3], c.fps, c.sample_rate if c.audio is not None else None) for c in (first, second)]
  if sizes[0] != sizes[1]:
    raise ValueError(f'clips of (height, width, frames a second, samples a second) {sizes[0]} and {sizes[1]} cannot be '
                     'joined; read both with the same')
