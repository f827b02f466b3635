"""AnimateDiff's network (Guo et al. 2023): the U-Net of Stable Diffusion 1.5 (Rombach et al. 2022) on each frame, with
a motion module behind each of its layers.

The two halves are networks of their own, as they are published: `ImageUNet` (`UNet2DConditionModel`) and
`MotionModules` (`MotionAdapter`); `MotionUNet` has both (`UNetMotionModel`). The answer is eps at the integer step.
"""
import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from veojax.models.conv import Video
from veojax.zoo import motion_module, unet_layers
from veojax.zoo.mochi_transformer import sinusoid
from veojax.zoo.motion_module import MotionConfig, MotionModule, MotionModules
from veojax.zoo.transforms import LINEAR, pointwise
from veojax.zoo.unet_layers import Conv, Downsample, Embedding, GroupNorm, TimedResidualBlock, Transformer2D, Upsample
from veojax.zoo.weight_table import Rule

Residuals = tuple[tuple[Video, ...], Video]  # what a control network adds: to the skips, to the middle

# Fields of config.json that do not change what is computed.
IGNORED = frozenset(('addition_embed_type_num_heads', 'dropout', 'sample_size', 'upcast_attention'))


@dataclasses.dataclass(frozen=True)
class ImageUNetConfig:
  """The fields of config.json of a UNet2DConditionModel, and how it is run here: `remat` for the backward pass, layer
  by layer. What has one value only is what Stable Diffusion 1.5 has."""
  in_channels: int = 4
  out_channels: int = 4
  down_block_types: tuple[Literal['CrossAttnDownBlock2D', 'DownBlock2D'], ...] = (
      *('CrossAttnDownBlock2D',) * 3, 'DownBlock2D')
  up_block_types: tuple[Literal['CrossAttnUpBlock2D', 'UpBlock2D'], ...] = ('UpBlock2D', *('CrossAttnUpBlock2D',) * 3)
  mid_block_type: Literal['UNetMidBlock2DCrossAttn'] = 'UNetMidBlock2DCrossAttn'
  block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
  layers_per_block: int = 2
  norm_num_groups: int = 32
  norm_eps: float = 1e-5
  cross_attention_dim: int = 768
  transformer_layers_per_block: int = 1
  attention_head_dim: int | tuple[int, ...] = 8  # the number of heads, so called
  num_attention_heads: int | tuple[int, ...] | None = None
  use_linear_projection: bool = False
  act_fn: Literal['silu', 'swish'] = 'silu'
  center_input_sample: Literal[False] = False
  flip_sin_to_cos: Literal[True] = True
  freq_shift: Literal[0] = 0
  only_cross_attention: Literal[False] = False
  downsample_padding: Literal[1] = 1
  mid_block_scale_factor: Literal[1] = 1
  reverse_transformer_layers_per_block: Literal[None] = None
  encoder_hid_dim: Literal[None] = None
  encoder_hid_dim_type: Literal[None] = None
  dual_cross_attention: Literal[False] = False
  class_embed_type: Literal[None] = None
  addition_embed_type: Literal[None] = None
  addition_time_embed_dim: Literal[None] = None
  num_class_embeds: Literal[None] = None
  resnet_time_scale_shift: Literal['default'] = 'default'
  resnet_skip_time_act: Literal[False] = False
  resnet_out_scale_factor: Literal[1] = 1
  time_embedding_type: Literal['positional'] = 'positional'
  time_embedding_dim: Literal[None] = None
  time_embedding_act_fn: Literal[None] = None
  timestep_post_act: Literal[None] = None
  time_cond_proj_dim: Literal[None] = None
  conv_in_kernel: Literal[3] = 3
  conv_out_kernel: Literal[3] = 3
  projection_class_embeddings_input_dim: Literal[None] = None
  attention_type: Literal['default'] = 'default'
  class_embeddings_concat: Literal[False] = False
  mid_block_only_cross_attention: Literal[None, False] = None
  cross_attention_norm: Literal[None] = None
  remat: Literal['none', 'full'] = 'none'

  def __post_init__(self):
    stages = len(self.block_out_channels)
    if len(self.down_block_types) != stages or len(self.up_block_types) != stages or len(self.heads) != stages:
      raise ValueError(f'block_out_channels={self.block_out_channels} for {len(self.down_block_types)} stages down, '
                       f'{len(self.up_block_types)} up and heads {self.heads}; give one of each for each stage')
    if any(width % self.norm_num_groups or width % heads for width, heads in zip(self.block_out_channels, self.heads)):
      raise ValueError(f'block_out_channels={self.block_out_channels}; give multiples of norm_num_groups='
                       f'{self.norm_num_groups} and of the heads {self.heads}')

  @property
  def heads(self) -> tuple[int, ...]:
    """Of each stage."""
    heads = self.num_attention_heads or self.attention_head_dim
    return heads if isinstance(heads, tuple) else (heads,) * len(self.block_out_channels)

  @property
  def time_dim(self) -> int:
    return 4 * self.block_out_channels[0]


