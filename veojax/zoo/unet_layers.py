"""What the U-Nets of latent diffusion share (Rombach et al. 2022), in the conventions of their published weights.

Frames lie [B, T, H, W, C] throughout; convolutions and attention over space take each by itself. Norms are group norms
before each layer. In a transformer the frames are rows of tokens, [B·T, L, D]; what is looked at besides, the context,
is of a clip and has B rows.

On the mesh, `context` and `tensor` share out a convolution's outputs; in a transformer `context` splits tokens and
`tensor` heads and MLP width. What an axis does not divide it leaves whole, but heads and tokens are filled up.
"""
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from veojax import sharding
from veojax.models import attention, conv, layers
from veojax.models.conv import Video
from veojax.zoo.transforms import CONV, LINEAR, LINEAR_FROM_HEADS, SAME, Transform, pointwise
from veojax.zoo.weight_table import Rule

GROUPS = 32
LAYER_NORM_EPS = 1e-5
TRANSFORMER_EPS = 1e-6  # of the group norm before a transformer

Tokens = Float[Array, 'rows tokens _d']


class Linear(nnx.Module):
  """x W + b over the last dim."""

  def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
    self.w = layers.param(layers.lecun_normal(), rngs.params(), (inputs, outputs), sharding.D_F)
    self.b = layers.param(layers.zeros, rngs.params(), (outputs,))

  def __call__(self, x: Float[Array, '*b d']) -> Float[Array, '*b e']:
    spec = sharding.in_force(sharding.rows(x.ndim))
    return conv.add_bias(jnp.einsum('...d,de->...e', x, self.w[...].astype(x.dtype), out_sharding=spec), self.b[...])


class Conv(nnx.Module):
  """Convolution within each frame, `padding` zeros before and after each side."""

  def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1, padding: tuple[int, int] = (1, 1), *,
               rngs: nnx.Rngs):
    self.stride, self.padding = stride, padding
    init = nnx.initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)
    self.kernel = layers.param(init, rngs.params(), (size, size, inputs, outputs), sharding.HWD_F)
    self.bias = layers.param(layers.zeros, rngs.params(), (outputs,))

  def __call__(self, x_BTHWC: Video) -> Video:
    B, T, H, W, C = x_BTHWC.shape
    frames = conv.reshape(x_BTHWC, B * T, H, W, C)
    y = convolve(frames, self.kernel[...].astype(x_BTHWC.dtype), (self.stride,) * 2, (self.padding,) * 2)
    return conv.add_bias(conv.reshape(y, B, T, *y.shape[1:]), self.bias[...])


def convolve(x: Float[Array, 'b *space i'], kernel: Float[Array, '*size i o'], strides: tuple[int, ...],
             padding: tuple[tuple[int, int], ...]) -> Float[Array, 'b *space2 o']:
  """Convolution over the dims between rows and channels; the rest of the mesh shares out its outputs."""
  space = 'DHW'[3 - len(strides):]
  dims = f'N{space}C', f'{space}IO', f'N{space}C'

  def apply(x, kernel):
    if any(map(any, padding)) and all(side < taps for side, taps in zip(x.shape[1:], kernel.shape[:-2])):
      # Where kernels are larger than pictures XLA for CPUs takes fifty times as long, unless the padding comes before.
      padded = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), *padding, (0, 0))))
      return jax.lax.conv_general_dilated(padded, kernel, strides, 'VALID', dimension_numbers=dims)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=dims)
  if sharding.in_force(sharding.B) is None:
    return apply(x, kernel)
  axes = tuple(axis for axis in ('tensor', 'context') if sharding.size(axis) > 1)
  shared = axes if kernel.shape[-1] % np.prod([sharding.size(axis) for axis in axes], dtype=int) == 0 else None
  outputs = P(*(None,) * (kernel.ndim - 1), shared)
  mapped = jax.shard_map(apply, in_specs=(sharding.B, outputs), out_specs=P(sharding.ROWS, *outputs[1:]))
  return layers.reshard(mapped(layers.reshard(x, sharding.B), layers.reshard(kernel, outputs)), sharding.B)


