"""One chunk of a clip's tiles through a video VAE on several devices: tiles side by side, and the frames and rows of
each split, every convolution getting its neighbours' edges (models/conv.py). The results are those of one device.

Frames are split into parts of whole chunks, so that a call takes as many chunks as there are parts, and every device
does the work that one device does in a call. Of a VAE that must see whole frames and all of their past, tiles alone are
shared out (`by_tile`).
"""
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from veojax import sharding
from veojax.models.video_vae import VideoVAE


def encode(vae: VideoVAE, mesh):
  """step(uint8[tiles, T, H, W, 3], state) → (posterior mean, state), as `video_codec.encode_tile`, over the mesh."""
  vae = jax.device_put(vae, sharding.named(mesh, sharding.REPLICATED))

  def step(video, state):
    if state is None:
      video = np.concatenate([video[:, :1]] * (vae.cfg.temporal_compression - 1) + [video], 1)
    with jax.set_mesh(mesh):
      return encode_parts(vae, jax.device_put(video, sharding.named(mesh, sharding.CLIP)), state)
  return step


def decode(vae: VideoVAE, mesh):
  """step(latents[tiles, t, h, w, C], state) → (pixels, state), as `video_codec.decode_tile`, over the mesh."""
  vae = jax.device_put(vae, sharding.named(mesh, sharding.REPLICATED))

  def step(latent, state):
    with jax.set_mesh(mesh):
      pixels, new = decode_parts(vae, jax.device_put(latent, sharding.named(mesh, sharding.CLIP)), state)
    return (np.asarray(pixels)[:, vae.cfg.temporal_compression - 1:] if state is None else pixels), new
  return step


def by_tile(function: Callable, vae, mesh):
  """step(tiles, state) → function(vae, tiles, state), with as many tiles as the mesh has devices, each on one."""
  vae = jax.device_put(vae, sharding.named(mesh, sharding.REPLICATED))

  def step(x, state):
    with jax.set_mesh(mesh):
      return _by_tile(function, vae, jax.device_put(x, sharding.named(mesh, sharding.TILE)), state)
  return step


@functools.partial(jax.jit, static_argnums=0)
def _by_tile(function, vae, x_BTHWC, state):
  specs = sharding.REPLICATED, sharding.TILE, sharding.TILE
  return jax.shard_map(function, in_specs=specs, out_specs=sharding.TILE, check_vma=False)(vae, x_BTHWC, state)


@jax.jit
def encode_parts(vae, video_BTHWC, state):
  """(posterior means, state) of uint8 pixels that lie as `sharding.CLIP`, whole latents of them, under such a mesh."""
  def part(vae, video_BTHWC, state):
    (mean, _), state = vae.encode_frames((video_BTHWC.astype(jnp.float32) / 127.5 - 1).astype(vae.cfg.dtype), state)
    return mean, state
  return _over_parts(part, vae, video_BTHWC, state)


@jax.jit
def decode_parts(vae, latent_BTHWC, state):
  """(pixels, state) of latents, likewise."""
  return _over_parts(VideoVAE.decode_frames, vae, latent_BTHWC, state)


def _over_parts(function, vae, x_BTHWC, state):
  specs = sharding.REPLICATED, sharding.CLIP, sharding.CLIP
  return jax.shard_map(function, in_specs=specs, out_specs=(sharding.CLIP, sharding.CLIP), check_vma=False)(
      vae, x_BTHWC, state)