@dataclasses.dataclass(frozen=True)
class MotionUNetConfig:
  """The fields of config.json of a UNetMotionModel."""
  in_channels: int = 4
  out_channels: int = 4
  down_block_types: tuple[Literal['CrossAttnDownBlockMotion', 'DownBlockMotion'], ...] = (
      *('CrossAttnDownBlockMotion',) * 3, 'DownBlockMotion')
  up_block_types: tuple[Literal['CrossAttnUpBlockMotion', 'UpBlockMotion'], ...] = (
      'UpBlockMotion', *('CrossAttnUpBlockMotion',) * 3)
  block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
  layers_per_block: int = 2
  norm_num_groups: int = 32
  norm_eps: float = 1e-5
  cross_attention_dim: int = 1280
  transformer_layers_per_block: int = 1
  temporal_transformer_layers_per_block: int = 1
  temporal_transformer_layers_per_mid_block: int = 1
  num_attention_heads: int | tuple[int, ...] = 8
  use_linear_projection: bool = False
  motion_max_seq_length: int = 32
  motion_num_attention_heads: int = 8
  use_motion_mid_block: bool = True
  act_fn: Literal['silu', 'swish'] = 'silu'
  mid_block_layers: Literal[1] = 1
  downsample_padding: Literal[1] = 1
  mid_block_scale_factor: Literal[1] = 1
  transformer_layers_per_mid_block: Literal[None, 1] = None
  reverse_transformer_layers_per_block: Literal[None] = None
  reverse_temporal_transformer_layers_per_block: Literal[None] = None
  reverse_motion_num_attention_heads: Literal[None] = None
  encoder_hid_dim: Literal[None] = None
  encoder_hid_dim_type: Literal[None] = None
  addition_embed_type: Literal[None] = None
  addition_time_embed_dim: Literal[None] = None
  projection_class_embeddings_input_dim: Literal[None] = None
  time_cond_proj_dim: Literal[None] = None

  @property
  def image(self) -> ImageUNetConfig:
    shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(ImageUNetConfig) if hasattr(self, f.name)}
    of_image = lambda types: tuple(name.replace('Motion', '2D') for name in types)
    return ImageUNetConfig(**{**shared, 'down_block_types': of_image(self.down_block_types),
                              'up_block_types': of_image(self.up_block_types), 'num_attention_heads': None,
                              'attention_head_dim': self.num_attention_heads})

  @property
  def motion(self) -> MotionConfig:
    return MotionConfig(
        self.block_out_channels, self.layers_per_block, self.temporal_transformer_layers_per_block, 1,
        self.temporal_transformer_layers_per_mid_block, self.motion_num_attention_heads, self.norm_num_groups,
        self.motion_max_seq_length, self.use_motion_mid_block)


def check_fits(motion: MotionConfig, image: ImageUNetConfig):
  """ValueError where the motion modules were made for another U-Net."""
  if (motion.block_out_channels, motion.motion_layers_per_block) != (image.block_out_channels, image.layers_per_block):
    raise ValueError(f'motion modules of widths {motion.block_out_channels} with {motion.motion_layers_per_block} '
                     f'layers for a U-Net of {image.block_out_channels} with {image.layers_per_block}; give those that were '
                     'made for it')


