"""TAEF2: a tiny autoencoder between pixels and FLUX.2's latents (madebyollin/taesd), and a codec of clips made of it.

Each frame stands alone: a latent cell of 32 channels is 8 × 8 pixels of one frame. Pixels lie in [0, 1]. Latents are
left as published, `mean_C` zero and `std_C` one, unless statistics are given. The decoder bounds them to ±3. The blocks
nearest the latents norm over the whole frame, so frames are not cut into tiles.
"""
import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from veojax.models import codec_file, conv, layers, video_codec, weights
from veojax.models.conv import SpatialConv, Video
from veojax.models.picture_codec import PictureCodec
from veojax.zoo import weight_table
from veojax.zoo.transforms import CONV, pointwise
from veojax.zoo.weight_table import Rule

SPATIAL_COMPRESSION = 8
GROUPS = 4
BLOCKS = 3  # on each of the three smaller grids; the pixels' own has one


@dataclasses.dataclass(frozen=True)
class TAEF2Config:
  latent_channels: int = 32
  width: int = 64


class UnbiasedConv(nnx.Module):
  """A convolution of 3 × 3 within each frame; with stride 2 centred on the even rows and columns."""

  def __init__(self, width: int, stride: int, *, rngs: nnx.Rngs):
    self.stride = stride
    init = nnx.initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)
    self.kernel = layers.param(init, rngs.params(), (3, 3, width, width))

  def __call__(self, x_BTHWC: Video) -> Video:
    B, T, H, W, C = x_BTHWC.shape
    y = jax.lax.conv_general_dilated(
        conv.reshape(x_BTHWC, B * T, H, W, C), self.kernel[...].astype(x_BTHWC.dtype), (self.stride, self.stride),
        ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return conv.reshape(y, B, T, *y.shape[1:])


class Block(nnx.Module):
  """relu(x + three convolutions of x)."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.convs = nnx.List([SpatialConv(width, width, rngs=rngs) for _ in range(3)])

  def __call__(self, x_BTHWC: Video) -> Video:
    first, second, third = self.convs
    return jax.nn.relu(x_BTHWC + third(jax.nn.relu(second(jax.nn.relu(first(x_BTHWC))))))


class NormedBlock(Block):
  """A Block of x + a bottleneck turned outward, whose wide middle is normed over the whole frame, group by group."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    super().__init__(width, rngs=rngs)
    wide = 4 * width
    self.widen = layers.param(layers.lecun_normal(), rngs.params(), (width, wide))
    self.scale = layers.param(nnx.initializers.ones, rngs.params(), (wide,))
    self.bias = layers.param(layers.zeros, rngs.params(), (wide,))
    self.narrow = layers.param(layers.lecun_normal(), rngs.params(), (wide, width))

  def __call__(self, x_BTHWC: Video) -> Video:
    h_BTHWC = group_norm(x_BTHWC @ self.widen[...].astype(x_BTHWC.dtype), self.scale[...], self.bias[...])
    return super().__call__(x_BTHWC + jax.nn.relu(h_BTHWC) @ self.narrow[...].astype(x_BTHWC.dtype))


def group_norm(x_BTHWC: Video, scale: Float[Array, 'd'], bias: Float[Array, 'd']) -> Video:
  """Group norm (Wu & He 2018) of each frame, statistics in float32."""
  x = conv.reshape(x_BTHWC, *x_BTHWC.shape[:4], GROUPS, -1).astype(jnp.float32)
  mean = jnp.mean(x, (2, 3, 5), keepdims=True)
  variance = jnp.mean(jnp.square(x - mean), (2, 3, 5), keepdims=True)
  y = conv.reshape((x - mean) * jax.lax.rsqrt(variance + 1e-5), *x_BTHWC.shape)
  return conv.add_bias(y * scale.astype(jnp.float32)[None, None, None, None], bias).astype(x_BTHWC.dtype)


class TAEF2(nnx.Module):
  """Stages from fine to coarse in `encoder`, from coarse to fine in `decoder`, with a convolution between each two."""
  DECODER = 'from_latent', 'decoder', 'up', 'to_pixels'

  def __init__(self, cfg: TAEF2Config, *, rngs: nnx.Rngs):
    self.cfg = cfg
    stages = lambda sizes, coarse: nnx.List([nnx.List([
        (NormedBlock if i == coarse else Block)(cfg.width, rngs=rngs) for _ in range(size)])
        for i, size in enumerate(sizes)])
    self.from_pixels = SpatialConv(3, cfg.width, rngs=rngs)
    self.encoder = stages((1, BLOCKS, BLOCKS, BLOCKS), 3)
    self.down = nnx.List([UnbiasedConv(cfg.width, 2, rngs=rngs) for _ in range(3)])
    self.to_latent = SpatialConv(cfg.width, cfg.latent_channels, rngs=rngs)
    self.from_latent = SpatialConv(cfg.latent_channels, cfg.width, rngs=rngs)
    self.decoder = stages((BLOCKS, BLOCKS, BLOCKS, 1), 0)
    self.up = nnx.List([UnbiasedConv(cfg.width, 1, rngs=rngs) for _ in range(3)])
    self.to_pixels = SpatialConv(cfg.width, 3, rngs=rngs)

  def encode(self, video_BTHWC: Float[Array, 'b t h w 3']) -> Video:
    """Pixels in [0, 1], height and width multiples of 8 → latents [B, T, H/8, W/8, latent_channels]."""
    x_BTHWC = self.from_pixels(video_BTHWC)
    for i, blocks in enumerate(self.encoder):
      x_BTHWC = functools.reduce(lambda x, block: block(x), blocks, self.down[i - 1](x_BTHWC) if i else x_BTHWC)
    return self.to_latent(x_BTHWC)

  def decode(self, latent_BTHWC: Video) -> Float[Array, 'b t h w 3']:
    """Latents → pixels, in [0, 1] but for what is to be clipped."""
    x_BTHWC = jax.nn.relu(self.from_latent(3 * jnp.tanh(latent_BTHWC / 3)))
    for i, blocks in enumerate(self.decoder):
      x_BTHWC = functools.reduce(lambda x, block: block(x), blocks, self.up[i - 1](doubled(x_BTHWC)) if i else x_BTHWC)
    return self.to_pixels(x_BTHWC)


def doubled(x_BTHWC: Video) -> Video:
  """Every cell as 2 × 2 equal cells."""
  return conv.depth_to_space(jnp.concatenate([x_BTHWC] * 4, -1), 1, 2)


def _block_rules(source: str, target: str, normed: bool) -> list[Rule]:
  rules = []
  for i in range(3):
    rules += [Rule(f'{source}.conv.{2 * i}.weight', f'{target}.convs.{i}.kernel', CONV),
              Rule(f'{source}.conv.{2 * i}.bias', f'{target}.convs.{i}.bias')]
  return rules + normed * [
      Rule(f'{source}.pool.0.weight', f'{target}.widen', pointwise(2)),
      Rule(f'{source}.pool.1.weight', f'{target}.scale'), Rule(f'{source}.pool.1.bias', f'{target}.bias'),
      Rule(f'{source}.pool.3.weight', f'{target}.narrow', pointwise(2))]


def _table() -> tuple[Rule, ...]:
  """The published file numbers its layers as PyTorch's Sequential does: the decoder's 1 is a relu, an upsampling stands
  before each of its convolutions. (In the .pth files the decoder's numbers are one higher.)"""
  rules = []
  for source, target in (('encoder.layers.0', 'from_pixels'), ('encoder.layers.14', 'to_latent'),
                         ('decoder.layers.0', 'from_latent'), ('decoder.layers.18', 'to_pixels')):
    rules += [Rule(f'{source}.weight', f'{target}.kernel', CONV), Rule(f'{source}.bias', f'{target}.bias')]
  for i, number in enumerate((2, 6, 10)):
    rules.append(Rule(f'encoder.layers.{number}.weight', f'down.{i}.kernel', CONV))
  for i, number in enumerate((6, 11, 16)):
    rules.append(Rule(f'decoder.layers.{number}.weight', f'up.{i}.kernel', CONV))
  for part, numbers, coarse in (('encoder', ((1,), (3, 4, 5), (7, 8, 9), (11, 12, 13)), 3),
                                ('decoder', ((2, 3, 4), (7, 8, 9), (12, 13, 14), (17,)), 0)):
    for i, stage in enumerate(numbers):
      for j, number in enumerate(stage):
        rules += _block_rules(f'{part}.layers.{number}', f'{part}.{i}.{j}', i == coarse)
  return tuple(rules)


TABLE = _table()


@jax.jit
def _encode(vae: TAEF2, video_BTHWC):
  return vae.encode(video_BTHWC.astype(jnp.float32) / 255)


@jax.jit
def _decode(vae: TAEF2, latent_BTHWC):
  return jnp.round(jnp.clip(vae.decode(latent_BTHWC), 0, 1) * 255).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True)
