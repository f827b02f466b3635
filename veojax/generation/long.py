"""Clips longer than what a model makes at once: windows, each of which is given the end of the one before it.

Pieces come as they are made, and nothing of earlier ones is kept but the overlap, so memory does not grow with the
length. The overlap is given to the next window as it was made (clean, not noised again) and pasted; the sound of its
last FEATHER_SECONDS fades from one window's into the next one's, so that no seam clicks.
"""
import collections
import dataclasses
from collections.abc import Iterator

import numpy as np

from veojax import processes
from veojax.generation import prompts as texts
from veojax.generation import export, tasks
from veojax.generation import stream as streaming
from veojax.generation.canvas import FEATHER_SECONDS
from veojax.generation.export import Sample


def pieces(model, prompts: str | list[str], num_frames: int, *, window: int | None = None, overlap: int = 9,
           seed: int = 0, **options) -> Iterator[Sample]:
  """A clip of `num_frames` frames, piece after piece in time; `save` writes them with their tags as they come.

  prompts: one, or a chain of them, each of which rules an equal share of the time. window: frames made at once, the
  model's own number by default; overlap: of them, those given from the window before. options: as of `Model.generate`;
  what is given of the clip is given to the first window, references and, as long as it lasts, sound to all. Window i is
  made with seed + i.
  """
  start = {name: options.pop(name) for name in (*tasks.NAMES, 'paste') if name in options}
  tasks.check_long(model, start, options.get('strength', 1.0), num_frames=num_frames, seed=seed)
  chain = texts.chain(prompts, num_frames)
  expand = options.pop('expand', None)
  told = dict(zip(chain, texts.expanded(chain, expand)))
  window = model.config.clip.num_frames if window is None else window
  if not 0 < overlap < window:
    raise ValueError(f'overlap={overlap} frames of a window of {window}; give at least 1 and fewer than the window')
  song = None if start.get('audio') is None else tasks.samples(start['audio'], model)
  made, last, index = 0, None, 0
  while made < num_frames:
    prompt = chain[min(len(chain) - 1, made * len(chain) // num_frames)]
    given = start if last is None else {**_given(last), **_goes_on(start, song, last, made - overlap), 'paste': True}
    clip = model.generate(prompt, num_frames=window, seed=seed + index, expand=expand and told.get, **given, **options)
    first = 0 if last is None else overlap
    count = min(window - first, num_frames - made)
    yield _part(clip, first, count, last is None, made + count == num_frames)
    last = _end(clip, window - overlap)
    made, index = made + count, index + 1


def save(path, model, prompts: list[str], *, num_frames: int | None = None, window: int | None = None,
         overlap: int = 9, stream: bool = False, chain: bool = False, with_prompt: bool = True, **options):
  """Writes a long clip as it is made, of `pieces` or as a stream; several prompts are a chain. Of several processes,
  which all make it, the first writes."""
  if num_frames is None:
    raise ValueError('a long clip without num_frames; give how many it has')
  if len(prompts) > 1 and not chain:
    raise ValueError(f'{len(prompts)} prompts for one long clip; give one, or make a chain of them (--chain)')
  if stream:
    options.pop('paste', None)
  make = streaming.stream if stream else pieces
  made = make(model, prompts, num_frames, window=window, overlap=overlap, **options)
  if not processes.is_first():
    collections.deque(made, maxlen=0)
    return
  export.save_pieces(path, made, with_prompt=with_prompt, tags={'title': ' / '.join(prompts)} if with_prompt else {})


def _goes_on(start: dict, song: np.ndarray | None, last: Sample, first: int) -> dict:
  """What of `start` is given to the window from frame `first` on too. song: its sound."""
  out = {name: start[name] for name in ('references',) if name in start}
  if song is not None and len(rest := song[round(first / last.fps * last.sample_rate):]) > len(last.audio):
    out['audio'] = rest
  return out


def _part(clip: Sample, first: int, count: int, is_first: bool, is_last: bool) -> Sample:
  """Frames first to first + count. Its sound begins and ends a fade earlier, but for the clip's own ends."""
  video = audio = None
  if clip.video is not None:
    video = clip.video[first:first + count]
  if clip.audio is not None:
    fade = round(FEATHER_SECONDS * clip.sample_rate)
    start, stop = (round(f / clip.fps * clip.sample_rate) for f in (first, first + count))
    audio = clip.audio[0 if is_first else start - fade:stop if is_last else stop - fade]
  return dataclasses.replace(clip, video=video, audio=audio)


def _end(clip: Sample, first: int) -> Sample:
  """The frames from `first` on with their sound, as they were made."""
  video = audio = None
  if clip.video is not None:
    video = np.array(clip.video[first:])
  if clip.audio is not None:
    audio = clip.audio[round(first / clip.fps * clip.sample_rate):].copy()
  return dataclasses.replace(clip, video=video, audio=audio)


def _given(end: Sample) -> dict:
  """What a window is given of the one before it."""
  return {'audio': end, 'task': 'sound'} if end.video is None else {'video': end, 'task': 'extend'}