class Stage(nnx.Module):
  """Residual blocks of these inputs, each with a transformer behind it where there are such; then a change of sides."""

  def __init__(self, config: ImageUNetConfig, inputs: Sequence[int], width: int, heads: int | None,
               sample: nnx.Module | None, *, rngs: nnx.Rngs):
    self.resnets = nnx.List([residual(config, number, width, rngs) for number in inputs])
    self.attentions = nnx.List([transformer(config, width, heads, rngs) for _ in inputs if heads])
    self.sample = sample


class Middle(nnx.Module):

  def __init__(self, config: ImageUNetConfig, *, rngs: nnx.Rngs):
    width = config.block_out_channels[-1]
    self.resnets = nnx.List([residual(config, width, width, rngs) for _ in range(2)])
    self.attentions = nnx.List([transformer(config, width, config.heads[-1], rngs)])

  def __call__(self, x_BTHWC: Video, motion: Sequence[MotionModule], c_BD, text_BSE, apply) -> Video:
    x_BTHWC = apply(self.resnets[0], self.attentions[0], motion[0] if len(motion) else None, x_BTHWC, c_BD, text_BSE)
    return apply(self.resnets[1], None, None, x_BTHWC, c_BD, text_BSE)


def residual(config: ImageUNetConfig, inputs: int, width: int, rngs: nnx.Rngs) -> TimedResidualBlock:
  return TimedResidualBlock(inputs, width, config.time_dim, config.norm_num_groups, config.norm_eps, rngs=rngs)


def transformer(config: ImageUNetConfig, width: int, heads: int, rngs: nnx.Rngs) -> Transformer2D:
  return Transformer2D(width, heads, width // heads, config.cross_attention_dim, config.transformer_layers_per_block,
                       config.norm_num_groups, rngs=rngs)


def down_stages(config: ImageUNetConfig, rngs: nnx.Rngs):
  widths, last, stages = config.block_out_channels, len(config.block_out_channels) - 1, []
  for i, (kind, width) in enumerate(zip(config.down_block_types, widths)):
    inputs = [widths[max(i - 1, 0)], *(width,) * (config.layers_per_block - 1)]
    stages.append(Stage(config, inputs, width, config.heads[i] if kind.startswith('CrossAttn') else None,
                        Downsample(width, rngs=rngs) if i < last else None, rngs=rngs))
  return nnx.List(stages)


def up_stages(config: ImageUNetConfig, rngs: nnx.Rngs):
  """Each layer also reads what a layer on the way down has left."""
  widths, last, stages = config.block_out_channels[::-1], len(config.block_out_channels) - 1, []
  for i, (kind, width) in enumerate(zip(config.up_block_types, widths)):
    skips = [*(width,) * config.layers_per_block, widths[min(i + 1, last)]]
    inputs = [skip + (width if j else widths[max(i - 1, 0)]) for j, skip in enumerate(skips)]
    stages.append(Stage(config, inputs, width, config.heads[last - i] if kind.startswith('CrossAttn') else None,
                        Upsample(width, rngs=rngs) if i < last else None, rngs=rngs))
  return nnx.List(stages)


class ImageUNet(nnx.Module):

  def __init__(self, config: ImageUNetConfig, *, rngs: nnx.Rngs):
    self.config, first = config, config.block_out_channels[0]
    self.conv_in = Conv(config.in_channels, first, rngs=rngs)
    self.time = Embedding(first, config.time_dim, rngs=rngs)
    self.down, self.mid, self.up = down_stages(config, rngs), Middle(config, rngs=rngs), up_stages(config, rngs)
    self.norm_out = GroupNorm(first, config.norm_num_groups, config.norm_eps, rngs=rngs)
    self.conv_out = Conv(first, config.out_channels, rngs=rngs)


