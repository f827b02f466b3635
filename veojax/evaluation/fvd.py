"""FVD (Unterthiner et al. 2018): the Fréchet distance of sets of clips in the 400 logits of one certain I3D; and KVD,
the squared maximum mean discrepancy of the same logits under the cubic kernel, unbiased.

The network's weights are the user's: without them there is no FVD, and with other weights than FVD's (`zoo/i3d.py`
knows both by hash) the distance has another name. How clips become 224 × 224 pixels is the protocol; numbers of
different protocols, and of different numbers of clips, do not compare: 2048 clips of 16 frames are usual.

  google      frames to 224 × 224 by TensorFlow 1's bilinear (corners at 0), aspect not kept
  stylegan-v  to 224 × 224, bilinear between pixel centres; true clips begin at a random frame (fvd2048_16f; with
              stride=8 and num_frames=16 it is their _128f_subsample8f)
  videogpt    shorter side to 224, the middle 224 × 224; the batch norms add 1e-5 and not 1e-3
  fastvideo   as stylegan-v, and all clips begin at their first frame

Of what the codecs leave of the truth the first is what others call rFVD.
No clip is resized with antialiasing, and frame rates stay as they are: all four do it so.
"""
import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from veojax.evaluation import benchmark, clips, loaded, set_distance
from veojax.evaluation.benchmark import Metric, Row, Subject
from veojax.evaluation.world_benchmark import World
from veojax.generation.wanted import Wanted
from veojax.zoo import i3d, origin

DECIMALS = 5  # of the features that are kept


@dataclasses.dataclass(frozen=True)
class Protocol:
  resize: Literal['stretch', 'crop'] = 'stretch'
  half_pixel: bool = True
  epsilon: float = 1e-3
  random_start: bool = False  # of true clips, and of what codecs leave of them; made ones begin at their first frame
  min_frames: int = 10


PROTOCOLS = {'google': Protocol(half_pixel=False), 'stylegan-v': Protocol(random_start=True),
             'videogpt': Protocol(resize='crop', epsilon=1e-5, min_frames=11), 'fastvideo': Protocol()}


@dataclasses.dataclass(frozen=True)
class FVD(set_distance.SetBenchmark):
  """data: 'world', of `scenes`, or a prepared data set. weights: safetensors of I3D, made by `zoo.origin`; others than
  FVD's are refused, unless allow_unknown_weights: then no distance is called FVD or KVD. network, data_hash: what was
  found there, as of `clips.fitted`. Every `stride`th frame is taken; clips that are too short for it are left out."""
  num_clips: int = 2048
  seed: int = 0
  data: str = clips.WORLD
  data_hash: str = ''
  scenes: World = World()
  weights: str = ''
  network: str = ''
  allow_unknown_weights: bool = False
  protocol: Literal['google', 'stylegan-v', 'videogpt', 'fastvideo'] = 'stylegan-v'
  num_frames: int = 16
  stride: int = 1

  FEATURES = 'logits'
  DISTANCES = (set_distance.FRECHET, set_distance.CUBIC)

  def __post_init__(self):
    least = PROTOCOLS[self.protocol].min_frames
    if self.num_frames < least or self.stride < 1:
      raise ValueError(f'num_frames={self.num_frames}, stride={self.stride}; protocol {self.protocol!r} takes {least} '
                       'frames or more, a stride from 1 up')

  @property
  def METRICS(self) -> dict[str, Metric]:
    frechet, kernel = ('fvd', 'kvd') if is_fvd(self.weights) else ('frechet-i3d', 'mmd-i3d')
    frames = f'{self.num_frames} frames' + (f', every {self.stride}th' if self.stride > 1 else '')
    return (set_distance.metrics(f'{frechet}/{self.protocol}', frames)
            | set_distance.metrics(f'{kernel}/{self.protocol}', f'{frames}; squared mean discrepancy, cubic kernel'))

  def fitted(self, subject: Subject) -> 'FVD':
    self.check_count()
    if not subject.makes_pictures:
      raise ValueError(f'{subject.name} makes no pictures to measure; give a model that does')
    load(self.weights, self.allow_unknown_weights)
    fitted = clips.fitted(self, subject, network=origin.identify(self.weights, {}).hash)
    for told, length in clips.longest(fitted, subject).items():
      if length.num_frames < self.span:
        raise ValueError(f'{told}: clips too short for num_frames={self.num_frames}, stride={self.stride}; give longer '
                         'ones, or look at fewer frames')
    return fitted

  @property
  def span(self) -> int:
    """Frames of a clip from the first that is looked at to the last."""
    return (self.num_frames - 1) * self.stride + 1

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
      video = self.window(clip.video, i, part != 'made')
      if video is not None:
        logits = features(network, video, PROTOCOLS[self.protocol])
        rows[-1].kept['logits'] = [np.round(logits.astype(np.float64), DECIMALS).tolist()]
    return {part: rows}

  def window(self, video: np.ndarray | None, index: int, true: bool) -> np.ndarray | None:
    """The frames that are looked at, or None of a clip that is too short."""
    if video is None or len(video) < self.span:
      return None
    first = 0
    if true and PROTOCOLS[self.protocol].random_start:
      first = int(np.random.default_rng([self.seed, index]).integers(len(video) - self.span + 1))
    return video[first:first + self.span:self.stride]


