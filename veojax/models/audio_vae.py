"""Audio VAE: waveform to latents at 25-50 a second and back, causal in time.

Layout is audio_BRC (samples, channels; values in [-1, 1]) and latent_BTC. Latent j is computed from the samples before
(j + 1)·hop, and the samples from j·hop on from the latents ≤ j: nothing waits for the future, in either direction.

The waveform's ends are patchified: `patch_size` = hop / prod(strides) samples of all channels are one step, so that the
first and last layers are matrix products that suit the matrix unit instead of convolutions over 1 or 2 channels. One
linear map a side runs beside everything else, from a latent's samples to its channels and back: it finds the principal
components of the sound early in training, and the deep path learns what they leave. Between the ends, stages of
residual units (dilated convolution, snake) as in SoundStream (Zeghidour et al. 2021, fig. 3), with snake units after
BigVGAN (Lee et al. 2023). Norms run over channels only, so no statistic crosses time, and a clip in chunks with
carried state equals the whole.

The latent's posterior is Gaussian with a diagonal covariance (Kingma & Welling 2014); noise is added by the loss, not
here.
"""
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from veojax.models.conv1d import CausalConv1d, Snake, fold, unfold

# An untrained encoder's log-variance. At 0 the noise would bury the means, and training begins by digging them out.
INITIAL_LOGVAR = -6.0


@dataclasses.dataclass(frozen=True)
class AudioVAEConfig:
  """The defaults: 16 kHz stereo at 25 latents a second."""
  sample_rate: int = 16_000              # Hz
  channels: int = 2                      # 1 mono, 2 stereo
  hop: int = 640                         # samples a latent
  latent_channels: int = 64
  strides: tuple[int, ...] = (2, 5)      # from the waveform to the latent
  widths: tuple[int, ...] = (128, 256, 512)  # one more than strides: the rate of the patches, ..., of the latents
  depth: int = 2                         # residual units a stage
  kernel_size: int = 3
  decoder_strides: tuple[int, ...] | None = None  # from the waveform to the latent, as `strides`, where they differ
  decoder_widths: tuple[int, ...] | None = None
  dtype: str = 'float32'                 # of the computation; parameters are float32

  def __post_init__(self):
    if self.channels not in (1, 2):
      raise ValueError(f'channels={self.channels}; the audio VAE takes 1 (mono) or 2 (stereo)')
    for name, (strides, widths) in (('', self.encoder_sizes), ('decoder_', self.decoder_sizes)):
      if self.sample_rate <= 0 or self.hop <= 0 or self.hop % math.prod(strides):
        raise ValueError(f'hop={self.hop} at sample_rate={self.sample_rate}: hop must be a positive multiple of the '
                         f'product of {name}strides={strides}, {math.prod(strides)}')
      if len(widths) != len(strides) + 1:
        raise ValueError(f'{len(widths)} {name}widths for {len(strides)} strides; give one width more than strides')

  @property
  def encoder_sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides and widths of the encoder."""
    return self.strides, self.widths

  @property
  def decoder_sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """As `encoder_sizes`, of the decoder."""
    return self.decoder_strides or self.strides, self.decoder_widths or self.widths

  @property
  def latent_rate(self) -> float:
    """Latents a second."""
    return self.sample_rate / self.hop


class ResidualUnit(nnx.Module):
  """x + W snake(conv(norm(x))); starts as the identity."""

  def __init__(self, dim: int, kernel_size: int, dilation: int, dtype: str, *, rngs: nnx.Rngs):
    self.scale_C = nnx.Param(jnp.ones(dim, jnp.float32))
    self.conv = CausalConv1d(dim, dim, kernel_size, dilation=dilation, dtype=dtype, rngs=rngs)
    self.snake = Snake(dim)
    self.project = CausalConv1d(dim, dim, 1, gain=0.0, dtype=dtype, rngs=rngs)

  def __call__(self, x_BTC, state=None):
    h_BTC, state = self.conv(rms_norm(x_BTC, self.scale_C[...]), state)
    h_BTC, _ = self.project(self.snake(h_BTC))
    return x_BTC + h_BTC, state


def rms_norm(x_BTC, scale_C, eps=1e-4):
  # eps is large on purpose: silence stays silence instead of being amplified to unit variance.
  x32 = x_BTC.astype(jnp.float32)
  y = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + eps)
  return (y * scale_C[None, None]).astype(x_BTC.dtype)


class Stage(nnx.Module):
  """`depth` residual units at one rate, their dilations growing as powers of the kernel size."""

  def __init__(self, dim: int, cfg: AudioVAEConfig, *, rngs: nnx.Rngs):
    self.units = nnx.List([ResidualUnit(dim, cfg.kernel_size, cfg.kernel_size ** i, cfg.dtype, rngs=rngs)
                           for i in range(cfg.depth)])

  def __call__(self, x_BTC, states=None):
    out = []
    for unit, state in zip(self.units, states or [None] * len(self.units)):
      x_BTC, state = unit(x_BTC, state)
      out.append(state)
    return x_BTC, tuple(out)


class Encoder(nnx.Module):
  """Patches → stages with a fold between → mean and log-variance."""

  def __init__(self, cfg: AudioVAEConfig, *, rngs: nnx.Rngs):
    patch_size = cfg.hop // math.prod(cfg.strides)  # samples a step of the first stage
    ins = (patch_size * cfg.channels, *(w * s for w, s in zip(cfg.widths, cfg.strides)))
    # Two taps: the step before comes along, so that no boundary between patches is blind.
    self.joins = nnx.List([CausalConv1d(i, w, 2, dtype=cfg.dtype, rngs=rngs) for i, w in zip(ins, cfg.widths)])
    self.stages = nnx.List([Stage(w, cfg, rngs=rngs) for w in cfg.widths])
    self.out = CausalConv1d(cfg.widths[-1], 2 * cfg.latent_channels, 1, dtype='float32', rngs=rngs)
    self.shortcut = CausalConv1d(cfg.hop * cfg.channels, cfg.latent_channels, 2, dtype=cfg.dtype, rngs=rngs)
    self.hop = cfg.hop
    self.factors = (patch_size, *cfg.strides)

  def __call__(self, x_BRC, state):
    joins, stages = [], []
    linear_BTC, shortcut = self.shortcut(fold(x_BRC, self.hop), state and state[2])
    for i, factor in enumerate(self.factors):
      x_BRC, join = self.joins[i](fold(x_BRC, factor), state and state[0][i])
      x_BRC, stage = self.stages[i](x_BRC, state and state[1][i])
      joins.append(join)
      stages.append(stage)
    mean_BTC, logvar_BTC = jnp.split(self.out(x_BRC)[0], 2, axis=-1)
    return mean_BTC + linear_BTC.astype(jnp.float32), logvar_BTC, (tuple(joins), tuple(stages), shortcut)


class Decoder(nnx.Module):
  """The encoder's mirror image."""

  def __init__(self, cfg: AudioVAEConfig, *, rngs: nnx.Rngs):
    strides, widths = (x[::-1] for x in cfg.decoder_sizes)
    patch_size = cfg.hop // math.prod(strides)
    outs = (*(w * s for w, s in zip(widths[1:], strides)), patch_size * cfg.channels)
    self.inp = CausalConv1d(cfg.latent_channels, widths[0], 1, dtype=cfg.dtype, rngs=rngs)
    self.stages = nnx.List([Stage(w, cfg, rngs=rngs) for w in widths])
    # The waveform starts near silence: random noise at full level would first have to be unlearnt.
    gains = [1.0] * len(strides) + [0.1]
    self.splits = nnx.List([CausalConv1d(w, o, 2, gain=g, dtype=cfg.dtype, rngs=rngs)
                            for w, o, g in zip(widths, outs, gains)])
    self.shortcut = CausalConv1d(cfg.latent_channels, cfg.hop * cfg.channels, 2, gain=0.1, dtype=cfg.dtype, rngs=rngs)
    self.factors = (*strides, patch_size)
    self.hop = cfg.hop

  def __call__(self, z_BTC, state):
    stages, splits = [], []
    linear_BTO, shortcut = self.shortcut(z_BTC, state and state[2])
    x_BTC, _ = self.inp(z_BTC)
    for i, factor in enumerate(self.factors):
      x_BTC, stage = self.stages[i](x_BTC, state and state[0][i])
      x_BTC, split = self.splits[i](x_BTC, state and state[1][i])
      x_BTC = unfold(x_BTC, factor)
      stages.append(stage)
      splits.append(split)
    return x_BTC + unfold(linear_BTO, self.hop), (tuple(stages), tuple(splits), shortcut)


