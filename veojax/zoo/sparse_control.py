"""SparseCtrl (Guo et al. 2023, `SparseControlNetModel`): a copy of the U-Net's way down that reads given frames, and
adds what it makes of them to the U-Net's skips and middle.

It sees no noise: its input is the condition alone, zeros at frames that are not given, with a mask beside it. The
condition is a picture's latents (`use_simplified_condition_embedding`) or its pixels in [0, 1] (sketches, depth), which
convolutions bring to the latents' size. Its motion modules have one attention to the frames.
"""
import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from veojax import sharding
from veojax.models import conv, layers
from veojax.zoo import animatediff_unet as unet
from veojax.zoo import motion_module, unet_layers
from veojax.zoo.animatediff_unet import ImageUNetConfig, Residuals
from veojax.zoo.mochi_transformer import sinusoid
from veojax.zoo.motion_module import MotionConfig, MotionModule, SingleMotionBlock
from veojax.zoo.transforms import pointwise
from veojax.zoo.unet_layers import Conv, Embedding, Linear
from veojax.zoo.weight_table import Rule

# Fields of config.json that do not change what is computed.
IGNORED = frozenset(('upcast_attention',))


@dataclasses.dataclass(frozen=True)
class SparseControlConfig:
  """The fields of config.json. What has one value only is what is published."""
  in_channels: int = 4
  conditioning_channels: int = 4
  down_block_types: tuple[Literal['CrossAttnDownBlockMotion', 'DownBlockMotion'], ...] = (
      *('CrossAttnDownBlockMotion',) * 3, 'DownBlockMotion')
  block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
  layers_per_block: int = 2
  norm_num_groups: int = 32
  norm_eps: float = 1e-5
  cross_attention_dim: int = 768
  transformer_layers_per_block: int = 1
  temporal_transformer_layers_per_block: int = 1
  attention_head_dim: int | tuple[int, ...] = 8  # the number of heads, so called
  num_attention_heads: int | tuple[int, ...] | None = None
  use_linear_projection: bool = False
  conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
  motion_max_seq_length: int = 32
  motion_num_attention_heads: int = 8
  concat_conditioning_mask: bool = True
  use_simplified_condition_embedding: bool = True
  act_fn: Literal['silu', 'swish'] = 'silu'
  flip_sin_to_cos: Literal[True] = True
  freq_shift: Literal[0] = 0
  only_cross_attention: Literal[False] = False
  downsample_padding: Literal[1] = 1
  mid_block_scale_factor: Literal[1] = 1
  transformer_layers_per_mid_block: Literal[None, 1] = None
  resnet_time_scale_shift: Literal['default'] = 'default'
  global_pool_conditions: Literal[False] = False
  controlnet_conditioning_channel_order: Literal['rgb'] = 'rgb'

  @property
  def image(self) -> ImageUNetConfig:
    shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(ImageUNetConfig) if hasattr(self, f.name)}
    down = tuple(name.replace('Motion', '2D') for name in self.down_block_types)
    return ImageUNetConfig(**{**shared, 'down_block_types': down, 'up_block_types': ('UpBlock2D',) * len(down)})

  @property
  def motion(self) -> MotionConfig:
    return MotionConfig(
        self.block_out_channels, self.layers_per_block, self.temporal_transformer_layers_per_block,
        motion_num_attention_heads=self.motion_num_attention_heads, motion_norm_num_groups=self.norm_num_groups,
        motion_max_seq_length=self.motion_max_seq_length)

  @property
  def condition_channels(self) -> int:
    return self.conditioning_channels + self.concat_conditioning_mask


class PixelEncoder(nnx.Module):
  """Pixels to the size of latents: each width but the last is kept by one convolution and left by one of stride 2."""

  def __init__(self, inputs: int, widths: Sequence[int], outputs: int, *, rngs: nnx.Rngs):
    self.conv_in = Conv(inputs, widths[0], rngs=rngs)
    self.blocks = nnx.List([layer for width, wider in zip(widths, widths[1:])
                            for layer in (Conv(width, width, rngs=rngs), Conv(width, wider, stride=2, rngs=rngs))])
    self.conv_out = Conv(widths[-1], outputs, rngs=rngs)

  def __call__(self, x_BTHWC: Float[Array, 'b t h w c']) -> Float[Array, 'b t h2 w2 d']:
    for layer in (self.conv_in, *self.blocks):
      x_BTHWC = jax.nn.silu(layer(x_BTHWC))
    return self.conv_out(x_BTHWC)


class SparseControl(nnx.Module):

  def __init__(self, config: SparseControlConfig, *, rngs: nnx.Rngs):
    self.config, image, motion = config, config.image, config.motion
    widths, first = config.block_out_channels, config.block_out_channels[0]
    self.conv_in = Conv(config.in_channels, first, rngs=rngs)  # of zeros: its bias alone is heard
    if config.use_simplified_condition_embedding:
      self.condition = Conv(config.condition_channels, first, rngs=rngs)
    else:
      self.condition = PixelEncoder(config.condition_channels, config.conditioning_embedding_out_channels, first,
                                    rngs=rngs)
    self.time = Embedding(first, image.time_dim, rngs=rngs)
    self.down, self.mid = unet.down_stages(image, rngs), unet.Middle(image, rngs=rngs)
    self.motion = nnx.List([
        nnx.List([MotionModule(width, motion, motion.motion_transformer_layers_per_block, SingleMotionBlock, rngs=rngs)
                  for _ in range(config.layers_per_block)]) for width in widths])
    kept = [first, *(width for i, width in enumerate(widths)
                     for _ in range(config.layers_per_block + (i < len(widths) - 1)))]
    self.outs = nnx.List([Linear(width, width, rngs=rngs) for width in kept])
    self.mid_out = Linear(widths[-1], widths[-1], rngs=rngs)

  def __call__(self, condition_BTHWC: Float[Array, 'b t h w c'], step_B: Float[Array, 'b'],
               text_BSE: Float[Array, 'b s e'], scale: Float[Array, ''] | float = 1.0) -> Residuals:
    """What is added to the U-Net's skips and middle, times `scale`; the condition with its mask as last channel."""
    dtype, apply = text_BSE.dtype, unet.layer_of(self.config.image)
    x = conv.add_bias(self.condition(condition_BTHWC.astype(dtype)), self.conv_in.bias[...])
    c_BD = self.time(sinusoid(step_B, self.config.block_out_channels[0], dtype))
    x, kept = unet.descend(self.down, self.motion, layers.reshard(x, sharding.B), c_BD, text_BSE, apply)
    x = self.mid(x, (), c_BD, text_BSE, apply)
    scaled = lambda out, x: out(x) * jnp.asarray(scale, dtype)
    return tuple(scaled(out, x) for out, x in zip(self.outs, kept, strict=True)), scaled(self.mid_out, x)


def table(config: SparseControlConfig) -> Sequence[Rule]:
  condition, ours = 'controlnet_cond_embedding', 'condition'
  return [*unet.encoder_rules(config.image),
          *motion_module.module_rules('down_blocks.{i}.motion_modules.{j}', 'motion.{i}.{j}'),
          *unet_layers.conv_rules(condition, ours),
          *unet_layers.conv_rules(f'{condition}.conv_{{end:in|out}}', f'{ours}.conv_{{end}}'),
          *unet_layers.conv_rules(f'{condition}.blocks.{{i}}', f'{ours}.blocks.{{i}}'),
          *unet_layers.weights('controlnet_down_blocks.{i}', 'outs.{i}', pointwise(2)),
          *unet_layers.weights('controlnet_mid_block', 'mid_out', pointwise(2))]