def is_fvd(weights: str) -> bool:
  """Whether a file holds FVD's network."""
  return bool(weights) and bool(origin.identify(weights, i3d.FVD).name)


@loaded.kept(1)
def load(weights: str, allow_unknown: bool) -> i3d.I3D:
  """The network. ValueError where no weights are given, or others than FVD's that were not allowed."""
  known = ', '.join(f'{name} ({key})' for key, name in i3d.FVD.items())
  if not weights:
    raise ValueError(f'FVD needs the weights of its I3D: {known}; convert one with `python -m veojax.zoo.origin SOURCE '
                     'i3d.safetensors` and give weights=i3d.safetensors')
  found = origin.identify(weights, i3d.FVD | i3d.OTHERS)
  if not allow_unknown and not is_fvd(weights):
    raise ValueError(f'{weights} holds {found.name or "an unknown network"} (sha256 {found.hash}), and FVD is by {known}; '
                     f'{found.doubt and f"{found.doubt}; "}allow_unknown_weights=True measures with it all the same, '
                     'under another name')
  return i3d.load(weights)


@functools.partial(jax.jit, static_argnames='protocol')
def _logits(network, video_THWC, protocol: Protocol):
  x_THWC = video_THWC.astype(jnp.float32) / 127.5 - 1
  height, width = x_THWC.shape[1:3]
  size = [i3d.SIDE] * 2
  if protocol.resize == 'crop':
    size = [i3d.SIDE if side == min(height, width) else math.ceil(side * i3d.SIDE / min(height, width))
            for side in (height, width)]
  rows, columns = (interpolation(new, old, protocol.half_pixel) for new, old in zip(size, (height, width)))
  top, left = ((side - i3d.SIDE) // 2 for side in size)
  rows, columns = rows[top:top + i3d.SIDE], columns[left:left + i3d.SIDE]
  x_THWC = jnp.einsum('thwc,yh,xw->tyxc', x_THWC, rows, columns, precision='highest')
  return network(x_THWC[None], protocol.epsilon)[0]


def features(network: i3d.I3D, video_THWC: np.ndarray, protocol: Protocol) -> np.ndarray:
  """float32[400] of uint8[T, H, W, 3]."""
  return np.asarray(_logits(network, video_THWC, protocol))


def interpolation(size: int, length: int, half_pixel: bool = True) -> np.ndarray:
  """float32[size, length]: linear interpolation of `length` samples to `size`, without antialiasing.

  Sample i stands at (i + 1/2) length / size - 1/2, kept inside (PyTorch's interpolate, align_corners=False), or else at
  i length / size (TensorFlow 1's resize_bilinear).
  """
  at = (np.arange(size) + .5) * (length / size) - .5 if half_pixel else np.arange(size) * (length / size)
  at = np.clip(at, 0, length - 1)
  low = np.floor(at).astype(int)
  matrix = np.zeros((size, length))
  matrix[np.arange(size), low] += 1 - (at - low)
  matrix[np.arange(size), np.minimum(low + 1, length - 1)] += at - low
  return matrix.astype(np.float32)
