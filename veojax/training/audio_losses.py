"""Losses and distances between waveforms: multi-resolution STFT, log-mel, SI-SDR, and the audio VAE's objective.

Waveforms are in [-1, 1], audio_BRC, or x_BR with channels as rows. Spectra are magnitudes |X| scaled so that a sine of
amplitude 1 has 1; logarithms are of |X| + floor, so that silence is at a finite distance from sound.

The objective is  waveform L1 relative to the target's  +  mean over resolutions of (spectral convergence +
log-magnitude L1) (Yamamoto et al. 2020, eq. 3-6)  +  log-mel L1  +  KL(q(z|x) | N(0, 1)), each with its weight. The
waveform leads: in a mostly silent track the logarithms alone would first teach silence.
"""
import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from veojax.models.stft import stft


@dataclasses.dataclass(frozen=True)
class AudioLossConfig:
  """Weights of the terms; a term whose weight is 0 is not computed."""
  fft_sizes: tuple[int, ...] = (64, 256, 1024)  # hop is a quarter of each
  floor: float = 1e-3          # added to magnitudes, where a full-scale sine has 1: -60 dB
  mel_bins: int = 64
  mel_fft_size: int = 512
  waveform: float = 1.0
  stft: float = 0.05
  mel: float = 0.0
  kl: float = 1e-4


def stft_magnitude(x_BR: Float[Array, 'b r'], fft_size: int) -> Float[Array, 'b t f']:
  """|STFT| of models/stft.py: a sine of amplitude 1 at the centre of a bin has magnitude 1."""
  real, imag = stft(x_BR, fft_size)
  # The small term keeps the root's gradient finite where the spectrum is zero.
  return jnp.sqrt(jnp.square(real) + jnp.square(imag) + 1e-12)


def mel_filters(sample_rate: int, fft_size: int, mel_bins: int) -> np.ndarray:
  """float32[fft_size // 2 + 1, mel_bins]: triangles, evenly spaced on the mel scale 2595 log10(1 + f / 700) from 0 Hz
  to the Nyquist frequency, each summing to 1, so that a filter gives the mean magnitude of its band."""
  top = 2595 * np.log10(1 + sample_rate / 2 / 700)
  edges = 700 * (10 ** (np.linspace(0, top, mel_bins + 2) / 2595) - 1)
  # At low frequencies a triangle may be narrower than a bin: widened to one, so that none is empty.
  bin_width = sample_rate / fft_size
  low, centre, high = edges[:-2], edges[1:-1], edges[2:]
  low, high = np.minimum(low, centre - bin_width), np.maximum(high, centre + bin_width)
  f = np.arange(fft_size // 2 + 1)[:, None] * bin_width
  weights = np.maximum(0, np.minimum((f - low) / (centre - low), (high - f) / (high - centre)))
  return (weights / weights.sum(0)).astype(np.float32)


def log_mel(x_BR: Float[Array, 'b r'], sample_rate: int, *, fft_size: int = 512, mel_bins: int = 64,
            floor: float = 1e-3) -> Float[Array, 'b t m']:
  """Natural logarithm of the mel magnitudes plus floor."""
  filters = jnp.asarray(mel_filters(sample_rate, fft_size, mel_bins))
  return jnp.log(jnp.einsum('btf,fm->btm', stft_magnitude(x_BR, fft_size), filters) + floor)


def stft_loss(estimate_BR: Float[Array, 'b r'], target_BR: Float[Array, 'b r'], fft_sizes: tuple[int, ...],
              floor: float = 1e-3) -> Float[Array, '']:
  """Mean over resolutions of the log-magnitude L1 and the spectral convergence |X - Y|_F / |Y|_F of the batch.

  Convergence is relative to the whole batch, not to each clip: a silent clip would divide by nothing.
  """
  total = 0.0
  for fft_size in fft_sizes:
    # Half a window of silence on both sides: the first and last samples count as often as the others.
    x, y = (stft_magnitude(jnp.pad(a, ((0, 0), (fft_size // 2,) * 2)), fft_size) for a in (estimate_BR, target_BR))
    convergence = jnp.sqrt(jnp.sum(jnp.square(x - y)) / (jnp.sum(jnp.square(y)) + floor ** 2 * y.size))
    total += convergence + jnp.mean(jnp.abs(jnp.log(x + floor) - jnp.log(y + floor)))
  return total / len(fft_sizes)


def log_mel_distance(estimate_BR: Float[Array, 'b r'], target_BR: Float[Array, 'b r'], sample_rate: int, **options
                     ) -> Float[Array, '']:
  """Mean absolute difference of `log_mel`, in nepers (1 is 8.7 dB)."""
  return jnp.mean(jnp.abs(log_mel(estimate_BR, sample_rate, **options) - log_mel(target_BR, sample_rate, **options)))


def si_sdr(estimate_BR: Float[Array, 'b r'], target_BR: Float[Array, 'b r']) -> Float[Array, 'b']:
  """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, eq. 3); higher is better.

  Undefined for a silent target (0/0): leave those rows out.
  """
  dot = jnp.sum(estimate_BR * target_BR, -1, keepdims=True)
  projection = dot / jnp.sum(jnp.square(target_BR), -1, keepdims=True) * target_BR
  return 10 * jnp.log10(jnp.sum(jnp.square(projection), -1) / jnp.sum(jnp.square(estimate_BR - projection), -1))


def kl_to_normal(mean: Float[Array, '*s'], logvar: Float[Array, '*s']) -> Float[Array, '']:
  """KL(N(mean, exp(logvar)) | N(0, 1)) in nats, mean over all elements."""
  return 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1 - logvar)


def as_rows(audio_BRC: Float[Array, 'b r c']) -> Float[Array, 'n r']:
  """Channels as rows of their own."""
  B, R, C = audio_BRC.shape
  return jnp.reshape(jnp.swapaxes(audio_BRC, 1, 2), (B * C, R))


def waveform_loss(estimate_BR: Float[Array, 'b r'], target_BR: Float[Array, 'b r'], floor: float = 1e-3
                  ) -> Float[Array, '']:
  """L1 of the batch relative to the target's own, sum |x - y| / sum |y|: 1 for silence, whatever the loudness."""
  return jnp.sum(jnp.abs(estimate_BR - target_BR)) / (jnp.sum(jnp.abs(target_BR)) + floor * target_BR.size)


def reconstruction_terms(output_BRC: Float[Array, 'b r c'], audio_BRC: Float[Array, 'b r c'], sample_rate: int,
                         config: AudioLossConfig) -> dict[str, Float[Array, '']]:
  """What the objective asks of the decoder's output, before weighting."""
  x, y = as_rows(output_BRC), as_rows(audio_BRC)
  terms = {'waveform': waveform_loss(x, y, config.floor)}
  if config.stft:
    terms['stft'] = stft_loss(x, y, config.fft_sizes, config.floor)
  if config.mel:
    terms['mel'] = log_mel_distance(x, y, sample_rate, fft_size=config.mel_fft_size, mel_bins=config.mel_bins,
                                    floor=config.floor)
  return terms


def weighted(terms: dict[str, Float[Array, '']], config: AudioLossConfig) -> Float[Array, '']:
  return sum(getattr(config, name) * terms[name] for name in ('waveform', 'kl', 'stft', 'mel') if name in terms)
