"""Make-A-Video's U-Nets (Singer et al. 2022): one of each frame, and the one of clips that begins as it.

`ImageUNet` sees frames alone. `VideoUNet` is the same network with pseudo-3D layers: behind every convolution of a
frame one along time that begins as the identity (section 3.2.1), behind every attention within a frame one along time
whose output begins at zero (3.2.2), and an embedding of the frame rate that begins at zero. So with an image network's
weights it makes of each frame exactly what that network makes of it.

The condition is a vector of the clip: as in DALL-E 2 (Ramesh et al. 2022, section 2.1) it is added to the noise level's
embedding and becomes tokens that attention looks at. For the decoder and for frame interpolation it is the picture's
embedding, for super-resolution what `noise_vector` gives; a vector of zeros says nothing. What is given of the clip
(masked frames, the small frames) stands behind the noisy frames, as further channels.
"""
import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from veojax.models import conv, transformer, weights
from veojax.models.conv import Video
from veojax.zoo import motion_module
from veojax.zoo.mochi_transformer import sinusoid
from veojax.zoo.motion_module import FrameAttention
from veojax.zoo.svd_unet import TimeConv, remade
from veojax.zoo.unet_layers import (
    Conv, Downsample, Embedding, GroupNorm, LayerNorm, Linear, TimedResidualBlock, Transformer2D, TransformerBlock,
    Upsample)

CHANNELS = 3
LEVEL_SCALE = 1000.0  # noise levels in [0, 1] are told as Ho et al. 2020 count their steps


@dataclasses.dataclass(frozen=True)
class UNetConfig:
  """attention: whether a stage of this width has it. condition_dim: of the vector that it is told; num_tokens: what
  attention sees of it. given_channels: of what is given of the clip."""
  widths: tuple[int, ...] = (256, 512, 768, 1024)
  attention: tuple[bool, ...] = (False, True, True, True)
  depth: int = 2  # residual blocks of a stage
  head_dim: int = 64
  groups: int = 32
  condition_dim: int = 768
  num_tokens: int = 4
  given_channels: int = 0
  remat: transformer.Remat = 'none'

  def __post_init__(self):
    if len(self.attention) != len(self.widths):
      raise ValueError(f'attention={self.attention} for {len(self.widths)} stages; give {len(self.widths)} values')
    wrong = [width for width, attends in zip(self.widths, self.attention)
             if width % self.groups or (attends and width % self.head_dim)]
    if wrong or min(self.depth, self.num_tokens, self.condition_dim) < 1:
      raise ValueError(f'widths={self.widths}, groups={self.groups}, head_dim={self.head_dim}, depth={self.depth}, '
                       f'num_tokens={self.num_tokens}, condition_dim={self.condition_dim}; give positive numbers, and '
                       'widths that are multiples of groups, and of head_dim where there is attention')

  @property
  def embedding_dim(self) -> int:
    return 4 * self.widths[0]

  @property
  def stride(self) -> int:
    """What the sides of a frame must be a multiple of."""
    return 2 ** (len(self.widths) - 1)


def zeroed(param: nnx.Param) -> nnx.Param:
  return nnx.Param(jnp.zeros_like(param[...]))


