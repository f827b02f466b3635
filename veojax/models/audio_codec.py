"""Sound of any length to normalised latents and back, through an AudioVAE in chunks of one fixed size.

The VAE is causal and its chunks carry state, so the result is that of the whole clip; two programs are compiled for
each direction (first chunk, later chunks), whatever the lengths, and memory on the device does not grow with them.
Latent j covers samples j·hop to (j + 1)·hop; the end is padded with silence up to a whole latent.

Latents are normalised per channel, (mean - mean_C) / std_C, by statistics measured on the training data: the diffusion
model sees zero mean and unit variance.
"""
import dataclasses
from collections.abc import Iterable

import jax
import numpy as np

from veojax import processes
from veojax.models import codec_file
from veojax.models.audio_vae import AudioVAE, AudioVAEConfig


@dataclasses.dataclass(frozen=True)
class AudioCodec(codec_file.Stored):
  """A VAE with its latents' statistics, float32[latent_channels] each; chunk is in latents (64: 2.56 s at 25 Hz)."""
  vae: AudioVAE
  mean_C: np.ndarray
  std_C: np.ndarray
  chunk: int = 64

  VAE, CONFIG = AudioVAE, AudioVAEConfig

  @property
  def sample_rate(self) -> int:
    return self.vae.cfg.sample_rate

  @property
  def channels(self) -> int:
    return self.vae.cfg.channels

  @property
  def latent_rate(self) -> float:
    return self.vae.cfg.latent_rate

  @property
  def hop(self) -> int:
    return self.vae.cfg.hop

  def latent_length(self, num_samples: int) -> int:
    """Latents of a sound of `num_samples` samples."""
    return -(-num_samples // self.vae.cfg.hop)

  def encode(self, audio: np.ndarray) -> np.ndarray:
    """float32[R, channels] at the codec's sample rate → normalised latents float32[latent_length(R), latent_channels].

    The posterior's mean: encoding the same sound twice gives the same latents. R may be 0.
    """
    if audio.ndim != 2 or audio.shape[1] != self.channels:
      raise ValueError(f'audio of shape {list(audio.shape)}; this codec takes [samples, {self.channels}]: '
                       f'read the file with channels={self.channels}')
    length = self.latent_length(len(audio))
    out, state = [np.zeros((0, len(self.mean_C)), np.float32)], None
    for piece in _pieces(audio, self.chunk * self.vae.cfg.hop):
      latent_BTC, state = encode_chunk(self.vae, piece, state)
      out.append(processes.fetch(latent_BTC)[0])
    return (np.concatenate(out)[:length] - self.mean_C[None]) / self.std_C[None]

  def decode(self, latent: np.ndarray, num_samples: int | None = None) -> np.ndarray:
    """Normalised latents float32[T, latent_channels] → float32[num_samples, channels], clipped to [-1, 1].

    num_samples None is T·hop; beyond that there is silence.
    """
    if latent.ndim != 2 or latent.shape[1] != len(self.mean_C):
      raise ValueError(f'latents of shape {list(latent.shape)}; this codec takes [latents, {len(self.mean_C)}]')
    num_samples = len(latent) * self.vae.cfg.hop if num_samples is None else num_samples
    out, state = [np.zeros((0, self.channels), np.float32)], None
    for k in range(0, len(latent), self.chunk):
      audio, state = self.decode_chunk(latent[k:k + self.chunk], state)
      out.append(audio)
    audio = np.concatenate(out)[:num_samples]
    return np.pad(audio, ((0, num_samples - len(audio)), (0, 0)))

  def decode_chunk(self, latent: np.ndarray, state=None):
    """The next latents of a sound of any length → (their samples, state), as `decode` has them.

    state: None for the first ones, then what the ones before gave. Give `chunk` latents; the last may be fewer.
    """
    if not 1 <= len(latent) <= self.chunk:
      raise ValueError(f'{len(latent)} latents at once; give up to {self.chunk}')
    latent_BTC = np.asarray(latent, np.float32)[None] * self.std_C + self.mean_C
    filled_BTC = np.pad(latent_BTC, ((0, 0), (0, self.chunk - len(latent)), (0, 0)))
    audio_BRC, state = decode_chunk(self.vae, filled_BTC, state)
    # What the filling of the last chunk sounds like is cut.
    return np.clip(processes.fetch(audio_BRC)[0, :len(latent) * self.hop], -1, 1), state

  def reconstruct(self, audio: np.ndarray) -> np.ndarray:
    """The sound through the codec and back."""
    return self.decode(self.encode(audio), len(audio))


def statistics(vae: AudioVAE, batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """`codec_file.moments` of the posterior means of float32[B, R, channels] batches, R a multiple of hop; batches of one
  shape compile once."""
  return codec_file.moments(_posterior_mean(vae, batch) for batch in batches)


def _pieces(x, size):
  """Pieces [1, size, C] of x [N, C], the last one filled with zeros."""
  for start in range(0, len(x), size):
    piece = np.asarray(x[start:start + size], np.float32)
    yield np.pad(piece, ((0, size - len(piece)), (0, 0)))[None]


@jax.jit
def encode_chunk(vae, audio_BRC, state):
  mean_BTC, _, state = vae.encode_chunk(audio_BRC, state)
  return mean_BTC, state


@jax.jit
def decode_chunk(vae, latent_BTC, state):
  return vae.decode_chunk(latent_BTC, state)


@jax.jit
def _posterior_mean(vae, audio_BRC):
  return vae.encode(audio_BRC)[0]
