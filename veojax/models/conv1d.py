"""Causal 1D convolution over time, whole or in chunks with carried state, and the snake activation.

Layout is x_BTC: batch, time steps, channels. Output step t depends on input steps ≤ t only: the input is padded on the
left with zeros, or with `state`, the last inputs of the chunk before. Zeros are the state of a clip that has not begun,
so running chunk after chunk gives exactly the steps of running the whole.

Steps change rate only by reshaping: s steps of C channels are one step of s·C channels. Every weight is then a
stride-1 convolution, which is a plain matrix product for kernel_size 1, and no chunk boundary can fall out of phase.
"""
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class CausalConv1d(nnx.Module):
  """y_t = sum_k w_k x_{t - (K-1-k)·dilation} + bias; keeps the number of steps."""

  def __init__(self, in_dim: int, out_dim: int, kernel_size: int, *, dilation: int = 1, gain: float = 1.0, dtype: str,
               rngs: nnx.Rngs):
    init = nnx.initializers.variance_scaling(gain ** 2, 'fan_in', 'truncated_normal', in_axis=(0, 1), out_axis=2) \
        if gain else nnx.initializers.zeros
    self.weight_KIO = nnx.Param(init(rngs.params(), (kernel_size, in_dim, out_dim), jnp.float32))
    self.bias_O = nnx.Param(jnp.zeros(out_dim, jnp.float32))
    self.dilation = dilation
    self.dtype = dtype

  @property
  def reach(self) -> int:
    """How many earlier steps an output step sees, and so the length of the state."""
    return (self.weight_KIO.shape[0] - 1) * self.dilation

  def __call__(self, x_BTI: Float[Array, 'b t i'], state: Float[Array, 'b s i'] | None = None
               ) -> tuple[Float[Array, 'b t o'], Float[Array, 'b s i']]:
    """Returns the output and the state for the next chunk (the last `reach` inputs); state None is the beginning."""
    x_BTI = x_BTI.astype(self.dtype)
    if state is None:
      padded = jnp.pad(x_BTI, ((0, 0), (self.reach, 0), (0, 0)))
    else:
      padded = jnp.concatenate([state, x_BTI], axis=1)
    weight = self.weight_KIO[...].astype(self.dtype)
    y_BTO = jax.lax.conv_general_dilated(padded, weight, window_strides=(1,), padding='VALID',
                                         rhs_dilation=(self.dilation,), dimension_numbers=('NWC', 'WIO', 'NWC'))
    return y_BTO + self.bias_O[...].astype(self.dtype)[None, None], padded[:, padded.shape[1] - self.reach:]


class Snake(nnx.Module):
  """x + sin²(alpha x) / alpha, alpha learned per channel (Ziyin et al. 2020, eq. 3; its logarithm is learned).

  Monotone, and periodic around the identity: it can continue a tone, which ReLU-like units cannot.
  """

  def __init__(self, dim: int):
    self.log_alpha_C = nnx.Param(jnp.zeros(dim, jnp.float32))

  def __call__(self, x_BTC: Float[Array, 'b t c']) -> Float[Array, 'b t c']:
    alpha = jnp.exp(self.log_alpha_C[...]).astype(x_BTC.dtype)[None, None]
    return x_BTC + jnp.square(jnp.sin(alpha * x_BTC)) / alpha


def fold(x_BTC: Float[Array, 'b t c'], factor: int) -> Float[Array, 'b u d']:
  """Every `factor` steps become one with factor·C channels, the earliest first."""
  B, T, C = x_BTC.shape
  # One split, then one merge: a reshape that does both at once is ambiguous where the batch is sharded.
  return jnp.reshape(jnp.reshape(x_BTC, (B, T // factor, factor, C)), (B, T // factor, factor * C))


def unfold(x_BTC: Float[Array, 'b t c'], factor: int) -> Float[Array, 'b u d']:
  """Inverse of `fold`."""
  B, T, C = x_BTC.shape
  return jnp.reshape(jnp.reshape(x_BTC, (B, T, factor, C // factor)), (B, T * factor, C // factor))