class MotionUNet(nnx.Module):

  def __init__(self, image: ImageUNet, motion: MotionModules):
    self.image, self.motion = image, motion

  def __call__(self, latent_BTHWC: Float[Array, 'b t h w c'], step_B: Float[Array, 'b'],
               text_BSE: Float[Array, 'b s e'], residuals: Residuals | None = None) -> Float[Array, 'b t h w c']:
    """eps, float32, at the integer steps; computed in the text's dtype."""
    image, motion, dtype = self.image, self.motion, text_BSE.dtype
    apply = layer_of(image.config)
    c_BD = image.time(sinusoid(step_B, image.config.block_out_channels[0], dtype))
    x, skips = descend(image.down, motion.down, image.conv_in(latent_BTHWC.astype(dtype)), c_BD, text_BSE, apply)
    x = image.mid(x, motion.mid, c_BD, text_BSE, apply)
    if residuals is not None:
      skips, x = [skip + more for skip, more in zip(skips, residuals[0], strict=True)], x + residuals[1]
    for stage, modules in zip(image.up, motion.up):
      for layer in zip(stage.resnets, stage.attentions or [None] * len(stage.resnets), modules):
        x = apply(*layer, jnp.concatenate([x, skips.pop()], -1), c_BD, text_BSE)
      if stage.sample is not None:
        x = stage.sample(x, skips[-1].shape[2:4])
    return image.conv_out(jax.nn.silu(image.norm_out(x))).astype(jnp.float32)


def layer_of(config: ImageUNetConfig) -> Callable:
  """The function that runs a layer: residual block, transformer, motion module; the latter two where they are there."""
  def layer(resnet, attention, motion, x_BTHWC, c_BD, text_BSE):
    x_BTHWC = resnet(x_BTHWC, c_BD)
    x_BTHWC = x_BTHWC if attention is None else attention(x_BTHWC, text_BSE)
    return x_BTHWC if motion is None else motion(x_BTHWC)
  return jax.checkpoint(layer) if config.remat == 'full' else layer


def descend(stages, motion, x_BTHWC: Video, c_BD, text_BSE, apply) -> tuple[Video, list[Video]]:
  """(what the last stage gives, what is kept for the way up: the input, and what each layer and change of sides
  gives)."""
  kept = [x_BTHWC]
  for stage, modules in zip(stages, motion):
    for layer in zip(stage.resnets, stage.attentions or [None] * len(stage.resnets), modules):
      kept.append(apply(*layer, kept[-1], c_BD, text_BSE))
    if stage.sample is not None:
      kept.append(stage.sample(kept[-1]))
  return kept[-1], kept


def _stage_rules(config: ImageUNetConfig, side: str) -> list[Rule]:
  projection = LINEAR if config.use_linear_projection else pointwise(2)
  return [*unet_layers.residual_rules(f'{side}_blocks.{{i}}.resnets.{{j}}', f'{side}.{{i}}.resnets.{{j}}'),
          *unet_layers.transformer_rules(f'{side}_blocks.{{i}}.attentions.{{j}}', f'{side}.{{i}}.attentions.{{j}}',
                                         projection),
          *unet_layers.conv_rules(f'{side}_blocks.{{i}}.{side}samplers.0.conv', f'{side}.{{i}}.sample')]


def encoder_rules(config: ImageUNetConfig) -> list[Rule]:
  """Of what a control network has too."""
  projection = LINEAR if config.use_linear_projection else pointwise(2)
  return [*unet_layers.conv_rules('conv_in', 'conv_in'), *unet_layers.embedding_rules('time_embedding', 'time'),
          *_stage_rules(config, 'down'),
          *unet_layers.residual_rules('mid_block.resnets.{j}', 'mid.resnets.{j}'),
          *unet_layers.transformer_rules('mid_block.attentions.{j}', 'mid.attentions.{j}', projection)]


def image_table(config: ImageUNetConfig) -> Sequence[Rule]:
  return [*encoder_rules(config), *_stage_rules(config, 'up'), *unet_layers.norm_rules('conv_norm_out', 'norm_out'),
          *unet_layers.conv_rules('conv_out', 'conv_out')]


def table(config: MotionUNetConfig) -> Sequence[Rule]:
  """Of both in one file."""
  within = lambda name, rules: [dataclasses.replace(rule, targets=[f'{name}.{target}' for target in rule.targets])
                                for rule in rules]
  return [*within('image', image_table(config.image)), *within('motion', motion_module.table(config.motion))]
