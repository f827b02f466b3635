"""The autoencoder of latent diffusion (Rombach et al. 2022, `AutoencoderKL`): each picture by itself, sides of 2^k
pixels to a latent, k+1 stages.

Pixels lie in [-1, 1]. The posterior is N(mean, exp(logvar)); what a diffusion model sees is a latent times
`scaling_factor`.
"""
import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from veojax.models import conv, dense_attention
from veojax.models.conv import Video
from veojax.models.video_vae import LOGVAR_MAX, LOGVAR_MIN
from veojax.zoo import unet_layers
from veojax.zoo.transforms import LINEAR, pointwise
from veojax.zoo.unet_layers import Conv, GroupNorm, Linear, ResidualBlock
from veojax.zoo.weight_table import Rule

EPS = 1e-6

# Fields of config.json that do not change what is computed.
IGNORED = frozenset(('force_upcast', 'sample_size'))


class Compression:
  """Of an autoencoder that halves the sides between two of its stages, and takes each frame alone."""

  @property
  def temporal_compression(self) -> int:
    return 1

  @property
  def spatial_compression(self) -> int:
    return 2 ** (len(self.block_out_channels) - 1)


@dataclasses.dataclass(frozen=True)
class KLVAEConfig(Compression):
  """The fields of config.json, and the dtype of the computation."""
  in_channels: int = 3
  out_channels: int = 3
  down_block_types: tuple[Literal['DownEncoderBlock2D'], ...] = ('DownEncoderBlock2D',)
  up_block_types: tuple[Literal['UpDecoderBlock2D'], ...] = ('UpDecoderBlock2D',)
  block_out_channels: tuple[int, ...] = (64,)
  layers_per_block: int = 1
  act_fn: Literal['silu', 'swish'] = 'silu'
  latent_channels: int = 4
  norm_num_groups: int = 32
  scaling_factor: float = 0.18215
  shift_factor: Literal[None] = None
  latents_mean: Literal[None] = None
  latents_std: Literal[None] = None
  use_quant_conv: Literal[True] = True
  use_post_quant_conv: Literal[True] = True
  mid_block_add_attention: Literal[True] = True
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    check_widths(self.block_out_channels, self.norm_num_groups)
    stages = len(self.block_out_channels)
    if len(self.down_block_types) != stages or len(self.up_block_types) != stages:
      raise ValueError(f'block_out_channels={self.block_out_channels} for {len(self.down_block_types)} stages down and '
                       f'{len(self.up_block_types)} up; give one width for each')


def check_widths(widths: Sequence[int], groups: int):
  if not widths or any(width % groups for width in widths):
    raise ValueError(f'block_out_channels={tuple(widths)}; give multiples of {groups}')


class PictureAttention(nnx.Module):
  """One head as wide as the picture's channels, beside the identity."""

  def __init__(self, width: int, groups: int, *, rngs: nnx.Rngs):
    self.norm = GroupNorm(width, groups, EPS, rngs=rngs)
    self.q, self.k, self.v, self.out = (Linear(width, width, rngs=rngs) for _ in range(4))

  def __call__(self, x_BTHWC: Video) -> Video:
    B, T, H, W, C = x_BTHWC.shape
    h = self.norm(x_BTHWC)
    q, k, v = (conv.reshape(layer(h), B * T, H * W, 1, C) for layer in (self.q, self.k, self.v))
    segment = jnp.ones((B * T, H * W), jnp.int32)
    a = dense_attention.attention(q, k, v, segment, segment)
    return x_BTHWC + self.out(conv.reshape(a, B, T, H, W, C))


class Middle(nnx.Module):
  """Two residual blocks, with attention between them."""

  def __init__(self, width: int, groups: int, *, rngs: nnx.Rngs):
    self.resnets = nnx.List([ResidualBlock(width, width, groups, EPS, rngs=rngs) for _ in range(2)])
    self.attention = PictureAttention(width, groups, rngs=rngs)

  def __call__(self, x_BTHWC: Video) -> Video:
    return self.resnets[1](self.attention(self.resnets[0](x_BTHWC)))


class Stage(nnx.Module):
  """Residual blocks, and a change of the sides where there is one."""

  def __init__(self, inputs: int, outputs: int, depth: int, groups: int, sample: nnx.Module | None, *, rngs: nnx.Rngs):
    self.resnets = nnx.List([ResidualBlock(outputs if i else inputs, outputs, groups, EPS, rngs=rngs)
                             for i in range(depth)])
    self.sample = sample

  def __call__(self, x_BTHWC: Video) -> Video:
    for block in self.resnets:
      x_BTHWC = block(x_BTHWC)
    return x_BTHWC if self.sample is None else self.sample(x_BTHWC)


