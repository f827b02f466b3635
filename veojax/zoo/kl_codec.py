"""A KLVAE as a codec of clips: each frame by itself and whole, so that a frame costs what its size says.

Latents are posterior means times `scaling_factor`, what latent diffusion is trained on.
"""
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from veojax import sharding
from veojax.models.picture_codec import PictureCodec
from veojax.models.video_codec import extend
from veojax.sharding import MeshConfig
from veojax.zoo.kl_vae import KLVAE, KLVAEConfig


@jax.jit
def encode_frames(vae: KLVAE, video_BTHWC):
  """uint8 pixels → posterior means."""
  return vae.encode(video_BTHWC.astype(jnp.float32) / 127.5 - 1)[0]


@jax.jit
def decode_frames(vae: KLVAE, latent_BTHWC):
  return vae.decode(latent_BTHWC)


@dataclasses.dataclass(frozen=True)
class KLCodec(PictureCodec):
  """`chunk` frames are encoded and decoded at a time."""
  vae: KLVAE
  mean_C: np.ndarray
  std_C: np.ndarray
  chunk: int = 4

  VAE, CONFIG = KLVAE, KLVAEConfig
  temporal_compression = 1

  @classmethod
  def of(cls, vae: KLVAE, chunk: int = 4) -> 'KLCodec':
    channels = vae.cfg.latent_channels
    return cls(vae, np.zeros(channels, np.float32), np.full(channels, 1 / vae.cfg.scaling_factor, np.float32), chunk)

  def __post_init__(self):
    self.check()

  @property
  def spatial_compression(self) -> int:
    return self.vae.cfg.spatial_compression

  def _encode(self, video_THWC, shape):
    t, h, w, _ = shape
    sc = self.spatial_compression
    return np.concatenate([self._run(encode_frames, extend(video_THWC[k:k + self.chunk], self.chunk, h * sc, w * sc))
                           for k in range(0, t, self.chunk)])[:t]

  def _decode_chunk(self, latent_THWC, height, width, state):
    chunk = extend(latent_THWC, self.chunk, *latent_THWC.shape[1:3])
    pixels = self._run(decode_frames, chunk)[:len(latent_THWC), :height, :width]
    return np.round((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8), None

  def _run(self, function, x_THWC):
    """Frames are rows, over as many of this process's devices of the mesh in force as divide them; where none is in
    force, where the weights are."""
    mesh = jax.sharding.get_mesh()
    devices = list(jax.tree.leaves(self.vae)[0].devices() if mesh.empty else mesh.local_devices)
    number = math.gcd(len(devices), len(x_THWC))
    with sharding.use(MeshConfig(data=number), devices[:number]) as mesh:
      rows = jax.device_put(x_THWC[:, None], sharding.named(mesh, sharding.B))
      return np.asarray(function(self.vae, rows))[:, 0]
