"""Guidance: predictions with the condition and without it, or without several conditions in turn, made into one.

The prediction without the condition may be of an empty prompt, of a negative prompt, or of a sound without its picture;
the formulas do not mind. Several conditions, each with a scale of its own, add up as in LTX-2 (HaCohen et al. 2026):

  cond + sum_i (scale_i - 1) (cond - without_i),

for one of them Ho & Salimans 2022, eq. 6.

They act on raw predictions (eps, x0, v, flow, edm): at a given x and t all of these are affine in each other with the
same coefficients for both, so classifier-free guidance means the same on each. Rescaling does not, and is meant for v
and flow.

A scale is a number or an array that broadcasts against the prediction, so picture and sound may each have their own.
"""
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from veojax.types import AUDIO, VIDEO

Scale = float | int | Float[Array, '...']
OfRows = float | int | Float[np.ndarray, 'b 1']
Denoise = Callable[[Array, Array], Array]


def classifier_free(cond: Float[Array, '*s'], uncond: Float[Array, '*s'], scale: Scale) -> Float[Array, '*s']:
  """uncond + scale (cond - uncond), Ho & Salimans 2022, eq. 6 with scale = 1 + w: 1 is exactly cond, 0 is uncond."""
  return (cond + (scale - 1) * (cond - uncond)).astype(cond.dtype)


def by_modality(modality: Int[Array, 'b l'], *, video: OfRows, audio: OfRows) -> Float[Array, 'b l 1']:
  """The scale of each token of packed rows; 1, no guidance, for text and padding. video, audio: of all rows, or [B, 1]
  of each."""
  return jnp.where(modality == VIDEO, video, jnp.where(modality == AUDIO, audio, 1.0))[:, :, None]


def interval(scale: Scale, t: Float[Array, '*d'] | float, bounds: tuple[float, float]) -> Float[Array, '...']:
  """The scale at levels bounds[0] < t <= bounds[1] and 1 outside them, Kynkäänniemi et al. 2024."""
  low, high = bounds
  if not 0 <= low < high <= 1:
    raise ValueError(f'the guidance interval is {bounds}; give (low, high) with 0 <= low < high <= 1, 0 being data')
  return jnp.where((t > low) & (t <= high), scale, 1.0)


def _variance(x: Array, group: Int[Array, 'b l'] | None, num_groups: int, where: Array | None) -> Array:
  """The variance over each example's tokens and channels, or over each group's, laid out to broadcast against x."""
  x = x.astype(jnp.float32)
  if group is None:
    return jnp.var(x, axis=tuple(range(1, x.ndim)), keepdims=True, where=where)
  # One-hot sums rather than scatters or products: they keep their layout under an explicit mesh, tokens split or not.
  member_BLG = jax.nn.one_hot(group, num_groups, dtype=jnp.float32)
  kept_BLC = jnp.ones_like(x) if where is None else jnp.broadcast_to(where, x.shape).astype(jnp.float32)

  def sum_of_groups(value_BLC):
    return jnp.sum(member_BLG * jnp.sum(value_BLC, -1, keepdims=True), 1)

  def spread_to_tokens(value_BG):
    return jnp.einsum('blg,bg->bl', member_BLG, value_BG)[:, :, None]
  count_BG = jnp.maximum(sum_of_groups(kept_BLC), 1)
  mean_BG = sum_of_groups(kept_BLC * x) / count_BG
  away_BLC = kept_BLC * jnp.square(x - spread_to_tokens(mean_BG))
  return spread_to_tokens(sum_of_groups(away_BLC) / count_BG)


def rescale(guided: Float[Array, '*s'], cond: Float[Array, '*s'], amount: float, *,
            group: Int[Array, 'b l'] | None = None, num_groups: int = 1,
            where: Bool[Array, '...'] | None = None) -> Float[Array, '*s']:
  """Brings the guided prediction's deviation back to that of cond, by a share `amount`: Lin et al. 2023, eqs. 15, 16.

  The deviation is that of each example (x[B, ...]); of packed rows x[B, L, C], that of each `group` (Tokens.group: one
  clip, one modality, one noise level), so that no clip's contrast depends on its neighbours in the row. `where` leaves
  out what is not data, such as the channels that a modality does not have.
  """
  if not 0 <= amount <= 1:
    raise ValueError(f'the guidance rescale is {amount}; give 0 (none) to 1 (all of it)')
  before, after = (_variance(x, group, num_groups, where) for x in (cond, guided))
  ratio = jnp.where(after > 0, jnp.sqrt(before / jnp.where(after > 0, after, 1)), 1)
  return (guided * (amount * ratio + (1 - amount))).astype(guided.dtype)


def guided_by(evaluate: Callable[[Array, Array], Sequence[Array]], scales: Sequence[Scale], rescale: float = 0.0,
              interval: tuple[float, float] | None = None, *, group: Int[Array, 'b l'] | None = None,
              num_groups: int = 1, where: Bool[Array, '...'] | None = None) -> Denoise:
  """A `denoise` with guidance, for the samplers. evaluate(x, t) gives the prediction with all conditions and, for each
  of the scales, the one without that condition; `rescale` is the amount, `interval` the bounds of the functions above.
  """
  amount, bounds = rescale, interval

  def denoise(x: Array, t: Array) -> Array:
    cond, *others = evaluate(x, t)
    out = cond
    for other, scale in zip(others, scales, strict=True):
      out = out + (_within(scale, t, bounds) - 1) * (cond - other)
    return _rescaled(out.astype(cond.dtype), cond, amount, group=group, num_groups=num_groups, where=where)
  return denoise


def guided(denoise_cond: Denoise, denoise_uncond: Denoise, scale: Scale = 1.0, rescale: float = 0.0,
           interval: tuple[float, float] | None = None, **statistics) -> Denoise:
  """`guided_by` one condition: with the number 1 as scale denoise_cond itself, and denoise_uncond is never called."""
  if isinstance(scale, (int, float)) and scale == 1:
    return denoise_cond
  return guided_by(lambda x, t: (denoise_cond(x, t), denoise_uncond(x, t)), (scale,), rescale, interval, **statistics)


def _within(scale, t, bounds):
  return scale if bounds is None else interval(scale, t, bounds)


def _rescaled(out, cond, amount, **statistics):
  return rescale(out, cond, amount, **statistics) if amount else out
