"""Convolution over space, and causal convolution over time with the past carried from chunk to chunk.

Layout is BTHWC. A causal kernel of k taps sees frames t-k+1 … t. Before the first frame of a clip it sees zeros; a
later chunk sees the last k-1 input frames of the chunk before it (the state, of fixed shape). So a clip computed in
chunks equals the clip computed whole.

A 3 × 3 × 3 convolution is factored into 3 × 3 of space and 3 of time: one 2D convolution with the frames in the batch,
and one matrix product with the taps gathered into the channels. Both keep a matrix unit full, in the gradient too.

Within a `shard_map` whose axes 'time' and 'height' split frames and rows, each convolution first gets from the
neighbours what its kernel reaches into: the results are those of the whole.
"""
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from veojax import sharding
from veojax.models import layers

Video = Float[Array, 'b _t _h _w _c']  # the batch is one throughout a call; the other sizes change within it


def reshape(x: Float[Array, 'b ...'], *shape: int) -> Float[Array, 'b2 ...']:
  """`x.reshape(*shape)` that keeps the layout of the batch, which stays the leading (major) part of the first dim.

  On an explicit mesh the layout of a merged or split dim is ambiguous, and has to be given.
  """
  layout = jax.typeof(x).sharding
  return jnp.reshape(x, shape, out_sharding=None if layout.mesh.empty else P(*layout.spec[:1]))


def space_to_depth(x_BTHWC: Video, time: int, space: int) -> Video:
  """Blocks of time × space × space cells become the channels of one; inverse of `depth_to_space`."""
  B, T, H, W, C = x_BTHWC.shape
  x = reshape(x_BTHWC, B, T // time, time, H // space, space, W // space, space, C)
  x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
  return reshape(x, B, T // time, H // space, W // space, time * space * space * C)


def depth_to_space(x_BTHWC: Video, time: int, space: int) -> Video:
  """The channels of one cell become a block of time × space × space cells; inverse of `space_to_depth`."""
  B, T, H, W, C = x_BTHWC.shape
  C = C // (time * space * space)
  x = reshape(x_BTHWC, B, T, H, W, time, space, space, C)
  x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
  return reshape(x, B, T * time, H * space, W * space, C)


class Pointwise(nnx.Module):
  """A matrix product over the channels."""

  def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
    self.kernel = layers.param(layers.lecun_normal(), rngs.params(), (inputs, outputs))
    self.bias = layers.param(layers.zeros, rngs.params(), (outputs,))

  def __call__(self, x_BTHWC: Video) -> Video:
    return add_bias(x_BTHWC @ self.kernel[...].astype(x_BTHWC.dtype), self.bias[...])


class SpatialConv(nnx.Module):
  """Convolution of `size` × `size` (odd) within each frame, zeros around it, stride 1."""

  def __init__(self, inputs: int, outputs: int, size: int = 3, *, rngs: nnx.Rngs):
    init = nnx.initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)
    self.kernel = layers.param(init, rngs.params(), (size, size, inputs, outputs))
    self.bias = layers.param(layers.zeros, rngs.params(), (outputs,))

  def __call__(self, x_BTHWC: Video) -> Video:
    B, T, H, W, C = x_BTHWC.shape
    frames, padding = reshape(x_BTHWC, B * T, H, W, C), 'SAME'
    if sharding.splits('height'):
      reach = self.kernel.shape[0] // 2
      frames, padding = with_edges(frames, reach), ((0, 0), (reach, reach))
    y = jax.lax.conv_general_dilated(frames, self.kernel[...].astype(x_BTHWC.dtype), (1, 1), padding,
                                     dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return add_bias(reshape(y, B, T, H, W, y.shape[-1]), self.bias[...])


class CausalConv(nnx.Module):
  """Convolution of `taps` frames, the present one the last, at each place of the frame."""

  def __init__(self, inputs: int, outputs: int, taps: int = 3, *, rngs: nnx.Rngs,
               init=nnx.initializers.lecun_normal(in_axis=(0, 1), out_axis=2)):
    self.kernel = layers.param(init, rngs.params(), (taps, inputs, outputs))
    self.bias = layers.param(layers.zeros, rngs.params(), (outputs,))

  def __call__(self, x_BTHWC: Video, past: Video | None = None) -> tuple[Video, Video]:
    """Returns the output and the past of the next chunk, [B, taps-1, H, W, inputs]; `past` None is the clip's start."""
    taps, C, D = self.kernel.shape
    T = x_BTHWC.shape[1]
    following = None
    if sharding.splits('time'):
      past, following = past_of_part(x_BTHWC, past, taps - 1)
    if past is None:
      frames = jnp.pad(x_BTHWC, ((0, 0), (taps - 1, 0), (0, 0), (0, 0), (0, 0)))
    else:
      frames = jnp.concatenate([past, x_BTHWC], 1)
    gathered = jnp.concatenate([frames[:, i:i + T] for i in range(taps)], -1)
    kernel = self.kernel[...].astype(x_BTHWC.dtype).reshape(taps * C, D)
    return add_bias(gathered @ kernel, self.bias[...]), frames[:, T:] if following is None else following


def with_edges(x_BHWC: Float[Array, 'b h w c'], reach: int) -> Float[Array, 'b h2 w c']:
  """A part of the rows with the `reach` rows before and after it; zeros at the frame's edges, as convolutions pad."""
  n = jax.lax.axis_size('height')
  before = jax.lax.ppermute(x_BHWC[:, -reach:], 'height', [(i, i + 1) for i in range(n - 1)])
  after = jax.lax.ppermute(x_BHWC[:, :reach], 'height', [(i + 1, i) for i in range(n - 1)])
  return jnp.concatenate([before, x_BHWC, after], 1)


def past_of_part(x_BTHWC: Video, past: Video | None, reach: int) -> tuple[Video, Video]:
  """(the `reach` frames before a part of a chunk's frames, the past of the next chunk).

  The first part has the chunk's past before it, and alone holds that of the next chunk: the last part's last frames.
  """
  n = jax.lax.axis_size('time')
  assert x_BTHWC.shape[1] >= reach, 'a part of the frames is shorter than the kernel reaches'
  received = jax.lax.ppermute(x_BTHWC[:, x_BTHWC.shape[1] - reach:], 'time', [(i, (i + 1) % n) for i in range(n)])
  start = jnp.zeros_like(received) if past is None else past
  return jnp.where(jax.lax.axis_index('time') == 0, start, received), received


def add_bias(x: Float[Array, '... d'], bias: Float[Array, 'd']) -> Float[Array, '... d']:
  return x + jnp.expand_dims(bias.astype(x.dtype), tuple(range(x.ndim - 1)))
