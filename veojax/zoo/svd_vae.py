"""Stable Video Diffusion's autoencoder (Blattmann et al. 2023, `AutoencoderKLTemporalDecoder`): the encoder of latent
diffusion's, each frame by itself, and a decoder whose residual blocks also look along time.

Norms along time are of all frames that are decoded together, so a clip in parts is not quite the whole. Pixels lie in
[-1, 1]; what the diffusion model makes is a latent times `scaling_factor`, the first frame it is given is not scaled.
"""
import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from veojax import sharding
from veojax.models import layers, video_codec
from veojax.models.conv import Video
from veojax.models.picture_codec import PictureCodec
from veojax.zoo import kl_vae, svd_unet, unet_layers
from veojax.zoo.kl_vae import Encoder, PictureAttention, Stateless
from veojax.zoo.svd_unet import TimeConv, TimeResidualBlock, mixed
from veojax.zoo.unet_layers import GROUPS, Conv, GroupNorm, Linear, ResidualBlock, Upsample
from veojax.zoo.weight_table import Rule

TIME_EPS = 1e-5

IGNORED = kl_vae.IGNORED


@dataclasses.dataclass(frozen=True)
class SVDVAEConfig(kl_vae.Compression):
  """The fields of config.json, and the dtype of the computation."""
  in_channels: int = 3
  out_channels: int = 3
  down_block_types: tuple[Literal['DownEncoderBlock2D'], ...] = ('DownEncoderBlock2D',) * 4
  block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
  layers_per_block: Literal[2] = 2
  latent_channels: int = 4
  scaling_factor: float = 0.18215
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    kl_vae.check_widths(self.block_out_channels, GROUPS)
    if len(self.down_block_types) != len(self.block_out_channels):
      raise ValueError(f'block_out_channels={self.block_out_channels} for {len(self.down_block_types)} stages; give one '
                       'width for each')


class Residual(nnx.Module):
  """A residual block of each frame, then one along time."""

  def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
    self.space = ResidualBlock(inputs, outputs, eps=kl_vae.EPS, rngs=rngs)
    self.time = TimeResidualBlock(outputs, TIME_EPS, rngs=rngs)
    self.share = layers.param(layers.zeros, rngs.params(), (1,))

  def __call__(self, x_BTHWC: Video) -> Video:
    x_BTHWC = self.space(x_BTHWC)
    return mixed(self.share[...], self.time(x_BTHWC), x_BTHWC)  # the share is here that of time


class Middle(nnx.Module):
  """Two residual blocks, with attention over each frame between them."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.resnets = nnx.List([Residual(width, width, rngs=rngs) for _ in range(2)])
    self.attention = PictureAttention(width, GROUPS, rngs=rngs)

  def __call__(self, x_BTHWC: Video) -> Video:
    return self.resnets[1](self.attention(self.resnets[0](x_BTHWC)))


class Stage(nnx.Module):

  def __init__(self, inputs: int, outputs: int, depth: int, sample: nnx.Module | None, *, rngs: nnx.Rngs):
    self.resnets = nnx.List([Residual(outputs if i else inputs, outputs, rngs=rngs) for i in range(depth)])
    self.sample = sample

  def __call__(self, x_BTHWC: Video) -> Video:
    for block in self.resnets:
      x_BTHWC = block(x_BTHWC)
    return x_BTHWC if self.sample is None else self.sample(x_BTHWC)


class Decoder(nnx.Module):

  def __init__(self, config: SVDVAEConfig, *, rngs: nnx.Rngs):
    widths, outputs = config.block_out_channels[::-1], config.out_channels
    self.conv_in = Conv(config.latent_channels, widths[0], rngs=rngs)
    self.middle = Middle(widths[0], rngs=rngs)
    self.stages = nnx.List([
        Stage(widths[max(i - 1, 0)], width, config.layers_per_block + 1,
              Upsample(width, rngs=rngs) if i < len(widths) - 1 else None, rngs=rngs) for i, width in enumerate(widths)])
    self.norm_out = GroupNorm(widths[-1], eps=kl_vae.EPS, rngs=rngs)
    self.conv_out = Conv(widths[-1], outputs, rngs=rngs)
    self.time_out = TimeConv(outputs, outputs, rngs=rngs)

  def __call__(self, z_BTHWC: Video) -> Video:
    x = self.middle(self.conv_in(z_BTHWC))
    for stage in self.stages:
      x = stage(x)
    return self.time_out(self.conv_out(jax.nn.silu(self.norm_out(x))))


class SVDVAE(Stateless, nnx.Module):
  DECODER = 'decoder',

  def __init__(self, cfg: SVDVAEConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    z = cfg.latent_channels
    self.encoder = Encoder(cfg.in_channels, cfg.block_out_channels, cfg.layers_per_block, 2 * z, GROUPS, rngs=rngs)
    self.quant = Linear(2 * z, 2 * z, rngs=rngs)
    self.decoder = Decoder(cfg, rngs=rngs)

  def encode(self, video_BTHWC: Float[Array, 'b t h w 3']):
    """(mean, logvar) float32, of each frame."""
    return kl_vae.posterior(self.quant(self.encoder(video_BTHWC.astype(self.cfg.dtype))))

  def decode(self, latent_BTHWC: Float[Array, 'b t h w c']) -> Float[Array, 'b t h2 w2 3']:
    """Pixels float32 of latents, which are not scaled."""
    return self.decoder(latent_BTHWC.astype(self.cfg.dtype)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class SVDCodec(PictureCodec):
  """An SVDVAE as the project's codecs are, its latents scaled: whole frames, `chunk` of them at a time."""
  vae: SVDVAE
  mean_C: np.ndarray
  std_C: np.ndarray
  chunk: int = 14

  VAE, CONFIG = SVDVAE, SVDVAEConfig
  temporal_compression = 1

  def __post_init__(self):
    self.check()

  @property
  def spatial_compression(self) -> int:
    return self.vae.cfg.spatial_compression

  def _encode(self, video_THWC, shape):
    t, h, w, _ = shape
    sides = h * self.spatial_compression, w * self.spatial_compression
    frames = (video_codec.extend(video_THWC[i:i + 1], 1, *sides) for i in range(t))
    with sharding.no_mesh():
      return np.concatenate([np.asarray(video_codec.encode_tile(self.vae, frame[None], None)[0][0]) for frame in frames])

  def _decode_chunk(self, latent_THWC, height, width, state):
    with sharding.no_mesh():
      pixels = np.asarray(video_codec.decode_tile(self.vae, latent_THWC[None], None)[0])[0, :, :height, :width]
    return np.round((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8), None


def codec_of(vae: SVDVAE, chunk: int = 14) -> SVDCodec:
  zeros = np.zeros(vae.cfg.latent_channels, np.float32)
  return SVDCodec(vae, zeros, zeros + 1 / np.float32(vae.cfg.scaling_factor), chunk)


def table(cfg: SVDVAEConfig) -> Sequence[Rule]:
  stage = 'decoder.stages.{i}'
  return [*kl_vae.encoder_rules(), *kl_vae.end_rules('decoder'),
          *svd_unet.mixed_rules('decoder.mid_block.resnets.{j}', 'decoder.middle.resnets.{j}'),
          *svd_unet.mixed_rules('decoder.up_blocks.{i}.resnets.{j}', f'{stage}.resnets.{{j}}'),
          *unet_layers.conv_rules('decoder.up_blocks.{i}.upsamplers.0.conv', f'{stage}.sample'),
          *unet_layers.weights('decoder.time_conv_out', 'decoder.time_out', svd_unet.TIME_CONV, 'kernel', 'bias')]
