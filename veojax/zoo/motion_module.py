"""AnimateDiff's motion modules (Guo et al. 2023, `MotionAdapter`): behind each layer of an image model's U-Net, each
place of the frame looks at itself in all frames.

A motion module has two attentions to the frames (those of a control network one), told of the frame's number by sines
and cosines: the file's table, which is no subject of training. A clip is at most as long as that table.
"""
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from veojax import sharding
from veojax.models import layers
from veojax.models.conv import Video
from veojax.zoo import unet_layers
from veojax.zoo.unet_layers import GEGLU, Attention, ClipNorm, LayerNorm, Linear
from veojax.zoo.weight_files import WeightFiles
from veojax.zoo.weight_table import Rule

NORM_EPS = 1e-6  # of the group norm before a motion module
_INNER = 'temporal_transformer'  # what the makers call a motion module's inside


@dataclasses.dataclass(frozen=True)
class MotionConfig:
  """The fields of config.json of a MotionAdapter."""
  block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
  motion_layers_per_block: int = 2
  motion_transformer_layers_per_block: int = 1
  motion_mid_block_layers_per_block: Literal[1] = 1
  motion_transformer_layers_per_mid_block: int = 1
  motion_num_attention_heads: int = 8
  motion_norm_num_groups: int = 32
  motion_max_seq_length: int = 32
  use_motion_mid_block: bool = True
  conv_in_channels: Literal[None] = None


class FrameAttention(Attention):
  """Each place looks at itself in all frames of its clip."""

  def __call__(self, h_BLD, num_frames: int):
    q, k, v = (split_frames(self.heads(h_BLD, w, sharding.BLNK), num_frames) for w in (self.w_q, self.w_k, self.w_v))
    a_BTLNK = unet_layers.attend_in_time(q, k, v)
    return self.out(merge_frames(a_BTLNK))


def split_frames(x_BLD: Float[Array, 'rows tokens ...'], num_frames: int) -> Float[Array, 'b t tokens ...']:
  """Rows of frames to clips of frames; `merge_frames` is the inverse."""
  spec = jax.typeof(x_BLD).sharding.spec
  return jnp.reshape(x_BLD, (-1, num_frames, *x_BLD.shape[1:]),
                     out_sharding=sharding.in_force(P(*spec[:1], None, *spec[1:])))


def merge_frames(x_BTLD: Float[Array, 'b t tokens ...']) -> Float[Array, 'rows tokens ...']:
  spec = jax.typeof(x_BTLD).sharding.spec
  return jnp.reshape(x_BTLD, (-1, *x_BTLD.shape[2:]), out_sharding=sharding.in_force(P(*spec[:1], *spec[2:])))