class AudioVAE(nnx.Module):
  """Waveform ↔ latents; a pure pytree of parameters."""
  DECODER = 'decoder',

  def __init__(self, cfg: AudioVAEConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.encoder = Encoder(cfg, rngs=rngs)
    self.decoder = Decoder(cfg, rngs=rngs)

  def encode(self, audio_BRC: Float[Array, 'b r c']) -> tuple[Float[Array, 'b t z'], Float[Array, 'b t z']]:
    """Samples (a multiple of hop) to the posterior's mean and log-variance, float32, one step every hop samples."""
    mean_BTC, logvar_BTC, _ = self.encode_chunk(audio_BRC)
    return mean_BTC, logvar_BTC

  def decode(self, latent_BTC: Float[Array, 'b t z']) -> Float[Array, 'b r c']:
    """Latents to samples, float32, hop samples a step."""
    return self.decode_chunk(latent_BTC)[0]

  def encode_chunk(self, audio_BRC: Float[Array, 'b r c'], state: Any = None
                   ) -> tuple[Float[Array, 'b t z'], Float[Array, 'b t z'], Any]:
    """As `encode`, for the next piece of a clip. Returns (mean, logvar, state); state None begins a clip."""
    R, C = audio_BRC.shape[1:]
    if C != self.cfg.channels or R % self.cfg.hop or not R:
      raise ValueError(f'audio of {R} samples × {C} channels; this VAE takes a positive multiple of {self.cfg.hop} '
                       f'samples × {self.cfg.channels} channels (AudioCodec pads for you)')
    mean_BTC, logvar_BTC, state = self.encoder(audio_BRC, state)
    return mean_BTC, jnp.clip(logvar_BTC + INITIAL_LOGVAR, -20.0, 10.0), state

  def decode_chunk(self, latent_BTC: Float[Array, 'b t z'], state: Any = None) -> tuple[Float[Array, 'b r c'], Any]:
    """As `decode`, for the next piece of a clip. Returns (audio, state); state None begins a clip."""
    audio_BRC, state = self.decoder(latent_BTC, state)
    return audio_BRC.astype(jnp.float32), state
