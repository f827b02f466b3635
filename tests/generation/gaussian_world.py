"""A model of a world whose optimal denoiser is known: latents are a Gaussian process of time that picture and sound
share.

Every channel is a draw of its own: one clip is as many samples as it has channels. Of the covariances between what is
seen or heard at two times, `forgetful` makes past and future independent given the present (Ornstein & Uhlenbeck);
`smooth` is that of something that moves.
"""
import jax
import jax.numpy as jnp
import numpy as np

from veojax import sharding
from veojax.data.tokenizer import Tokenizer
from veojax.diffusion.objective import Objective
from veojax.generation.model import ClipConfig, Model, ModelConfig
from veojax.generation.sampling import SamplingConfig
from veojax.models import layers
from veojax.models.audio_codec import AudioCodec
from veojax.models.dit import DiT, DiTConfig
from veojax.models.picture_codec import PictureCodec
from veojax.types import AUDIO

LENGTH = 0.5  # seconds
CHANNELS = 2048
FPS, RATE, TC = 8.0, 8.0, 2


def forgetful(time):
  return jnp.exp(-jnp.abs(time[:, None] - time[None]) / LENGTH)


def smooth(time):
  return jnp.exp(-jnp.square((time[:, None] - time[None]) / LENGTH) / 2) + 0.01 * jnp.eye(len(time))


def covariance(time):
  return np.asarray(forgetful(jnp.asarray(time)), np.float64)


class Denoiser(DiT):
  """E[x0 | x] under the rectified flow, x = (1 - t) x0 + t eps, from the tokens of the same segment."""

  def __init__(self, kernel, channels: int):
    self.kernel = kernel
    self.config = DiTConfig(video_channels=channels, audio_channels=channels)

  def __call__(self, tokens, noise_BG):
    t_BL = layers.take(noise_BG, tokens.group, sharding.BL)

    def rows(x_BLC, t_BL, time_BL, segment_BL, modality_BL):
      def row(x, t, time, segment, modality):
        media = (modality >= AUDIO) & (segment > 0)
        meet = (segment[:, None] == segment[None]) & media[:, None] & media[None]
        k = jnp.where(meet, self.kernel(time), 0)
        alpha, variance = 1 - t, jnp.maximum(t, 1e-3) ** 2
        noisy = alpha[:, None] * k * alpha[None] + jnp.diag(jnp.where(media, variance, 1))
        return (k * alpha[None]) @ jnp.linalg.solve(noisy, jnp.where(media[:, None], x, 0))
      return jax.vmap(row)(x_BLC, t_BL, time_BL, segment_BL, modality_BL)
    operands = tokens.latent, t_BL, tokens.position[..., 0], tokens.segment, tokens.modality
    if sharding.in_force(sharding.B) is None:
      return rows(*operands)
    return jax.sharding.auto_axes(rows, out_sharding=sharding.BLD)(*operands)


class Pictures(PictureCodec):
  """Frames of 8 x 8 pixels are one cell, whatever they show."""
  latent_channels, temporal_compression, spatial_compression, chunk = CHANNELS, TC, 8, 4
  mean_C, std_C = np.zeros(CHANNELS, np.float32), np.ones(CHANNELS, np.float32)

  def _encode(self, video_THWC, shape):
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


class Sounds(AudioCodec):
  """Latents of one sample each, whatever is heard."""
  sample_rate, latent_rate, channels, latent_channels, hop = 8, RATE, 1, CHANNELS, 1

  def __init__(self):
    pass

  def latent_length(self, num_samples):
    return num_samples

  def encode(self, audio):
    return np.random.default_rng(8).normal(size=(len(audio), CHANNELS)).astype(np.float32)


class Words(Tokenizer):
  def __init__(self):
    pass

  def encode(self, text, max_length):
    return [1, 2]


class Blocks(PictureCodec):
  """Frames of 64 x 64 pixels are one cell, its channels the colours of 8 x 8 blocks."""
  latent_channels, temporal_compression, spatial_compression, chunk = 192, 1, 64, 4
  mean_C, std_C = np.full(192, 127.5, np.float32), np.full(192, 35.0, np.float32)

  def _encode(self, video_THWC, shape):
    return video_THWC.reshape(-1, 8, 8, 8, 8, 3).mean((2, 4), dtype=np.float32).reshape(-1, 1, 1, 192)

  def _decode_chunk(self, latent_THWC, height, width, state):
    blocks = np.clip(np.round(latent_THWC), 0, 255).astype(np.uint8).reshape(-1, 8, 8, 3)
    return blocks.repeat(8, 1).repeat(8, 2), None


def make(kernel=forgetful, picture=Pictures, sound=Sounds, side=8, **sampling) -> Model:
  settings = SamplingConfig(**{'sampler': 'heun', 'num_inference_steps': 32, 'guidance_scale': 1.0} | sampling)
  net = Denoiser(kernel, picture.latent_channels)
  config = ModelConfig(net.config, Objective('flow', 'x0'), settings, ClipConfig(9, side, side, FPS), max_text=4)
  return Model(config, net, picture(), sound and sound(), Words())