class FrameCodec(PictureCodec):
  """A TAEF2 with the statistics of its latents, to be used as a `VideoCodec` is.

  A clip is extended by repeating its edges to multiples of 8 pixels and of `chunk` frames, which are done at a time;
  one program per size of frame is compiled in each direction.
  """
  vae: TAEF2
  mean_C: np.ndarray
  std_C: np.ndarray
  chunk: int = 4

  VAE, CONFIG = TAEF2, TAEF2Config
  temporal_compression, spatial_compression = 1, SPATIAL_COMPRESSION

  def __post_init__(self):
    self.check()

  def _encode(self, video_THWC, shape):
    t, h, w, _ = shape
    size = h * SPATIAL_COMPRESSION, w * SPATIAL_COMPRESSION
    return np.concatenate([
        _encode(self.vae, video_codec.extend(video_THWC[i:i + self.chunk], self.chunk, *size)[None])[0]
        for i in range(0, t, self.chunk)])[:t]

  def _decode_chunk(self, latent_THWC, height, width, state):
    t, h, w, _ = latent_THWC.shape
    pixels = _decode(self.vae, video_codec.extend(latent_THWC, self.chunk, h, w)[None])[0]
    return np.asarray(pixels)[:t, :height, :width], None


def fitted(codec: FrameCodec, videos: Iterable[np.ndarray]) -> FrameCodec:
  """The codec with the statistics of the latents of some clips, uint8[T, H, W, 3] each: what a model is trained on has
  zero mean and unit variance per channel."""
  plain = dataclasses.replace(codec, mean_C=np.zeros_like(codec.mean_C), std_C=np.ones_like(codec.std_C))
  mean_C, std_C = codec_file.moments(plain.encode(video) for video in videos)
  return dataclasses.replace(codec, mean_C=mean_C, std_C=std_C)


def load(source, mean_C=None, std_C=None, chunk: int = 4) -> FrameCodec:
  """The codec of published weights: a .safetensors file or its folder."""
  cfg = TAEF2Config()
  shapes = weights.abstract(lambda rngs: TAEF2(cfg, rngs=rngs))
  mean_C = np.zeros(cfg.latent_channels, np.float32) if mean_C is None else np.asarray(mean_C, np.float32)
  std_C = np.ones(cfg.latent_channels, np.float32) if std_C is None else np.asarray(std_C, np.float32)
  return FrameCodec(weight_table.load(source, TABLE, shapes), mean_C, std_C, chunk)
