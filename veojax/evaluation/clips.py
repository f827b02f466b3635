"""The clips that benchmarks of pictures and sounds at large are measured on: of a prepared data set, or of the world.

Clip i is the same whatever else is asked for: true, through the codecs, or made from its caption.
"""
import dataclasses
from typing import NamedTuple

import numpy as np

from veojax.data import media, pipeline
from veojax.evaluation import loaded, round_trip
from veojax.evaluation.benchmark import Subject
from veojax.generation.wanted import Wanted
from veojax.training import heldout, latents
from veojax.types import Clip

WORLD = 'world'


class Length(NamedTuple):
  """Of a clip; sound in seconds."""
  num_frames: int
  sound: float


@loaded.kept(2)
def _dataset(data: str):
  return heldout.split(data)


@loaded.kept(2)
def _fingerprint(data: str) -> str:
  return f'{_dataset(data).split} {latents.fingerprint(_dataset(data))}'


def fitted(bench, subject: Subject, **changes):
  """The benchmark with scenes of its seed and of the subject's sizes. bench has `data`, 'world' or a prepared data set,
  whose held-out split is taken, or that of training where none was held back; `data_hash`, the name of that split and
  the hash that tells the set from another one prepared in its place ('validation 3f2a...'), '' of the world; `scenes`,
  a World, of the world alone; and `seed`. ValueError where there are not as many clips, and for what would not count.
  """
  _check_scenes(bench)
  if bench.data != WORLD and (held := len(_dataset(bench.data))) < bench.num_clips:
    raise ValueError(f'{bench.data} holds {held} clips to measure on, and {bench.num_clips} are asked for; set '
                     f'num_clips={held}, or prepare more')
  scenes, data_hash = bench.scenes, ''
  if bench.data == WORLD:
    scenes = dataclasses.replace(scenes, seed=bench.seed).sized(subject)
  else:
    data_hash = _fingerprint(bench.data)
  return dataclasses.replace(bench, data_hash=data_hash, scenes=scenes, **changes)


def _check_scenes(bench):
  """ValueError for options of the scenes that would not count."""
  default = type(bench.scenes)()
  changed = [f'scenes.{f.name}={value!r}' for f in dataclasses.fields(default)
             if (value := getattr(bench.scenes, f.name)) != getattr(default, f.name)]
  if bench.data != WORLD and changed:
    raise ValueError(f'{", ".join(changed)} with data={bench.data!r}: scenes are of the world; leave it out, or leave '
                     'out data')
  for name in ('seed', 'num_clips'):
    asked = getattr(bench.scenes, name)
    if asked not in (getattr(default, name), getattr(bench, name)):
      raise ValueError(f'scenes.{name}={asked}: the scenes have the benchmark\'s; give {name}={asked}')


def longest(bench, subject: Subject) -> dict[str, Length]:
  """{what it is: its length} of the longest clips that a benchmark that is fitted is measured on: the true ones, and
  those that the subject's model makes of the captions of a data set."""
  if bench.data == WORLD:
    clip, scenes = truth(bench, 0), bench.scenes
    sound = len(clip.audio) / clip.sample_rate if clip.audio is not None else 0.
    return {f'scenes.num_frames={scenes.num_frames}, scenes.fps={scenes.fps}': Length(len(clip.video), sound)}
  index = {name: column[:bench.num_clips] for name, column in _dataset(bench.data).index.items()}
  sounds = index['num_samples'] / np.maximum(index['sample_rate'], 1)
  found = {bench.data: Length(int(index['num_frames'].max()), float(sounds.max()))}
  if subject.model is not None:
    sizes = subject.model.clip_sizes | {name: value for name, value in subject.options.items() if value is not None}
    num_frames, fps = sizes['num_frames'], sizes['fps']
    found[f'{subject.name} with clip.num_frames={num_frames}, clip.fps={fps}'] = Length(num_frames, num_frames / fps)
  return found


def truth(bench, index: int) -> Clip:
  """The true clip of this number, of a benchmark that is fitted."""
  return bench.scenes.case(index) if bench.data == WORLD else _dataset(bench.data)[index]


def parts(subject: Subject) -> tuple[str, ...]:
  codec = ('codec',) if any(codec is not None for codec in subject.codecs) else ()
  return (('made',) if subject.model is not None else ()) + ('truth', *codec)


def of_part(bench, part: str, truths: list[Clip], indices, subject: Subject) -> list[Clip]:
  """The clips of a column, in the order of the truths."""
  if part == 'truth':
    return truths
  if part == 'codec':
    return [through(clip, subject) for clip in truths]
  return subject.make(wanted(bench, truths, indices))


def wanted(bench, truths: list[Clip], indices) -> list[Wanted]:
  """Clips of the truths' captions. Scenes are made in their own size and of what is given of them, others in the
  model's."""
  if bench.data == WORLD:
    return bench.scenes.wanted_for(truths, indices)
  return [Wanted(truth.text, bench.seed, i) for i, truth in zip(indices, truths)]


def through(clip: Clip, subject: Subject) -> Clip:
  """The clip through the codecs and back; a half without a codec is left out."""
  video_codec, audio_codec = subject.codecs
  clip = adapted(clip, audio_codec)
  clip = dataclasses.replace(clip, video=clip.video if video_codec is not None else None,
                             audio=clip.audio if audio_codec is not None else None)
  return round_trip.through(clip, video_codec, audio_codec)


def adapted(clip: Clip, audio_codec) -> Clip:
  """The clip with its sound at the codec's rate and in its channels."""
  if clip.audio is None or audio_codec is None:
    return clip
  audio = clip.audio
  if clip.sample_rate != audio_codec.sample_rate:
    audio = media.resample(audio, clip.sample_rate, audio_codec.sample_rate)
  return dataclasses.replace(clip, audio=pipeline.mix(audio, audio_codec.channels), sample_rate=audio_codec.sample_rate)


def defined(values: dict[str, float]) -> dict[str, float]:
  """Those that are finite: what is undefined for a clip is left out of its row."""
  return {name: float(value) for name, value in values.items() if np.isfinite(value)}
