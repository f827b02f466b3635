"""Patch discriminators: each place of a picture or of a spectrum is judged by itself, as real or as reconstructed.

A discriminator returns (logits, features): a list with one array of logits per scale, and the activations of every
layer before them, which feature matching compares. No statistic is taken over the batch, space or time: norms run
over channels only, so that one example is never judged by another. Real is positive.
"""
import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from veojax.models import layers
from veojax.models.conv import Pointwise, Video, add_bias, reshape, space_to_depth
from veojax.models.stft import stft

Judgement = tuple[list[Float[Array, '...']], list[Float[Array, '...']]]


@dataclasses.dataclass(frozen=True)
class VideoDiscriminatorConfig:
  patch_size: int = 4                        # pixels of height and of width, that enter as one cell
  widths: tuple[int, ...] = (64, 128, 256)   # each after the first halves space, and time too from the third on
  dtype: str = 'float32'                     # of the computation; parameters are float32


@dataclasses.dataclass(frozen=True)
class AudioDiscriminatorConfig:
  fft_sizes: tuple[int, ...] = (128, 512, 2048)  # one discriminator each
  width: int = 32
  dilations: tuple[int, ...] = (1, 2, 4)         # of time; each layer halves frequency
  dtype: str = 'float32'


class Conv2d(nnx.Module):
  """Convolution over the two dims between batch and channels; zeros around, ceil(size / stride) places come out."""

  def __init__(self, inputs: int, outputs: int, size: tuple[int, int], strides: tuple[int, int] = (1, 1),
               dilation: tuple[int, int] = (1, 1), *, rngs: nnx.Rngs):
    init = nnx.initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)
    self.kernel = layers.param(init, rngs.params(), (*size, inputs, outputs))
    self.bias = layers.param(layers.zeros, rngs.params(), (outputs,))
    self.strides, self.dilation = strides, dilation

  def __call__(self, x_BHWC: Float[Array, 'b _h _w _c']) -> Float[Array, 'b _h2 _w2 _d']:
    y = jax.lax.conv_general_dilated(x_BHWC, self.kernel[...].astype(x_BHWC.dtype), self.strides, 'SAME',
                                     rhs_dilation=self.dilation, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return add_bias(y, self.bias[...])


class SpacetimeConv(nnx.Module):
  """A 3 × 3 × 3 convolution in two factors, not causal: each frame by itself, then every `time` frames their
  neighbours."""

  def __init__(self, inputs: int, outputs: int, time: int = 1, space: int = 1, *, rngs: nnx.Rngs):
    self.space = Conv2d(inputs, outputs, (3, 3), (space, space), rngs=rngs)
    self.time = Pointwise(3 * outputs, outputs, rngs=rngs)
    self.stride = time

  def __call__(self, x_BTHWC: Video) -> Video:
    B, T = x_BTHWC.shape[:2]
    y = self.space(reshape(x_BTHWC, B * T, *x_BTHWC.shape[2:]))
    y = reshape(y, B, T, *y.shape[1:])
    # The frame beyond either end is the end itself: one frame is judged as a clip that stands still.
    frames = jnp.concatenate([y[:, :1], y, y[:, -1:]], 1)
    return self.time(jnp.concatenate([frames[:, i:i + T:self.stride] for i in range(3)], -1))


class VideoDiscriminator(nnx.Module):
  """PatchGAN (Isola et al. 2017, sec. 3.2.2) over space and time, for one frame as for many."""

  def __init__(self, cfg: VideoDiscriminatorConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.patchify = Pointwise(3 * cfg.patch_size ** 2, cfg.widths[0], rngs=rngs)
    self.convs = nnx.List([SpacetimeConv(cfg.widths[0], cfg.widths[0], rngs=rngs)])
    for i, (inputs, outputs) in enumerate(zip(cfg.widths[:-1], cfg.widths[1:])):
      self.convs.append(SpacetimeConv(inputs, outputs, 2 if i else 1, 2, rngs=rngs))
    self.to_logit = SpacetimeConv(cfg.widths[-1], 1, rngs=rngs)

  def __call__(self, video_BTHWC: Float[Array, 'b t h w 3']) -> Judgement:
    """Pixels in [-1, 1], of any number of frames."""
    patch, (H, W) = self.cfg.patch_size, video_BTHWC.shape[2:4]
    if H % patch or W % patch:
      raise ValueError(f'{H}×{W} pixels for a discriminator of patch_size={patch}; give a patch_size that divides both')
    x, features = self.patchify(space_to_depth(video_BTHWC.astype(self.cfg.dtype), 1, patch)), []
    for conv in self.convs:
      x = activation(conv(x))
      features.append(x)
    return [self.to_logit(x).astype(jnp.float32)], features


class SpectrumDiscriminator(nnx.Module):
  """Convolutions over time and frequency of one resolution's complex spectrum."""

  def __init__(self, channels: int, fft_size: int, cfg: AudioDiscriminatorConfig, *, rngs: nnx.Rngs):
    self.fft_size, width = fft_size, cfg.width
    self.convs = nnx.List([Conv2d(2 * channels, width, (3, 9), rngs=rngs)])
    for dilation in cfg.dilations:
      self.convs.append(Conv2d(width, width, (3, 9), (1, 2), (dilation, 1), rngs=rngs))
    self.convs.append(Conv2d(width, width, (3, 3), rngs=rngs))
    self.to_logit = Conv2d(width, 1, (3, 3), rngs=rngs)
    self.dtype = cfg.dtype

  def __call__(self, audio_BRC: Float[Array, 'b r c']) -> tuple[Float[Array, 'b t f 1'], list[Float[Array, '...']]]:
    padded = jnp.pad(audio_BRC, ((0, 0), (self.fft_size // 2,) * 2, (0, 0)))
    parts = [part for c in range(audio_BRC.shape[2]) for part in stft(padded[..., c], self.fft_size)]
    x, features = jnp.stack(parts, -1).astype(self.dtype), []
    for conv in self.convs:
      x = activation(conv(x))
      features.append(x)
    return self.to_logit(x).astype(jnp.float32), features


class AudioDiscriminator(nnx.Module):
  """Complex spectra at several resolutions (Défossez et al. 2022, sec. 3.4), the channels of the sound seen
  together."""

  def __init__(self, channels: int, cfg: AudioDiscriminatorConfig, *, rngs: nnx.Rngs):
    self.scales = nnx.List([SpectrumDiscriminator(channels, n, cfg, rngs=rngs) for n in cfg.fft_sizes])

  def __call__(self, audio_BRC: Float[Array, 'b r c']) -> Judgement:
    """Waveforms in [-1, 1]."""
    judged = [scale(audio_BRC) for scale in self.scales]
    return [logits for logits, _ in judged], [feature for _, features in judged for feature in features]


def activation(x: Float[Array, '... d']) -> Float[Array, '... d']:
  """Leaky ReLU of the normed channels. A learned scale would be absorbed by the next convolution."""
  return jax.nn.leaky_relu(layers.rms_norm(x), 0.2)
