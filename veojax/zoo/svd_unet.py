"""Stable Video Diffusion's U-Net (Blattmann et al. 2023, `UNetSpatioTemporalConditionModel`): that of an image model, in
which every block is followed by one that looks along time, and a learned share of each goes on.

It is preconditioned as EDM is (Karras et al. 2022): its input is x / sqrt(sigma² + 1) beside the latent of the first
frame, which every frame has, it is told ¼ log sigma, and answers v. It is also told the frame rate less 1, the motion
bucket, and the deviation of the noise that was added to the first frame; and the vector of that picture, the only
token of its context.
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
from veojax.models import conv, layers, transformer
from veojax.models.conv import Video
from veojax.zoo import unet_layers
from veojax.zoo.mochi_transformer import sinusoid
from veojax.zoo.transforms import Transform
from veojax.zoo.unet_layers import (
    GEGLU, Attention, ClipNorm, Conv, Downsample, Embedding, GroupNorm, LayerNorm, Linear, TimedResidualBlock, Tokens,
    TransformerBlock, Upsample)
from veojax.zoo.weight_table import Rule

# Fields of config.json that do not change what is computed.
IGNORED = frozenset(('sample_size',))

DOWN = {'CrossAttnDownBlockSpatioTemporal': True, 'DownBlockSpatioTemporal': False}
UP = {'CrossAttnUpBlockSpatioTemporal': True, 'UpBlockSpatioTemporal': False}
EPS = 1e-5
SMALL_EPS = 1e-6  # of the residual blocks on the way up, and on the way down of those with attention behind them


@dataclasses.dataclass(frozen=True)
class SVDUNetConfig:
  """The fields of config.json, and how it is run here: `remat` for the backward pass. One number stands for all stages
  where several could be given."""
  in_channels: int = 8
  out_channels: int = 4
  down_block_types: tuple[Literal['CrossAttnDownBlockSpatioTemporal', 'DownBlockSpatioTemporal'], ...] = (
      'CrossAttnDownBlockSpatioTemporal',) * 3 + ('DownBlockSpatioTemporal',)
  up_block_types: tuple[Literal['CrossAttnUpBlockSpatioTemporal', 'UpBlockSpatioTemporal'], ...] = (
      'UpBlockSpatioTemporal',) + ('CrossAttnUpBlockSpatioTemporal',) * 3
  block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
  addition_time_embed_dim: int = 256
  projection_class_embeddings_input_dim: int = 768
  layers_per_block: int | tuple[int, ...] = 2
  cross_attention_dim: int | tuple[int, ...] = 1024
  transformer_layers_per_block: int | tuple[int, ...] = 1
  num_attention_heads: int | tuple[int, ...] = (5, 10, 20, 20)
  num_frames: int = 25
  remat: transformer.Remat = 'none'

  def __post_init__(self):
    stages = len(self.block_out_channels)
    for name in ('down_block_types', 'up_block_types', 'layers_per_block', 'cross_attention_dim',
                 'transformer_layers_per_block', 'num_attention_heads'):
      value = getattr(self, name)
      if not isinstance(value, int) and len(value) != stages:
        raise ValueError(f'{name}={value} for {stages} stages; give {stages} values')
    for width, heads in zip(self.block_out_channels, self.each('num_attention_heads')):
      if width % unet_layers.GROUPS or width % heads:
        raise ValueError(f'block_out_channels={self.block_out_channels}; give multiples of {unet_layers.GROUPS} and of '
                         f'the heads, {heads}')
    if self.projection_class_embeddings_input_dim != 3 * self.addition_time_embed_dim:
      raise ValueError(f'projection_class_embeddings_input_dim={self.projection_class_embeddings_input_dim}; three '
                       f'conditions of {self.addition_time_embed_dim} make {3 * self.addition_time_embed_dim}')

  def each(self, name: str) -> tuple[int, ...]:
    """A field's value for every stage."""
    value = getattr(self, name)
    return (value,) * len(self.block_out_channels) if isinstance(value, int) else value


class TimeConv(nnx.Module):
  """Convolution of three frames, the one before, its own and the one after, at each place; zeros beyond the clip."""

  def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
    init = nnx.initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)
    self.kernel = layers.param(init, rngs.params(), (3, 1, inputs, outputs), sharding.HWD_F)
    self.bias = layers.param(layers.zeros, rngs.params(), (outputs,))

  def __call__(self, x_BTHWC: Video) -> Video:
    B, T, H, W, C = x_BTHWC.shape
    x = conv.reshape(x_BTHWC, B, T, H * W, C)
    y = unet_layers.convolve(x, self.kernel[...].astype(x.dtype), (1, 1), ((1, 1), (0, 0)))
    return conv.add_bias(conv.reshape(y, B, T, H, W, y.shape[-1]), self.bias[...])


