"""Parameters with a declared layout, and the small functions that all networks share.

Parameters are float32; a network computes in the dtype of its inputs, with norms in float32.
"""
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from veojax import sharding

lecun_normal = nnx.initializers.lecun_normal
zeros = nnx.initializers.zeros
normal = nnx.initializers.normal

ATTENTION_OUTPUT = 'attention'  # what rematerialisation calls the outputs of attention


class Rngs(nnx.Rngs):
  """The same keys as `nnx.Rngs(key)`, counted by Python.

  Flax counts in an array, and while a function is traced every key then costs a search of all that was traced before:
  for a U-Net of 1600 parameters, minutes.
  """

  def __init__(self, key):
    super().__init__()
    self.default = _Stream(key, tag='default')


class _Stream(nnx.RngStream):
  calls = 0

  def __call__(self):
    self.calls += 1
    return jax.random.fold_in(self.key[...], self.calls - 1)


def param(init, key, shape, spec=sharding.REPLICATED) -> nnx.Param:
  """A float32 parameter laid out as `spec` over the mesh in force, but for axes that do not divide their dims."""
  return nnx.Param(init(key, shape, jnp.float32, out_sharding=sharding.in_force(sharding.dividing(spec, *shape))))


def einsum(subscripts, x, w, spec=None):
  """`jnp.einsum` of an activation with a parameter in the activation's dtype, the result laid out as `spec`.

  Where nothing splits parameters or the tokens of a row, rows and tokens ('bl', 'bs') are one dim of the product. XLA's
  CPU compiler contracts the parameter's gradient over one dim as it lies, and over two through transposed copies: twice
  the time.
  """
  w, spec = w.astype(x.dtype), spec and sharding.in_force(spec)
  terms, result = subscripts.split('->')
  tokens = result[:2]
  if any(sharding.size(axis) > 1 for axis in sharding.PARTS):
    # Gathered here: left to the compiler, some are sent round a ring while their products are computed twice.
    return jnp.einsum(subscripts, x, reshard(w, sharding.whole_parts(jax.typeof(w).sharding.spec)), out_sharding=spec)
  if tokens not in ('bl', 'bs'):
    return jnp.einsum(subscripts, x, w, out_sharding=spec)
  rows = sharding.in_force(sharding.B)
  flat = jnp.reshape(x, (-1, *x.shape[2:]), out_sharding=rows and _flat(jax.typeof(x).sharding.spec))
  y = jnp.einsum(f'{terms}->{result}'.replace(tokens, 't'), flat, w, out_sharding=spec and _flat(spec))
  return jnp.reshape(y, (*x.shape[:2], *y.shape[1:]), out_sharding=spec)


def _flat(spec):
  """The layout of [b, l, ...] for [b·l, ...]."""
  return jax.sharding.PartitionSpec(spec[0], *spec[2:])


def reshard(x, spec):
  """The same values laid out as `spec`; nothing to do where no mesh is in force."""
  return jax.sharding.reshard(x, spec) if sharding.in_force(spec) is not None else x


def take(x, index, spec):
  """x[b, index[b, ...]] for every row b of a batch, the result laid out as `spec`."""
  rows = jax.vmap(lambda x, i: x[i])
  if sharding.in_force(spec) is None:
    return rows(x, index)
  # A gather whose result is split over `context` while its operand is not has no unique layout: it is given here.
  return jax.sharding.auto_axes(rows, out_sharding=spec)(x, index)


def rms_norm(x: Float[Array, '... d'], scale=None, eps: float = 1e-6) -> Float[Array, '... d']:
  """Root mean square norm over the last dim (Zhang & Sennrich 2019), statistics in float32."""
  x32 = x.astype(jnp.float32)
  y = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + eps)
  if scale is not None:
    y = y * jnp.expand_dims(scale.astype(jnp.float32), tuple(range(x.ndim - scale.ndim)))
  return y.astype(x.dtype)


def fourier(x: Float[Array, '...'], num_frequencies: int, lowest: float, highest: float) -> Float[Array, '... f']:
  """cos and sin of x at `num_frequencies` geometrically spaced frequencies (cycles per unit of x), float32."""
  ratio = jnp.arange(num_frequencies, dtype=jnp.float32) / max(1, num_frequencies - 1)
  angle = 2 * jnp.pi * x.astype(jnp.float32)[..., None] * jnp.expand_dims(
      lowest * (highest / lowest) ** ratio, tuple(range(x.ndim)))
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)