class Encoder(nnx.Module):
  """Pictures to `outputs` channels, those of mean and log variance."""

  def __init__(self, inputs: int, widths: Sequence[int], depth: int, outputs: int, groups: int, *, rngs: nnx.Rngs):
    last = len(widths) - 1
    self.conv_in = Conv(inputs, widths[0], rngs=rngs)
    self.stages = nnx.List([
        Stage(widths[max(i - 1, 0)], width, depth, groups,
              Conv(width, width, stride=2, padding=(0, 1), rngs=rngs) if i < last else None, rngs=rngs)
        for i, width in enumerate(widths)])
    self.middle = Middle(widths[-1], groups, rngs=rngs)
    self.norm_out = GroupNorm(widths[-1], groups, EPS, rngs=rngs)
    self.conv_out = Conv(widths[-1], outputs, rngs=rngs)

  def __call__(self, x_BTHWC: Video) -> Video:
    x = self.conv_in(x_BTHWC)
    for stage in self.stages:
      x = stage(x)
    return self.conv_out(jax.nn.silu(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):

  def __init__(self, inputs: int, widths: Sequence[int], depth: int, outputs: int, groups: int, *, rngs: nnx.Rngs):
    widths, last = widths[::-1], len(widths) - 1
    self.conv_in = Conv(inputs, widths[0], rngs=rngs)
    self.middle = Middle(widths[0], groups, rngs=rngs)
    self.stages = nnx.List([
        Stage(widths[max(i - 1, 0)], width, depth + 1, groups,
              unet_layers.Upsample(width, rngs=rngs) if i < last else None, rngs=rngs)
        for i, width in enumerate(widths)])
    self.norm_out = GroupNorm(widths[-1], groups, EPS, rngs=rngs)
    self.conv_out = Conv(widths[-1], outputs, rngs=rngs)

  def __call__(self, z_BTHWC: Video) -> Video:
    x = self.middle(self.conv_in(z_BTHWC))
    for stage in self.stages:
      x = stage(x)
    return self.conv_out(jax.nn.silu(self.norm_out(x)))


class Stateless:
  """An autoencoder's `encode` and `decode` as codecs that carry their past from chunk to chunk have them."""

  def encode_chunk(self, video_BTHWC: Float[Array, 'b t h w 3'], state: None = None):
    """((mean, logvar), None)."""
    return self.encode(video_BTHWC), None

  def decode_chunk(self, latent_BTHWC: Float[Array, 'b t h w c'], state: None = None):
    """(pixels, None)."""
    return self.decode(latent_BTHWC), None


class KLVAE(Stateless, nnx.Module):
  DECODER = 'post_quant', 'decoder'

  def __init__(self, cfg: KLVAEConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    sizes, z = (cfg.block_out_channels, cfg.layers_per_block), cfg.latent_channels
    self.encoder = Encoder(cfg.in_channels, *sizes, 2 * z, cfg.norm_num_groups, rngs=rngs)
    self.quant = Linear(2 * z, 2 * z, rngs=rngs)
    self.post_quant = Linear(z, z, rngs=rngs)
    self.decoder = Decoder(z, *sizes, cfg.out_channels, cfg.norm_num_groups, rngs=rngs)

  def encode(self, video_BTHWC: Float[Array, 'b t h w 3']):
    """(mean, logvar) float32, of each frame."""
    return posterior(self.quant(self.encoder(video_BTHWC.astype(self.cfg.dtype))))

  def decode(self, latent_BTHWC: Float[Array, 'b t h w c']) -> Float[Array, 'b t h2 w2 3']:
    """Pixels float32 of latents, which are not scaled."""
    return self.decoder(self.post_quant(latent_BTHWC.astype(self.cfg.dtype))).astype(jnp.float32)


def posterior(moments_BTHWC: Video) -> tuple[Video, Video]:
  """(mean, logvar) float32."""
  mean, logvar = jnp.split(moments_BTHWC.astype(jnp.float32), 2, -1)
  return mean, jnp.clip(logvar, LOGVAR_MIN, LOGVAR_MAX)


def encoder_rules() -> list[Rule]:
  return [*end_rules('encoder'), *_stages('encoder', 'down_blocks', 'downsamplers'),
          *unet_layers.weights('quant_conv', 'quant', pointwise(2))]


def table(cfg: KLVAEConfig) -> Sequence[Rule]:
  return [*encoder_rules(), *end_rules('decoder'), *_stages('decoder', 'up_blocks', 'upsamplers'),
          *unet_layers.weights('post_quant_conv', 'post_quant', pointwise(2))]


def end_rules(side: str) -> list[Rule]:
  middle, attention = f'{side}.middle', f'{side}.mid_block.attentions.0'
  rules = [*unet_layers.conv_rules(f'{side}.conv_{{end:in|out}}', f'{side}.conv_{{end}}'),
           *unet_layers.norm_rules(f'{side}.conv_norm_out', f'{side}.norm_out'),
           *unet_layers.residual_rules(f'{side}.mid_block.resnets.{{j}}', f'{middle}.resnets.{{j}}'),
           *unet_layers.norm_rules(f'{attention}.group_norm', f'{middle}.attention.norm')]
  # Files from before diffusers 0.18 have the second names.
  for names in (('to_q', 'to_k', 'to_v', 'to_out.0'), ('query', 'key', 'value', 'proj_attn')):
    for name, target in zip(names, ('q', 'k', 'v', 'out')):
      rules += unet_layers.weights(f'{attention}.{name}', f'{middle}.attention.{target}', LINEAR)
  return rules


def _stages(side: str, blocks: str, sample: str) -> list[Rule]:
  stage = f'{side}.stages.{{i}}'
  return [*unet_layers.residual_rules(f'{side}.{blocks}.{{i}}.resnets.{{j}}', f'{stage}.resnets.{{j}}'),
          *unet_layers.conv_rules(f'{side}.{blocks}.{{i}}.{sample}.0.conv', f'{stage}.sample')]