class TimeResidualBlock(nnx.Module):
  """A residual block along time; norms are of the whole clip."""

  def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs):
    self.norm1, self.norm2 = (ClipNorm(width, eps=eps, rngs=rngs) for _ in range(2))
    self.conv1, self.conv2 = (TimeConv(width, width, rngs=rngs) for _ in range(2))

  def __call__(self, x_BTHWC: Video, shift_BC: Float[Array, 'b c'] | None = None) -> Video:
    h = self.conv1(jax.nn.silu(self.norm1(x_BTHWC)))
    if shift_BC is not None:
      h = h + shift_BC[:, None, None, None]
    return x_BTHWC + self.conv2(jax.nn.silu(self.norm2(h)))


class TimedTimeResidualBlock(TimeResidualBlock):
  """Told of the noise level by the embedding c."""

  def __init__(self, width: int, embedding_dim: int, eps: float, *, rngs: nnx.Rngs):
    super().__init__(width, eps, rngs=rngs)
    self.time = Linear(embedding_dim, width, rngs=rngs)

  def __call__(self, x_BTHWC: Video, c_BD: Float[Array, 'b d']) -> Video:
    return super().__call__(x_BTHWC, self.time(jax.nn.silu(c_BD)))


def mixed(share_1, space, time):
  """sigmoid(share) of one and the rest of the other."""
  share = jax.nn.sigmoid(share_1[0].astype(jnp.float32)).astype(space.dtype)
  return share * space + (1 - share) * time


class Residual(nnx.Module):
  """A residual block of each frame, then one along time."""

  def __init__(self, inputs: int, outputs: int, embedding_dim: int, eps: float, *, rngs: nnx.Rngs):
    self.space = TimedResidualBlock(inputs, outputs, embedding_dim, eps=eps, rngs=rngs)
    self.time = TimedTimeResidualBlock(outputs, embedding_dim, eps, rngs=rngs)
    self.share = layers.param(nnx.initializers.constant(0.5), rngs.params(), (1,))

  def __call__(self, x_BTHWC: Video, c_BD: Float[Array, 'b d']) -> Video:
    x_BTHWC = self.space(x_BTHWC, c_BD)
    return mixed(self.share[...], x_BTHWC, self.time(x_BTHWC, c_BD))


