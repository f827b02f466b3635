"""VGGish (Hershey et al. 2017), the network of FAD: 0.96 s of sound to 128 numbers.

Sound is mono at 16 kHz. An example is 96 frames of 10 ms (windows of 25 ms, periodic Hann, 512-point transform) by 64
mel bands from 125 to 7500 Hz (HTK's scale, triangles linear in mel), as log(magnitude + 0.01). The embedding is what
the last layer gives before its relu: FAD takes it so, without the whitening of the AudioSet release. Nothing here is
trained: parameters are zero until a file fills them.

Weights are those of the PyTorch copy (harritaylor/torchvggish), made safetensors by `zoo.origin`. `FAD` knows that file
by the beginning of its sha256, the eight digits that its name has.
"""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from veojax.models import layers
from veojax.zoo import weight_table
from veojax.zoo.transforms import CONV, LINEAR
from veojax.zoo.weight_table import Rule

SAMPLE_RATE = 16000
WINDOW, HOP, FFT = 400, 160, 512
BANDS, LOW, HIGH = 64, 125., 7500.
FRAMES = 96
EXAMPLE = (FRAMES - 1) * HOP + WINDOW  # samples of one example
STAGES = ((64,), (128,), (256, 256), (512, 512))  # widths; a max-pool of 2 × 2 after each stage
NUMBERS = (0, 3, 6, 8, 11, 13)  # of the convolutions in the published file
FAD = {'sha256:10086976': 'vggish-10086976.pth'}


@dataclasses.dataclass(frozen=True)
class VGGishConfig:
  hidden: int = 4096
  embedding: int = 128


class VGGish(nnx.Module):

  def __init__(self, cfg: VGGishConfig):
    param = lambda *shape: layers.param(layers.zeros, None, shape)
    self.kernels, self.biases, inputs = nnx.List([]), nnx.List([]), 1
    for outputs in (width for stage in STAGES for width in stage):
      self.kernels.append(param(3, 3, inputs, outputs))
      self.biases.append(param(outputs))
      inputs = outputs
    sizes = (FRAMES // 16 * (BANDS // 16) * inputs, cfg.hidden, cfg.hidden, cfg.embedding)
    self.weights = nnx.List([param(*shape) for shape in zip(sizes, sizes[1:])])
    self.offsets = nnx.List([param(size) for size in sizes[1:]])

  def __call__(self, examples_BTF: Float[Array, 'b 96 64']) -> Float[Array, 'b d']:
    x_BTFC, convolutions = examples_BTF[..., None], iter(zip(self.kernels, self.biases, strict=True))
    for stage in STAGES:
      for kernel, bias in (next(convolutions) for _ in stage):
        x_BTFC = jax.lax.conv_general_dilated(x_BTFC, kernel[...], (1, 1), 'SAME',
                                              dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
        x_BTFC = jax.nn.relu(x_BTFC + bias[...][None, None, None])
      x_BTFC = jax.lax.reduce_window(x_BTFC, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')
    x_BD = jnp.reshape(x_BTFC, (len(x_BTFC), -1))
    for i, (weight, offset) in enumerate(zip(self.weights, self.offsets, strict=True)):
      x_BD = (jax.nn.relu(x_BD) if i else x_BD) @ weight[...] + offset[...][None]
    return x_BD


TABLE = tuple(rule for i, n in enumerate(NUMBERS) for rule in (
    Rule(f'features.{n}.weight', f'kernels.{i}', CONV), Rule(f'features.{n}.bias', f'biases.{i}'))) + tuple(
    rule for i, n in enumerate((0, 2, 4)) for rule in (
        Rule(f'embeddings.{n}.weight', f'weights.{i}', LINEAR), Rule(f'embeddings.{n}.bias', f'offsets.{i}')))


def load(source, cfg: VGGishConfig = VGGishConfig()) -> VGGish:
  """The network of a safetensors file."""
  return weight_table.load(source, TABLE, jax.eval_shape(lambda: VGGish(cfg)))


def mel_matrix() -> np.ndarray:
  """float64[FFT / 2 + 1, BANDS]: triangles of height 1, evenly spaced and linear on HTK's mel scale."""
  mel = lambda hertz: 1127 * np.log(1 + hertz / 700)
  at = mel(np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1))[:, None]
  edges = np.linspace(mel(LOW), mel(HIGH), BANDS + 2)
  low, centre, high = edges[:-2], edges[1:-1], edges[2:]
  return np.maximum(0, np.minimum((at - low) / (centre - low), (high - at) / (high - centre)))


def log_mel(sound_R: np.ndarray) -> np.ndarray:
  """float[R] at 16 kHz → float64[frames, BANDS]; whole windows only."""
  if len(sound_R) < WINDOW:
    return np.zeros((0, BANDS))
  frames = np.lib.stride_tricks.sliding_window_view(np.asarray(sound_R, np.float64), WINDOW)[::HOP]
  hann = .5 - .5 * np.cos(2 * np.pi / WINDOW * np.arange(WINDOW))
  return np.log(np.abs(np.fft.rfft(frames * hann, FFT)) @ mel_matrix() + .01)


def examples(sound_R: np.ndarray) -> np.ndarray:
  """float32[N, FRAMES, BANDS]: a sound cut into examples that do not overlap; what is left at the end is dropped."""
  mel = log_mel(sound_R)
  count = len(mel) // FRAMES
  return mel[:count * FRAMES].reshape(count, FRAMES, BANDS).astype(np.float32)
