"""Sums over the bits of arrays, which tell whether these are what they were, on whatever mesh they lie.

Of the elements' bits b_i as whole numbers: Σ b_i w_i mod 2^32, w_i being odd and another for each place. One changed bit
changes the sum, since 2^k w_i is not 0 mod 2^32; of other changes one in 2^32 does not.
"""
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

STRIDE = 2654435761  # 2^32 over the golden ratio: multiples of it are spread evenly


def checksums(arrays: Mapping[str, jax.Array]) -> np.ndarray:
  """uint32[N], in the order of the sorted names. Each of the processes that hold the arrays must call it."""
  return np.asarray(_sums([arrays[name] for name in sorted(arrays)]))


@jax.jit
def _sums(arrays):
  return jnp.stack([_sum(x) for x in arrays])


def _sum(x):
  if x.dtype != bool:
    x = jax.lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * x.dtype.itemsize}'))
  total = x.astype(jnp.uint32)
  for axis, size in enumerate(x.shape):
    odd = jnp.arange(size, dtype=jnp.uint32) * jnp.uint32(2 * STRIDE % 2**32) + jnp.uint32(2 * axis + 1)
    total = total * jnp.expand_dims(odd, tuple(a for a in range(x.ndim) if a != axis))
  return jnp.sum(total, dtype=jnp.uint32)