class TimeAttention(Attention):
  """Each token of a frame looks at itself in all frames of its clip."""

  def __call__(self, h_BLD: Tokens, num_frames: int) -> Tokens:
    q, k, v = (self.heads(h_BLD, w, sharding.BLNK) for w in (self.w_q, self.w_k, self.w_v))
    rows, *sizes = q.shape
    in_time = sharding.in_force(sharding.dividing(sharding.BTLNK, None, None, None, sizes[1]))
    in_rows = sharding.in_force(sharding.dividing(sharding.BLNK, None, None, sizes[1]))
    q, k, v = (jnp.reshape(x, (rows // num_frames, num_frames, *sizes), out_sharding=in_time)
               for x in (q, k, v))
    a = unet_layers.attend_in_time(q, k, v)
    return self.out(jnp.reshape(a, (rows, *sizes), out_sharding=in_rows))


class TimeBlock(TransformerBlock):
  """A transformer block along time, with one more MLP before it."""

  def __init__(self, width: int, num_heads: int, head_dim: int, context_dim: int, *, rngs: nnx.Rngs):
    super().__init__(width, num_heads, head_dim, context_dim, rngs=rngs)
    self.attn1 = TimeAttention(width, num_heads, head_dim, rngs=rngs)
    self.norm_in = LayerNorm(width, rngs=rngs)
    self.mlp_in = GEGLU(width, rngs=rngs)

  def __call__(self, x_BLD: Tokens, segment_BL, context_BSE, num_frames: int) -> Tokens:
    x_BLD = x_BLD + self.mlp_in(self.norm_in(x_BLD))
    x_BLD = x_BLD + self.attn1(self.norm1(x_BLD), num_frames)
    x_BLD = x_BLD + self.attn2(self.norm2(x_BLD), segment_BL, context_BSE)
    return x_BLD + self.mlp(self.norm3(x_BLD))


class Transformer(unet_layers.Transformer2D):
  """Each block over the tokens of a frame is followed by one along time, which is told the frames' numbers."""

  def __init__(self, width: int, num_heads: int, context_dim: int, num_layers: int, *, rngs: nnx.Rngs):
    sizes = width, num_heads, width // num_heads, context_dim
    super().__init__(*sizes, num_layers, rngs=rngs)
    self.time_blocks = nnx.List([TimeBlock(*sizes, rngs=rngs) for _ in range(num_layers)])
    self.frame = Embedding(width, 4 * width, width, rngs=rngs)
    self.share = layers.param(nnx.initializers.constant(0.5), rngs.params(), (1,))

  def __call__(self, x_BTHWC: Video, context_BSE: Float[Array, 'b s e']) -> Video:
    B, T, H, W, C = x_BTHWC.shape
    h_BLD, segment_BL = unet_layers.to_tokens(self.proj_in(self.norm(x_BTHWC)))
    number = np.broadcast_to(np.arange(T), (B, T)).reshape(-1)
    number = layers.reshard(sinusoid(jnp.asarray(number, jnp.float32), C, h_BLD.dtype), sharding.B)
    frame_B1D = self.frame(number)[:, None]
    for block, time_block in zip(self.blocks, self.time_blocks):
      h_BLD = block(h_BLD, segment_BL, context_BSE)
      h_BLD = mixed(self.share[...], h_BLD, time_block(h_BLD + frame_B1D, segment_BL, context_BSE, T))
    return x_BTHWC + self.proj_out(unet_layers.to_frames(h_BLD, B, T, H, W))


class Stage(nnx.Module):
  """Residual blocks, each followed by a transformer where there are such, and a change of the sides at the end."""

  def __init__(self, inputs: Sequence[int], width: int, embedding_dim: int, eps: float, attention: tuple | None,
               sample: nnx.Module | None, *, rngs: nnx.Rngs):
    """inputs: channels that each block takes. attention: heads, context's width and layers."""
    self.resnets = nnx.List([Residual(n, width, embedding_dim, eps, rngs=rngs) for n in inputs])
    self.transformers = nnx.List([Transformer(width, *attention, rngs=rngs) for _ in inputs] if attention else [])
    self.sample = sample

  def blocks(self):
    """(residual block, transformer or None) in turn."""
    return [(block, self.transformers[i] if len(self.transformers) else None) for i, block in enumerate(self.resnets)]


class Middle(nnx.Module):

  def __init__(self, width: int, embedding_dim: int, attention: tuple, *, rngs: nnx.Rngs):
    self.resnets = nnx.List([Residual(width, width, embedding_dim, EPS, rngs=rngs) for _ in range(2)])
    self.transformer = Transformer(width, *attention, rngs=rngs)


class SVDUNet(nnx.Module):

  def __init__(self, config: SVDUNetConfig, *, rngs: nnx.Rngs):
    self.config = config
    widths, D = config.block_out_channels, 4 * config.block_out_channels[0]
    attentions = list(zip(*(config.each(name) for name in (
        'num_attention_heads', 'cross_attention_dim', 'transformer_layers_per_block'))))
    depths, last = config.each('layers_per_block'), len(widths) - 1
    self.conv_in = Conv(config.in_channels, widths[0], rngs=rngs)
    self.level = Embedding(widths[0], D, rngs=rngs)
    self.conditions = Embedding(config.projection_class_embeddings_input_dim, D, rngs=rngs)
    down, skips = [], [widths[0]]
    for i, (width, kind) in enumerate(zip(widths, config.down_block_types)):
      attention = attentions[i] if DOWN[kind] else None
      down.append(Stage([widths[max(i - 1, 0)], *[width] * (depths[i] - 1)], width, D,
                        SMALL_EPS if attention else EPS, attention,
                        Downsample(width, rngs=rngs) if i < last else None, rngs=rngs))
      skips += [width] * (depths[i] + (i < last))
    self.down = nnx.List(down)
    self.middle = Middle(widths[-1], D, attentions[-1], rngs=rngs)
    up, inputs = [], widths[-1]
    for i, kind in enumerate(config.up_block_types):
      width = widths[last - i]
      taken = []
      for _ in range(depths[last - i] + 1):
        taken.append(inputs + skips.pop())
        inputs = width
      up.append(Stage(taken, width, D, SMALL_EPS, attentions[last - i] if UP[kind] else None,
                      Upsample(width, rngs=rngs) if i < last else None, rngs=rngs))
    self.up = nnx.List(up)
    self.norm_out = GroupNorm(widths[0], eps=EPS, rngs=rngs)
    self.conv_out = Conv(widths[0], config.out_channels, rngs=rngs)

  def __call__(self, x_BTHWC: Float[Array, 'b t h w i'], level_B: Float[Array, 'b'], context_BSE: Float[Array, 'b s e'],
               conditions_B3: Float[Array, 'b 3']) -> Float[Array, 'b t h w o']:
    """v, float32, computed in the context's dtype.

    x_BTHWC: scaled latents with those of the first frame behind them; level: ¼ log sigma; conditions: frame rate less
    1, motion bucket, deviation of the first frame's noise.
    """
    config, dtype = self.config, context_BSE.dtype
    B, F = len(x_BTHWC), config.addition_time_embed_dim
    told_BF = conv.reshape(sinusoid(conv.reshape(conditions_B3, 3 * B), F, dtype), B, 3 * F)
    c_BD = self.level(sinusoid(level_B, config.block_out_channels[0], dtype)) + self.conditions(told_BF)
    run = remade(config.remat)
    x = self.conv_in(x_BTHWC.astype(dtype))
    skips = [x]
    for stage in self.down:
      for block, attention in stage.blocks():
        x = run(block, attention, x, c_BD, context_BSE)
        skips.append(x)
      if stage.sample is not None:
        x = stage.sample(x)
        skips.append(x)
    x = run(self.middle.resnets[0], self.middle.transformer, x, c_BD, context_BSE)
    x = run(self.middle.resnets[1], None, x, c_BD, context_BSE)
    for stage in self.up:
      for block, attention in stage.blocks():
        x = run(block, attention, jnp.concatenate([x, skips.pop()], -1), c_BD, context_BSE)
      if stage.sample is not None:
        x = stage.sample(x, skips[-1].shape[2:4])
    return self.conv_out(jax.nn.silu(self.norm_out(x))).astype(jnp.float32)


def remade(remat: transformer.Remat):
  """A residual block and the transformer after it; of its work the backward pass makes again what `remat` says."""
  def run(block, attention, x, c_BD, context_BSE):
    x = block(x, c_BD)
    return x if attention is None else attention(x, context_BSE)
  return run if remat == 'none' else jax.checkpoint(run, policy=transformer.POLICIES[remat])


TIME_CONV = Transform('convolution of time', lambda x: x[..., 0, 0].transpose(2, 1, 0),
                      lambda x: x.reshape(3, *x.shape[-2:]).transpose(2, 1, 0)[..., None, None])


def time_residual_rules(source: str, target: str) -> list[Rule]:
  """Of a TimeResidualBlock, told of the level or not."""
  return [*unet_layers.norm_rules(f'{source}.norm{{n:[12]}}', f'{target}.norm{{n}}'),
          *unet_layers.weights(f'{source}.conv{{n:[12]}}', f'{target}.conv{{n}}', TIME_CONV, 'kernel', 'bias'),
          *unet_layers.linear_rules(f'{source}.time_emb_proj', f'{target}.time')]


def mixed_rules(source: str, target: str) -> list[Rule]:
  """Of a residual block of each frame with one along time."""
  return [*unet_layers.residual_rules(f'{source}.spatial_res_block', f'{target}.space'),
          *time_residual_rules(f'{source}.temporal_res_block', f'{target}.time'),
          Rule(f'{source}.time_mixer.mix_factor', f'{target}.share')]


def time_block_rules(source: str, target: str) -> list[Rule]:
  return [*unet_layers.block_rules(source, target), *unet_layers.norm_rules(f'{source}.norm_in', f'{target}.norm_in'),
          *unet_layers.mlp_rules(f'{source}.ff_in', f'{target}.mlp_in')]


def _transformer_rules(source: str, target: str) -> list[Rule]:
  return [*unet_layers.transformer_rules(source, target),
          *time_block_rules(f'{source}.temporal_transformer_blocks.{{k}}', f'{target}.time_blocks.{{k}}'),
          *unet_layers.embedding_rules(f'{source}.time_pos_embed', f'{target}.frame'),
          Rule(f'{source}.time_mixer.mix_factor', f'{target}.share')]


def table(config: SVDUNetConfig) -> Sequence[Rule]:
  rules = [*unet_layers.conv_rules('conv_{end:in|out}', 'conv_{end}'),
           *unet_layers.norm_rules('conv_norm_out', 'norm_out'),
           *unet_layers.embedding_rules('time_embedding', 'level'),
           *unet_layers.embedding_rules('add_embedding', 'conditions'),
           *mixed_rules('mid_block.resnets.{j}', 'middle.resnets.{j}'),
           *_transformer_rules('mid_block.attentions.0', 'middle.transformer')]
  for way in ('down', 'up'):
    block, stage = f'{way}_blocks.{{i}}', f'{way}.{{i}}'
    rules += [*mixed_rules(f'{block}.resnets.{{j}}', f'{stage}.resnets.{{j}}'),
              *_transformer_rules(f'{block}.attentions.{{j}}', f'{stage}.transformers.{{j}}'),
              *unet_layers.conv_rules(f'{block}.{way}samplers.0.conv', f'{stage}.sample')]
  return rules
