"""FAD (Kilgour et al. 2019): the Fréchet distance of sets of sounds in the embeddings of VGGish.

The network's weights are the user's: without them there is no FAD, and with other weights than those of the published
copy (`zoo/vggish.py` knows them by the beginning of their hash) the distance has another name. Sounds are mixed to mono
and resampled to 16 kHz.

  google   windows of 1 s every 0.5 s, of which the first 0.96 s are looked at; samples are divided by the sound's
           largest, or by 0.1 where that is smaller
  pytorch  examples of 0.96 s one after another, levels as they are (gudgud96/frechet-audio-distance)

Neither whitens, and neither takes the last relu. Every window is a feature, so a set has more of them than clips.
"""
import dataclasses
from typing import Literal

import jax
import numpy as np

from veojax.data import media
from veojax.evaluation import benchmark, clips, loaded, set_distance
from veojax.evaluation.benchmark import Metric, Row, Subject
from veojax.evaluation.world_benchmark import World
from veojax.generation.wanted import Wanted
from veojax.types import Clip
from veojax.zoo import origin, vggish

DECIMALS = 5
LEAST_PEAK = .1
STEP = vggish.SAMPLE_RATE // 2
BATCH = 8  # examples that are embedded at a time: one program for sounds of all lengths


@dataclasses.dataclass(frozen=True)
class FAD(set_distance.SetBenchmark):
  """data: 'world', of `scenes`, or a prepared data set. weights: safetensors of VGGish, made by `zoo.origin`; unknown
  ones are refused, unless allow_unknown_weights: then the distance is not called FAD. network, data_hash: what was
  found there, as of `clips.fitted`. Clips shorter than a window are left out."""
  num_clips: int = 2048
  seed: int = 0
  data: str = clips.WORLD
  data_hash: str = ''
  scenes: World = World()
  weights: str = ''
  network: str = ''
  allow_unknown_weights: bool = False
  protocol: Literal['google', 'pytorch'] = 'google'

  FEATURES = 'embeddings'

  def fitted(self, subject: Subject) -> 'FAD':
    self.check_count()
    load(self.weights, self.allow_unknown_weights)
    if subject.model is not None and subject.model.audio_codec is None:
      raise ValueError(f'{subject.name} makes no sound to measure; give a model that does')
    fitted = clips.fitted(self, subject, network=origin.identify(self.weights, {}).hash)
    for told, length in clips.longest(fitted, subject).items():
      if not len(EXAMPLES[self.protocol](np.zeros(round(length.sound * vggish.SAMPLE_RATE)))):
        raise ValueError(f'{told}: sounds too short for a window of protocol {self.protocol!r}; give longer ones')
    return fitted

  @property
  def METRICS(self) -> dict[str, Metric]:
    kind = 'fad' if is_fad(self.weights) else 'frechet-vggish'
    return set_distance.metrics(f'{kind}/{self.protocol}')

  def parts(self, subject: Subject) -> tuple[str, ...]:
    return clips.parts(subject)

  def wanted(self, indices) -> list[Wanted]:
    return clips.wanted(self, [clips.truth(self, i) for i in indices], indices)

  def rows(self, subject: Subject, part: str, indices, keep=benchmark.keep_nothing) -> dict[str, list[Row]]:
    network = load(self.weights, self.allow_unknown_weights)
    truths = [clips.truth(self, i) for i in indices]
    rows = []
    for i, clip in zip(indices, clips.of_part(self, part, truths, indices, subject)):
      keep(part, i, clip)
      rows.append(Row(i, clip.text))
      found = embeddings(network, EXAMPLES[self.protocol](mono(clip)))
      if len(found):
        rows[-1].kept['embeddings'] = np.round(found.astype(np.float64), DECIMALS).tolist()
    return {part: rows}


def is_fad(weights: str) -> bool:
  """Whether a file holds FAD's network."""
  return bool(weights) and bool(origin.identify(weights, vggish.FAD).name)


@loaded.kept(1)
def load(weights: str, allow_unknown: bool) -> vggish.VGGish:
  """The network. ValueError where no weights are given, or unknown ones that were not allowed."""
  known = ', '.join(f'{name} ({key}...)' for key, name in vggish.FAD.items())
  if not weights:
    raise ValueError(f'FAD needs the weights of VGGish: {known}; convert it with `python -m veojax.zoo.origin SOURCE '
                     'vggish.safetensors` and give weights=vggish.safetensors')
  if not allow_unknown and not is_fad(weights):
    found = origin.identify(weights, {})
    raise ValueError(f'{weights} (sha256 {found.hash}) is not known to be FAD\'s {known}; '
                     f'{found.doubt and f"{found.doubt}; "}allow_unknown_weights=True measures with it all the same, '
                     'under another name')
  return vggish.load(weights)


def mono(clip: Clip) -> np.ndarray:
  """float64[R] at 16 kHz; empty without sound."""
  if clip.audio is None:
    return np.zeros(0)
  sound = media.resample(clip.audio.mean(1, keepdims=True, dtype=np.float32), clip.sample_rate, vggish.SAMPLE_RATE)
  return sound[:, 0].astype(np.float64)


def overlapping(sound_R: np.ndarray) -> np.ndarray:
  """Examples float32[N, 96, 64] of protocol 'google'."""
  if len(sound_R) < vggish.SAMPLE_RATE:
    return np.zeros((0, vggish.FRAMES, vggish.BANDS), np.float32)
  sound_R = sound_R / max(LEAST_PEAK, sound_R.max())
  starts = range(0, len(sound_R) - vggish.SAMPLE_RATE + 1, STEP)
  return np.concatenate([vggish.examples(sound_R[i:i + vggish.SAMPLE_RATE]) for i in starts])


EXAMPLES = {'google': overlapping, 'pytorch': vggish.examples}


@jax.jit
def _embed(network, examples_BTF):
  return network(examples_BTF)


def embeddings(network: vggish.VGGish, examples_NTF: np.ndarray) -> np.ndarray:
  """float32[N, 128]."""
  found = []
  for i in range(0, len(examples_NTF), BATCH):
    part = examples_NTF[i:i + BATCH]
    filled = np.concatenate([part, np.repeat(part[-1:], BATCH - len(part), 0)])
    found.append(np.asarray(_embed(network, filled))[:len(part)])
  return np.concatenate(found) if found else np.zeros((0, 128), np.float32)
