"""The clips that benchmarks of pictures and sounds at large are measured on: of a prepared data set, or of the world.

Clip i is the same whatever else is asked for: true, through the codecs, or made from its caption.
"""
import dataclasses
import functools

import numpy as np

from veojax.data import media, pipeline
from veojax.evaluation import round_trip
from veojax.evaluation.benchmark import Subject
from veojax.generation.wanted import Wanted
from veojax.training import heldout, latents
from veojax.types import Clip

WORLD = 'world'


@functools.lru_cache(2)
def _dataset(data: str):
  return heldout.split(data)


@functools.lru_cache(2)
def _fingerprint(data: str) -> str:
  return latents.fingerprint(_dataset(data))


def fitted(bench, subject: Subject, **changes):
  """The benchmark with scenes of its seed and of the subject's sizes. bench has `data`, 'world' or a prepared data set,
  whose held-out split is taken; `data_hash`, which tells that set from another one prepared in its place, '' of the
  world; `scenes`, a World; and `seed`. ValueError where there are not as many clips."""
  if bench.data != WORLD and (held := len(_dataset(bench.data))) < bench.num_clips:
    raise ValueError(f'{bench.data} holds {held} clips to measure on, and {bench.num_clips} are asked for; set '
                     f'num_clips={held}, or prepare more')
  scenes = dataclasses.replace(bench.scenes, seed=bench.seed).fitted(subject)
  data_hash = '' if bench.data == WORLD else _fingerprint(bench.data)
  return dataclasses.replace(bench, data_hash=data_hash, scenes=scenes, **changes)


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
  """Clips of the truths' captions. Scenes are made in their own size, others in the model's."""
  size = {}
  if bench.data == WORLD:
    size = dict(zip(('num_frames', 'height', 'width'), truths[0].video.shape[:3])) | {'fps': truths[0].fps}
  return [Wanted(truth.text, bench.seed, i, options=size) for i, truth in zip(indices, truths)]


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
