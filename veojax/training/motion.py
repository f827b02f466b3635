"""What a codec's pixel errors cost the motion of objects: an error that many pixels share displaces what they show."""
import jax.numpy as jnp
from jaxtyping import Array, Float

from veojax.models import conv

SIDES = 2, 4, 8  # of the squares, pixels


def motion_error(error_BTHWC: Float[Array, 'b t h w c']) -> Float[Array, '']:
  """Of the error of pixels, whose sides are multiples of 8, averaged over squares: its mean square and that of its
  second difference in time, times the square's area, summed over the squares' sides.

  Averages of independent errors over n pixels fall as 1/n, so noise costs the same at every side, and what moves an edge
  costs more; a second difference is what shakes an object, to which L2 is as blind as to a steady shift.
  """
  total, mean = 0.0, error_BTHWC
  for side in SIDES:
    B, T, H, W, C = mean.shape  # halved one axis after another: faster than at once
    mean = jnp.mean(conv.reshape(mean, B, T, H // 2, 2, W, C), 3)
    mean = jnp.mean(conv.reshape(mean, B, T, H // 2, W // 2, 2, C), 4)
    shake = mean[:, 2:] - 2 * mean[:, 1:-1] + mean[:, :-2]
    total += side ** 2 * (jnp.mean(jnp.square(mean)) + jnp.mean(jnp.square(shake)))
  return total