class FrameConv(TimeConv):
  """Begins as the identity."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    super().__init__(width, width, rngs=rngs)
    identity = np.zeros(self.kernel.shape, np.float32)
    identity[1, 0] = np.eye(width)
    self.kernel = nnx.Param(jnp.zeros_like(self.kernel[...]) + identity)


class PseudoConv(Conv):
  """Of each frame, then along time: eq. 1."""

  def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
    super().__init__(inputs, outputs, rngs=rngs)
    self.frames = FrameConv(outputs, rngs=rngs)

  def __call__(self, x_BTHWC: Video) -> Video:
    return self.frames(super().__call__(x_BTHWC))


class PseudoDownsample(Downsample):

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    super().__init__(width, rngs=rngs)
    self.frames = FrameConv(width, rngs=rngs)

  def __call__(self, x_BTHWC: Video) -> Video:
    return self.frames(super().__call__(x_BTHWC))


class PseudoUpsample(Upsample):

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    super().__init__(width, rngs=rngs)
    self.frames = FrameConv(width, rngs=rngs)

  def __call__(self, x_BTHWC: Video, sides: tuple[int, int] | None = None) -> Video:
    return self.frames(super().__call__(x_BTHWC, sides))


class PseudoResidualBlock(TimedResidualBlock):

  def __init__(self, inputs: int, outputs: int, embedding_dim: int, groups: int, *, rngs: nnx.Rngs):
    super().__init__(inputs, outputs, embedding_dim, groups, rngs=rngs)
    self.conv1, self.conv2 = (PseudoConv(width, outputs, rngs=rngs) for width in (inputs, outputs))


class PseudoBlock(TransformerBlock):
  """Within the frame, then along time (eq. 2), then to the condition."""

  def __init__(self, width: int, num_heads: int, head_dim: int, context_dim: int, *, rngs: nnx.Rngs):
    super().__init__(width, num_heads, head_dim, context_dim, rngs=rngs)
    self.norm_frames = LayerNorm(width, rngs=rngs)
    self.frames = FrameAttention(width, num_heads, head_dim, rngs=rngs)
    self.frames.w_out = zeroed(self.frames.w_out)

  def __call__(self, x_BLD, segment_BL, context_BSE):
    T = len(x_BLD) // len(context_BSE)
    x_BLD = x_BLD + self.attn1(self.norm1(x_BLD), segment_BL)
    place_1T1D = motion_module.positions(T, x_BLD.shape[-1])[None, :, None].astype(x_BLD.dtype)
    h_BTLD = motion_module.split_frames(self.norm_frames(x_BLD), T) + place_1T1D
    x_BLD = x_BLD + self.frames(motion_module.merge_frames(h_BTLD), T)
    x_BLD = x_BLD + self.attn2(self.norm2(x_BLD), segment_BL, context_BSE)
    return x_BLD + self.mlp(self.norm3(x_BLD))


class PseudoTransformer(Transformer2D):

  def __init__(self, width: int, num_heads: int, head_dim: int, context_dim: int, num_layers: int, groups: int, *,
               rngs: nnx.Rngs):
    super().__init__(width, num_heads, head_dim, context_dim, num_layers, groups, rngs=rngs)
    self.blocks = nnx.List([PseudoBlock(width, num_heads, head_dim, context_dim, rngs=rngs)
                            for _ in range(num_layers)])


class Kinds(NamedTuple):
  """Of what a U-Net is built."""
  conv: Callable
  residual: Callable
  transformer: Callable
  down: Callable
  up: Callable


class Stage(nnx.Module):
  """Residual blocks that take so many channels, the first of them with a transformer behind it; then a change of
  sides."""

  def __init__(self, kinds: Kinds, config: UNetConfig, inputs: list[int], width: int, num_transformers: int,
               sample: nnx.Module | None, *, rngs: nnx.Rngs):
    D = config.embedding_dim
    self.resnets = nnx.List([kinds.residual(number, width, D, config.groups, rngs=rngs) for number in inputs])
    self.transformers = nnx.List([
        kinds.transformer(width, width // config.head_dim, config.head_dim, D, 1, config.groups, rngs=rngs)
        for _ in range(num_transformers)])
    self.sample = sample

  def layers(self):
    return list(itertools.zip_longest(self.resnets, self.transformers))


class ImageUNet(nnx.Module):
  kinds = Kinds(Conv, TimedResidualBlock, Transformer2D, Downsample, Upsample)

  def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
    self.config = config
    kinds, widths, D, last = self.kinds, config.widths, config.embedding_dim, len(config.widths) - 1
    self.conv_in = kinds.conv(CHANNELS + config.given_channels, widths[0], rngs=rngs)
    self.level = Embedding(widths[0], D, rngs=rngs)
    self.condition = Embedding(config.condition_dim, D, rngs=rngs)
    self.tokens = Linear(config.condition_dim, config.num_tokens * D, rngs=rngs)
    down, up, skips, inputs = [], [], [widths[0]], widths[-1]
    for i, width in enumerate(widths):
      down.append(Stage(kinds, config, [widths[max(i - 1, 0)], *[width] * (config.depth - 1)], width,
                        config.depth * config.attention[i], kinds.down(width, rngs=rngs) if i < last else None,
                        rngs=rngs))
      skips += [width] * (config.depth + (i < last))
    self.middle = Stage(kinds, config, [widths[-1]] * 2, widths[-1], int(config.attention[-1]), None, rngs=rngs)
    for i in range(last, -1, -1):
      taken = [(inputs if j == 0 else widths[i]) + skips.pop() for j in range(config.depth + 1)]
      up.append(Stage(kinds, config, taken, widths[i], len(taken) * config.attention[i],
                      kinds.up(widths[i], rngs=rngs) if i else None, rngs=rngs))
      inputs = widths[i]
    self.down, self.up = nnx.List(down), nnx.List(up)
    self.norm_out = GroupNorm(widths[0], config.groups, rngs=rngs)
    self.conv_out = kinds.conv(widths[0], CHANNELS, rngs=rngs)

  def told(self, level_B, condition_BE, fps_B) -> Float[Array, 'b d']:
    """The embedding of level and condition; frames alone have no rate."""
    level_BD = self.level(sinusoid(LEVEL_SCALE * level_B, self.config.widths[0], condition_BE.dtype))
    return level_BD + self.condition(condition_BE)

  def __call__(self, x_BTHWC: Float[Array, 'b t h w i'], level_B: Float[Array, 'b'], condition_BE: Float[Array, 'b e'],
               fps_B: Float[Array, 'b']) -> Float[Array, 'b t h w 3']:
    """The raw prediction, float32, computed in the condition's dtype.

    x_BTHWC: noisy frames in [-1, 1], with what is given behind their channels; level in [0, 1]; fps: frames a second.
    """
    config, dtype, run = self.config, condition_BE.dtype, remade(self.config.remat)
    c_BD = self.told(level_B, condition_BE, fps_B)
    context_BSD = conv.reshape(self.tokens(condition_BE), len(c_BD), config.num_tokens, config.embedding_dim)
    x = self.conv_in(x_BTHWC.astype(dtype))
    skips = [x]
    for stage in self.down:
      for layer in stage.layers():
        x = run(*layer, x, c_BD, context_BSD)
        skips.append(x)
      if stage.sample is not None:
        x = stage.sample(x)
        skips.append(x)
    for layer in self.middle.layers():
      x = run(*layer, x, c_BD, context_BSD)
    for stage in self.up:
      for layer in stage.layers():
        x = run(*layer, jnp.concatenate([x, skips.pop()], -1), c_BD, context_BSD)
      if stage.sample is not None:
        x = stage.sample(x, skips[-1].shape[2:4])
    return self.conv_out(jax.nn.silu(self.norm_out(x))).astype(jnp.float32)


class VideoUNet(ImageUNet):
  kinds = Kinds(PseudoConv, PseudoResidualBlock, PseudoTransformer, PseudoDownsample, PseudoUpsample)

  def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
    super().__init__(config, rngs=rngs)
    self.fps = Embedding(config.widths[0], config.embedding_dim, rngs=rngs)
    self.fps.linear_2.w = zeroed(self.fps.linear_2.w)

  def told(self, level_B, condition_BE, fps_B) -> Float[Array, 'b d']:
    rate_BD = self.fps(sinusoid(fps_B, self.config.widths[0], condition_BE.dtype))
    return super().told(level_B, condition_BE, fps_B) + rate_BD


def make(config: UNetConfig, num_frames: int, rngs: nnx.Rngs) -> ImageUNet:
  """Of clips of so many frames; of one frame the network of frames."""
  return (ImageUNet if num_frames == 1 else VideoUNet)(config, rngs=rngs)


def begun_as(model: nnx.Module, earlier: dict[str, np.ndarray]):
  """`model` with the weights of an earlier one, {name: array}, wherever that has such: of a network of frames, or of one
  that is given less, to whose further channels the first convolution is blind. ValueError where they are of other
  sizes."""
  ours, kernel = weights.names(model), 'conv_in.kernel'
  if kernel in ours and (missing := ours[kernel].shape[2] - earlier[kernel].shape[2]) > 0:
    earlier = {**earlier, kernel: np.pad(earlier[kernel], ((0, 0), (0, 0), (0, missing), (0, 0)))}
  values = weights.replace(model, {**ours, **earlier})
  return jax.tree.map(lambda x, value: x if value is x else jax.device_put(np.asarray(value, x.dtype), x.sharding),
                      model, values)


def noise_vector(level_B: Float[Array, 'b'], size: int, dtype) -> Float[Array, 'b e']:
  """The condition of super-resolution: the level of the noise in the small frames."""
  return sinusoid(LEVEL_SCALE * level_B, size, dtype)