class SingleMotionBlock(nnx.Module):
  """One attention to the frames, and an MLP."""

  def __init__(self, width: int, num_heads: int, max_frames: int, *, rngs: nnx.Rngs):
    self.norm1, self.norm3 = (LayerNorm(width, rngs=rngs) for _ in range(2))
    self.attn1 = FrameAttention(width, num_heads, width // num_heads, rngs=rngs)
    self.mlp = GEGLU(width, rngs=rngs)
    self.pe = layers.param(lambda key, shape, dtype, out_sharding: jnp.asarray(positions(*shape[1:]), dtype)[None],
                           rngs.params(), (1, max_frames, width))

  def __call__(self, x_BLD, num_frames: int):
    x_BLD = x_BLD + self.attn1(self.placed(self.norm1(x_BLD), num_frames), num_frames)
    return x_BLD + self.mlp(self.norm3(x_BLD))

  def placed(self, h_BLD, num_frames: int):
    """With the position of each frame added."""
    pe_1T1D = jax.lax.stop_gradient(self.pe[...])[:, :num_frames, None].astype(h_BLD.dtype)
    return merge_frames(split_frames(h_BLD, num_frames) + pe_1T1D)


class MotionBlock(SingleMotionBlock):
  """Two attentions to the frames, and an MLP."""

  def __init__(self, width: int, num_heads: int, max_frames: int, *, rngs: nnx.Rngs):
    super().__init__(width, num_heads, max_frames, rngs=rngs)
    self.norm2 = LayerNorm(width, rngs=rngs)
    self.attn2 = FrameAttention(width, num_heads, width // num_heads, rngs=rngs)

  def __call__(self, x_BLD, num_frames: int):
    x_BLD = x_BLD + self.attn1(self.placed(self.norm1(x_BLD), num_frames), num_frames)
    x_BLD = x_BLD + self.attn2(self.placed(self.norm2(x_BLD), num_frames), num_frames)
    return x_BLD + self.mlp(self.norm3(x_BLD))


def positions(max_frames: int, width: int) -> np.ndarray:
  """float32[T, D]: sine and cosine in turns, at frequencies from 1 down to nearly 1e-4."""
  angle = np.arange(max_frames)[:, None] * np.exp(np.arange(0, width, 2) * (-math.log(1e4) / width))[None]
  return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(max_frames, -1)[:, :width].astype(np.float32)


class MotionModule(nnx.Module):
  """Blocks between two products, beside the identity."""

  def __init__(self, width: int, config: MotionConfig, depth: int, block=MotionBlock, *, rngs: nnx.Rngs):
    self.norm = ClipNorm(width, config.motion_norm_num_groups, NORM_EPS, rngs=rngs)
    self.proj_in, self.proj_out = (Linear(width, width, rngs=rngs) for _ in range(2))
    self.blocks = nnx.List([block(width, config.motion_num_attention_heads, config.motion_max_seq_length, rngs=rngs)
                            for _ in range(depth)])

  def __call__(self, x_BTHWC: Video) -> Video:
    h_BLD, _ = unet_layers.to_tokens(self.proj_in(self.norm(x_BTHWC)))
    for block in self.blocks:
      h_BLD = block(h_BLD, x_BTHWC.shape[1])
    return x_BTHWC + self.proj_out(unet_layers.to_frames(h_BLD, *x_BTHWC.shape[:4]))


class MotionModules(nnx.Module):
  """For each stage of a U-Net the motion modules behind its layers."""

  def __init__(self, config: MotionConfig, *, rngs: nnx.Rngs):
    depth, widths = config.motion_transformer_layers_per_block, config.block_out_channels
    stage = lambda width, number: nnx.List([MotionModule(width, config, depth, rngs=rngs) for _ in range(number)])
    self.down = nnx.List([stage(width, config.motion_layers_per_block) for width in widths])
    self.mid = nnx.List([MotionModule(widths[-1], config, config.motion_transformer_layers_per_mid_block, rngs=rngs)
                         for _ in range(config.use_motion_mid_block)])
    self.up = nnx.List([stage(width, config.motion_layers_per_block + 1) for width in widths[::-1]])


def block_rules(source: str, target: str) -> list[Rule]:
  return [*unet_layers.block_rules(source, target), Rule(f'{source}.pos_embed.pe', f'{target}.pe')]


def makers_block_rules(source: str, target: str) -> list[Rule]:
  """Each attention has the table of positions beside it."""
  rules = [*unet_layers.norm_rules(f'{source}.ff_norm', f'{target}.norm3'),
           *unet_layers.mlp_rules(f'{source}.ff', f'{target}.mlp')]
  for n in range(2):
    attention = f'{source}.attention_blocks.{n}'
    rules += [*unet_layers.norm_rules(f'{source}.norms.{n}', f'{target}.norm{n + 1}'),
              *unet_layers.attention_rules(attention, f'{target}.attn{n + 1}'),
              Rule(f'{attention}.pos_encoder.pe', f'{target}.pe')]
  return rules


def module_rules(source: str, target: str, of_block=block_rules) -> list[Rule]:
  """Of a motion module."""
  return [*unet_layers.norm_rules(f'{source}.norm', f'{target}.norm'),
          *unet_layers.linear_rules(f'{source}.proj_{{end:in|out}}', f'{target}.proj_{{end}}'),
          *of_block(f'{source}.transformer_blocks.{{k}}', f'{target}.blocks.{{k}}')]


def table(config: MotionConfig) -> Sequence[Rule]:
  return [*module_rules('{side:down|up}_blocks.{i}.motion_modules.{j}', '{side}.{i}.{j}'),
          *module_rules('mid_block.motion_modules.{j}', 'mid.{j}')]


def makers_table(config: MotionConfig) -> Sequence[Rule]:
  """As AnimateDiff's makers name them."""
  inner = f'motion_modules.{{j}}.{_INNER}'
  return [*module_rules(f'{{side:down|up}}_blocks.{{i}}.{inner}', '{side}.{i}.{j}', makers_block_rules),
          *module_rules(f'mid_block.{inner}', 'mid.{j}', makers_block_rules)]


def makers_config(files: WeightFiles) -> dict:
  """config.json of the makers' one file, by what is in it; numbers of heads and groups are those of all that they
  published. ValueError for a file of something else."""
  keys, modules = set(files.keys()), 'down_blocks.{}.motion_modules.{}.' + _INNER
  count = lambda name: next(n for n in itertools.count() if name(n) not in keys)
  module = modules.format(0, 0)
  block = module + '.transformer_blocks.{}.attention_blocks.0.pos_encoder.pe'
  if f'{module}.norm.weight' not in keys or block.format(0) not in keys:
    raise ValueError(f'{", ".join(map(str, files.paths))} holds no motion modules of AnimateDiff; give the folder of a '
                     'MotionAdapter with its config.json, or the makers\' file, such as mm_sd_v15_v2.safetensors')
  stages = count(lambda i: f'{modules.format(i, 0)}.norm.weight')
  return {'block_out_channels': [files.header(f'{modules.format(i, 0)}.norm.weight')[1][0] for i in range(stages)],
          'motion_layers_per_block': count(lambda j: f'{modules.format(0, j)}.norm.weight'),
          'motion_transformer_layers_per_block': count(block.format),
          'motion_max_seq_length': files.header(block.format(0))[1][1],
          'use_motion_mid_block': any(key.startswith('mid_block.') for key in keys)}