class GroupNorm(nnx.Module):
  """Group norm of each frame (Wu & He 2018), statistics in float32."""
  dims = (2, 3, 5)  # of [B, T, H, W, groups, channels of a group]

  def __init__(self, width: int, groups: int = GROUPS, eps: float = 1e-5, *, rngs: nnx.Rngs):
    self.groups, self.eps = groups, eps
    self.scale = layers.param(nnx.initializers.ones, rngs.params(), (width,))
    self.bias = layers.param(layers.zeros, rngs.params(), (width,))

  def __call__(self, x_BTHWC: Video) -> Video:
    *sizes, C = x_BTHWC.shape
    x = conv.reshape(x_BTHWC, *sizes, self.groups, C // self.groups).astype(jnp.float32)
    mean = jnp.mean(x, self.dims, keepdims=True)
    rate = jax.lax.rsqrt(jnp.mean(jnp.square(x - mean), self.dims, keepdims=True) + self.eps)
    scale, bias = (p[...].astype(jnp.float32).reshape(1, 1, 1, 1, self.groups, -1) for p in (self.scale, self.bias))
    # One product and one sum for each element.
    gain = rate * scale
    return conv.reshape(x * gain + (bias - mean * gain), *sizes, C).astype(x_BTHWC.dtype)


class ClipNorm(GroupNorm):
  """Group norm of all frames of a clip together."""
  dims = (1, 2, 3, 5)


class LayerNorm(nnx.Module):
  """Over the last dim, statistics in float32."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.scale = layers.param(nnx.initializers.ones, rngs.params(), (width,))
    self.bias = layers.param(layers.zeros, rngs.params(), (width,))

  def __call__(self, x: Float[Array, '*b d']) -> Float[Array, '*b d']:
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, -1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + LAYER_NORM_EPS)
    scale = jnp.expand_dims(self.scale[...].astype(jnp.float32), tuple(range(x.ndim - 1)))
    return conv.add_bias(centred * rate * scale, self.bias[...]).astype(x.dtype)


class Embedding(nnx.Module):
  """W2 silu(W1 x): what the network is told of a level or a condition."""

  def __init__(self, inputs: int, width: int, outputs: int | None = None, *, rngs: nnx.Rngs):
    self.linear_1 = Linear(inputs, width, rngs=rngs)
    self.linear_2 = Linear(width, outputs or width, rngs=rngs)

  def __call__(self, x_BF: Float[Array, 'b f']) -> Float[Array, 'b d']:
    return self.linear_2(jax.nn.silu(self.linear_1(x_BF)))


class ResidualBlock(nnx.Module):

  def __init__(self, inputs: int, outputs: int, groups: int = GROUPS, eps: float = 1e-5, *, rngs: nnx.Rngs):
    self.norm1, self.norm2 = (GroupNorm(width, groups, eps, rngs=rngs) for width in (inputs, outputs))
    self.conv1, self.conv2 = (Conv(width, outputs, rngs=rngs) for width in (inputs, outputs))
    self.shortcut = Linear(inputs, outputs, rngs=rngs) if inputs != outputs else None

  def __call__(self, x_BTHWC: Video, shift_BC: Float[Array, 'b c'] | None = None) -> Video:
    h = self.conv1(jax.nn.silu(self.norm1(x_BTHWC)))
    if shift_BC is not None:
      h = h + shift_BC[:, None, None, None]
    h = self.conv2(jax.nn.silu(self.norm2(h)))
    return h + (x_BTHWC if self.shortcut is None else self.shortcut(x_BTHWC))


class TimedResidualBlock(ResidualBlock):
  """Told of the noise level by the embedding c."""

  def __init__(self, inputs: int, outputs: int, embedding_dim: int, groups: int = GROUPS, eps: float = 1e-5, *,
               rngs: nnx.Rngs):
    super().__init__(inputs, outputs, groups, eps, rngs=rngs)
    self.time = Linear(embedding_dim, outputs, rngs=rngs)

  def __call__(self, x_BTHWC: Video, c_BD: Float[Array, 'b d']) -> Video:
    return super().__call__(x_BTHWC, self.time(jax.nn.silu(c_BD)))


class Downsample(Conv):
  """Half the sides, rounded up."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    super().__init__(width, width, stride=2, rngs=rngs)


class Upsample(Conv):
  """Each place four times, then a convolution."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    super().__init__(width, width, rngs=rngs)

  def __call__(self, x_BTHWC: Video, sides: tuple[int, int] | None = None) -> Video:
    """To these sides where one of them is odd and was rounded up on the way down."""
    B, T, H, W, C = x_BTHWC.shape
    x = jnp.broadcast_to(x_BTHWC[:, :, :, None, :, None], (B, T, H, 2, W, 2, C))
    height, width = sides or (2 * H, 2 * W)
    return super().__call__(conv.reshape(x, B, T, 2 * H, 2 * W, C)[:, :, :height, :width])


class Attention(nnx.Module):
  """Tokens look at those of their row, or at those of their clip's context."""

  def __init__(self, width: int, num_heads: int, head_dim: int, context_dim: int | None = None, *, rngs: nnx.Rngs):
    init = layers.lecun_normal(in_axis=0, out_axis=(1, 2))
    into = lambda inputs: layers.param(init, rngs.params(), (inputs, num_heads, head_dim), sharding.D_NK)
    self.w_q, self.w_k, self.w_v = into(width), into(context_dim or width), into(context_dim or width)
    self.w_out = layers.param(layers.lecun_normal(in_axis=(0, 1), out_axis=2), rngs.params(),
                              (num_heads, head_dim, width), sharding.NK_D)
    self.b_out = layers.param(layers.zeros, rngs.params(), (width,))

  def __call__(self, h_BLD: Tokens, segment_BL: Int[Array, 'rows tokens'],
               context_BSE: Float[Array, 'b s e'] | None = None) -> Float[Array, 'rows _l _d']:
    """Within equal segments; all of the context is looked at by segment 1. One token, for all, where the context is
    one."""
    if context_BSE is not None and context_BSE.shape[1] == 1:
      return self.out(self.of_clips(len(h_BLD), self.heads(context_BSE, self.w_v)))
    q = self.heads(h_BLD, self.w_q, sharding.BLNK)
    if context_BSE is None:
      k, v = (self.heads(h_BLD, w, sharding.BLNK) for w in (self.w_k, self.w_v))
      return self.out(attend(q, k, v, segment_BL, segment_BL))
    k, v = (self.of_clips(len(h_BLD), self.heads(context_BSE, w)) for w in (self.w_k, self.w_v))
    return self.out(attend(q, k, v, segment_BL, jnp.ones(k.shape[:2], segment_BL.dtype)))

  def heads(self, x_BLD, w, spec=sharding.BSNK):
    return layers.einsum('bld,dnk->blnk', x_BLD, w[...], sharding.dividing(spec, None, None, w.shape[1]))

  def out(self, a_BLNK):
    spec = sharding.BLD if a_BLNK.shape[1] > 1 else sharding.B
    return conv.add_bias(layers.einsum('blnk,nkd->bld', a_BLNK, self.w_out[...], spec), self.b_out[...])

  def of_clips(self, rows: int, x_BSNK):
    """A clip's values for each of its frames."""
    B, *sizes = x_BSNK.shape
    x = jnp.broadcast_to(x_BSNK[:, None], (B, rows // B, *sizes))
    spec = jax.typeof(x).sharding.spec
    return jnp.reshape(x, (rows, *sizes), out_sharding=sharding.in_force(P(spec[0], *spec[2:])))


def attend(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS):
  """`attention.attention`, with heads filled up to what `tensor` divides."""
  N = q_BLNK.shape[2]
  fill = ((0, 0), (0, 0), (0, -N % sharding.size('tensor')), (0, 0))
  segments = (layers.reshard(s, spec) for s, spec in ((segment_BL, sharding.BL), (segment_BS, sharding.B)))
  a = attention.attention(*(jnp.pad(x, fill) for x in (q_BLNK, k_BSNK, v_BSNK)), *segments)
  return a if a.shape[2] == N else layers.reshard(a, sharding.dividing(sharding.BLNK, None, None, N))[:, :, :N]


class GEGLU(nnx.Module):
  """(x W_up * gelu(x W_gate)) W_down with biases (Shazeer 2020); GELU is exact."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    F, init = 4 * width, layers.lecun_normal()
    self.w_up, self.w_gate = (layers.param(init, rngs.params(), (width, F), sharding.D_F) for _ in 'ug')
    self.b_up, self.b_gate = (layers.param(layers.zeros, rngs.params(), (F,)) for _ in 'ug')
    self.w_down = layers.param(init, rngs.params(), (F, width), sharding.F_D)
    self.b_down = layers.param(layers.zeros, rngs.params(), (width,))

  def __call__(self, h_BLD: Tokens) -> Tokens:
    spec = sharding.dividing(sharding.BLF, None, None, self.w_up.shape[1])
    up, gate = (conv.add_bias(layers.einsum('bld,df->blf', h_BLD, w[...], spec), b[...])
                for w, b in ((self.w_up, self.b_up), (self.w_gate, self.b_gate)))
    h_BLF = up * jax.nn.gelu(gate, approximate=False)
    return conv.add_bias(layers.einsum('blf,fd->bld', h_BLF, self.w_down[...], sharding.BLD), self.b_down[...])


class TransformerBlock(nnx.Module):
  """Attention to itself, attention to the context, MLP."""

  def __init__(self, width: int, num_heads: int, head_dim: int, context_dim: int, *, rngs: nnx.Rngs):
    self.norm1, self.norm2, self.norm3 = (LayerNorm(width, rngs=rngs) for _ in range(3))
    self.attn1 = Attention(width, num_heads, head_dim, rngs=rngs)
    self.attn2 = Attention(width, num_heads, head_dim, context_dim, rngs=rngs)
    self.mlp = GEGLU(width, rngs=rngs)

  def __call__(self, x_BLD: Tokens, segment_BL: Int[Array, 'rows tokens'],
               context_BSE: Float[Array, 'b s e']) -> Tokens:
    x_BLD = x_BLD + self.attn1(self.norm1(x_BLD), segment_BL)
    x_BLD = x_BLD + self.attn2(self.norm2(x_BLD), segment_BL, context_BSE)
    return x_BLD + self.mlp(self.norm3(x_BLD))


class Transformer2D(nnx.Module):
  """Blocks over the tokens of each frame, between two products, beside the identity."""

  def __init__(self, width: int, num_heads: int, head_dim: int, context_dim: int, num_layers: int = 1,
               groups: int = GROUPS, *, rngs: nnx.Rngs):
    inner = num_heads * head_dim
    self.norm = GroupNorm(width, groups, TRANSFORMER_EPS, rngs=rngs)
    self.proj_in, self.proj_out = Linear(width, inner, rngs=rngs), Linear(inner, width, rngs=rngs)
    self.blocks = nnx.List([TransformerBlock(inner, num_heads, head_dim, context_dim, rngs=rngs)
                            for _ in range(num_layers)])

  def __call__(self, x_BTHWC: Video, context_BSE: Float[Array, 'b s e']) -> Video:
    h_BLD, segment_BL = to_tokens(self.proj_in(self.norm(x_BTHWC)))
    for block in self.blocks:
      h_BLD = block(h_BLD, segment_BL, context_BSE)
    return x_BTHWC + self.proj_out(to_frames(h_BLD, *x_BTHWC.shape[:4]))


def to_tokens(x_BTHWC: Video) -> tuple[Tokens, Int[Array, 'rows tokens']]:
  """The tokens of each frame, filled up to what `context` divides, and their segments: 1, and 0 of what fills up."""
  B, T, H, W, C = x_BTHWC.shape
  fill = -(H * W) % sharding.size('context')
  x_BLD = jnp.pad(conv.reshape(x_BTHWC, B * T, H * W, C), ((0, 0), (0, fill), (0, 0)))
  segment_BL = np.broadcast_to(np.arange(H * W + fill) < H * W, (B * T, H * W + fill)).astype(np.int32)
  return layers.reshard(x_BLD, sharding.BLD), layers.reshard(jnp.asarray(segment_BL), sharding.BL)


def to_frames(x_BLD: Tokens, B: int, T: int, H: int, W: int) -> Video:
  """The inverse of `to_tokens`."""
  return conv.reshape(layers.reshard(x_BLD, sharding.B)[:, :H * W], B, T, H, W, x_BLD.shape[-1])


def attend_in_time(q_BTLNK: Float[Array, 'b t l n k'], k_BSLNK: Float[Array, 'b s l n k'],
                   v_BSLNK: Float[Array, 'b s l n k']) -> Float[Array, 'b t l n k']:
  """Each place of the frame looks at itself in all frames; softmax in float32. Rows are so short and so many that every
  platform does best by plain products."""
  logits = jnp.einsum('btlnk,bslnk->blnts', q_BTLNK, k_BSLNK, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(logits * q_BTLNK.shape[-1] ** -0.5, -1).astype(v_BSLNK.dtype)
  return jnp.einsum('blnts,bslnk->btlnk', weights, v_BSLNK)


# Rules of their weights, by the names of source and target; both may hold groups.

def weights(source: str, target: str, transform: Transform, kernel: str = 'w', bias: str = 'b') -> list[Rule]:
  return [Rule(f'{source}.weight', f'{target}.{kernel}', transform), Rule(f'{source}.bias', f'{target}.{bias}')]


def linear_rules(source: str, target: str) -> list[Rule]:
  return weights(source, target, LINEAR)


def conv_rules(source: str, target: str) -> list[Rule]:
  return weights(source, target, CONV, 'kernel', 'bias')


def norm_rules(source: str, target: str) -> list[Rule]:
  return weights(source, target, SAME, 'scale', 'bias')


def embedding_rules(source: str, target: str) -> list[Rule]:
  return linear_rules(f'{source}.linear_{{n:[12]}}', f'{target}.linear_{{n}}')


def residual_rules(source: str, target: str) -> list[Rule]:
  """Of a block with or without the embedding."""
  return [*norm_rules(f'{source}.norm{{n:[12]}}', f'{target}.norm{{n}}'),
          *conv_rules(f'{source}.conv{{n:[12]}}', f'{target}.conv{{n}}'),
          *linear_rules(f'{source}.time_emb_proj', f'{target}.time'),
          *weights(f'{source}.conv_shortcut', f'{target}.shortcut', pointwise(2))]


def attention_rules(source: str, target: str) -> list[Rule]:
  return [Rule(f'{source}.to_{{part:[qkv]}}.weight', f'{target}.w_{{part}}', LINEAR),
          Rule(f'{source}.to_out.0.weight', f'{target}.w_out', LINEAR_FROM_HEADS),
          Rule(f'{source}.to_out.0.bias', f'{target}.b_out')]


def mlp_rules(source: str, target: str) -> list[Rule]:
  return [Rule(f'{source}.net.0.proj.weight', (f'{target}.w_up', f'{target}.w_gate'), LINEAR),
          Rule(f'{source}.net.0.proj.bias', (f'{target}.b_up', f'{target}.b_gate')),
          *weights(f'{source}.net.2', target, LINEAR, 'w_down', 'b_down')]


def block_rules(source: str, target: str) -> list[Rule]:
  """Of a TransformerBlock."""
  return [*norm_rules(f'{source}.norm{{n:[123]}}', f'{target}.norm{{n}}'),
          *attention_rules(f'{source}.attn{{n:[12]}}', f'{target}.attn{{n}}'),
          *mlp_rules(f'{source}.ff', f'{target}.mlp')]


def transformer_rules(source: str, target: str, projection: Transform = LINEAR) -> list[Rule]:
  """Of a Transformer2D; `projection` is pointwise(2) where its products are published as convolutions."""
  return [*norm_rules(f'{source}.norm', f'{target}.norm'),
          *weights(f'{source}.proj_{{end:in|out}}', f'{target}.proj_{{end}}', projection),
          *block_rules(f'{source}.transformer_blocks.{{k}}', f'{target}.blocks.{{k}}')]
