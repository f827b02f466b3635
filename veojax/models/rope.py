"""Rotary positions (Su et al. 2021) in physical units: seconds, and space in units of sqrt(H W) pixels.

Each head's dim is split over the three axes (t, y, x) in equal even parts, the rest left unrotated; frequencies are
geometric between a longest and a shortest wavelength per axis. Halves are rotated as pairs (i, i + K/2).
A token's rotation depends on where it is, not on its index, so clips of any rate and size share one clock and one
space.
"""
import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class RopeConfig:
  time_wavelengths: tuple[float, float] = (0.25, 60.0)  # seconds, shortest and longest
  space_wavelengths: tuple[float, float] = (0.125, 8.0)  # units of sqrt(H W)


def frequencies(config: RopeConfig, head_dim: int) -> np.ndarray:
  """float32[3, K/2] angular frequencies: column j rotates by position[axis] of the one axis whose entry is not zero."""
  half = head_dim // 2
  counts = [half - 2 * (half // 3), half // 3, half // 3]
  table = np.zeros((3, half), np.float32)
  start = 0
  for axis, count in enumerate(counts):
    shortest, longest = config.time_wavelengths if axis == 0 else config.space_wavelengths
    table[axis, start:start + count] = 2 * np.pi / np.geomspace(shortest, longest, count)
    start += count
  return table


def rotation(config: RopeConfig, head_dim: int, position_BL3: Float[Array, 'b l 3']) -> Float[Array, 'b l 2 k']:
  """cos and sin, float32[B, L, 2, K/2], for tokens at the given positions."""
  table = frequencies(config, head_dim)
  angle = sum(position_BL3[..., a, None] * table[a][None, None] for a in range(3))
  return jnp.stack([jnp.cos(angle), jnp.sin(angle)], -2)


def rotate(x_BLNK: Float[Array, 'b l n k'], rotation_BL2k: Float[Array, 'b l 2 j']) -> Float[Array, 'b l n k']:
  cos, sin = (rotation_BL2k[:, :, i, None].astype(x_BLNK.dtype) for i in range(2))
  a, b = jnp.split(x_BLNK, 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
