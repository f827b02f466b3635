"""Noise levels: drawn in training, and laid out as a schedule in sampling. t = 0 is data, t = 1 is noise.

A shift s moves levels towards noise: t' = s t / (1 + (s - 1) t), Esser et al. 2024, eq. 23. On the scale of
logit(t) = log(t / (1 - t)) it is a translation by log s, so shifts compose by multiplication, and a logit-normal of
mean m shifted by s is the logit-normal of mean m + log s. Larger clips need a larger shift: their neighbouring tokens
repeat each other, so the same noise hides less. Picture and sound each have their own.
"""
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

SPACINGS = ('uniform', 'quadratic', 'linear_quadratic')


def uniform(key: Key[Array, ''], shape: tuple[int, ...], *, out_sharding=None) -> Float[Array, '...']:
  """float32[shape], uniform in [0, 1)."""
  return jax.random.uniform(key, shape, out_sharding=out_sharding)


def logit_normal(key: Key[Array, ''], shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0, *,
                 uniform_fraction: float = 0.0, out_sharding=None) -> Float[Array, '...']:
  """float32[shape] in [0, 1]: sigmoid of N(mean, std^2), Esser et al. 2024, eq. 19.

  Its density vanishes at both ends, where sampling starts and stops; a share `uniform_fraction` of the draws is uniform
  instead.
  """
  if not (std > 0 and 0 <= uniform_fraction <= 1):
    raise ValueError(f'logit_normal has std={std}, uniform_fraction={uniform_fraction}; '
                     'give std > 0 and a share in [0, 1]')
  key_normal, key_uniform, key_choice = jax.random.split(key, 3)
  t = jax.nn.sigmoid(mean + std * jax.random.normal(key_normal, shape, out_sharding=out_sharding))
  if uniform_fraction == 0:
    return t
  chosen = jax.random.uniform(key_choice, shape, out_sharding=out_sharding) < uniform_fraction
  return jnp.where(chosen, jax.random.uniform(key_uniform, shape, out_sharding=out_sharding), t)


def _shift(t, s):
  return s * t / (s * t + (1 - t))  # this order of terms keeps 0 and 1 exactly in place


def shift(t: Float[Array, '...'], s: float | int | Float[Array, '...']) -> Float[Array, '...']:
  """t' = s t / (1 + (s - 1) t), Esser et al. 2024, eq. 23; s = 1 is no shift. s broadcasts against t."""
  return _shift(t, s)


def within(t: Any, begin: Any, end: Any) -> Any:
  """The time of what goes from 1 to 0 while t falls from `begin` to `end`, and rests before and after: of
  numbers, or arrays of numpy or JAX that broadcast, [...]; begin = 1 and end = 0 is t itself."""
  return ((t - end) / (begin - end)).clip(0, 1)


def check_lag(lag: float):
  """ValueError for a lag of the sound that is none."""
  if not 0 <= lag <= 0.5:
    raise ValueError(f'audio_lag={lag}; give a share of the time, from 0 (picture and sound keep step) to 0.5 (one after '
                     'the other)')


def part(is_late: Any, lag: Any) -> tuple[Any, Any]:
  """(begin, end), as of `within`, of what lags behind the rest by `lag`, a share of the time, and of the rest.
  is_late: bool[...], lag: float[...], which broadcast; so do picture and sound of a clip, at levels of their own as in
  UniDiffuser (Bao et al. 2023), go one way together."""
  return 1 - lag * is_late, lag * ~is_late


def shift_for_tokens(num_tokens: int | Int[Array, '...'], *, min_tokens: int = 1024, max_tokens: int = 4096,
                     min_log_shift: float = 0.95, max_log_shift: float = 2.05,
                     limit: float = 12.0) -> Float[Array, '...']:
  """The shift for a clip of `num_tokens` tokens of its modality: LTX-Video's rule, log s linear in the token count.

  A straight line through (min_tokens, min_log_shift) and (max_tokens, max_log_shift), followed beyond both. Upwards it
  soon leaves no level but noise (s = 3e5 at 32k tokens), so it stops at `limit`, the largest shift in published use
  (Wan 2.2 A14B); limit = math.inf is LTX's own, which it pairs with `stretch`.
  """
  slope = (max_log_shift - min_log_shift) / (max_tokens - min_tokens)
  return jnp.exp(jnp.minimum(min_log_shift + slope * (jnp.asarray(num_tokens) - min_tokens), np.log(limit)))


def _spaced(num_steps: int, spacing: str) -> np.ndarray:
  falling = np.arange(num_steps, -1, -1) / num_steps
  if spacing == 'quadratic':
    return falling ** 2
  if spacing == 'uniform' or num_steps == 1:
    return falling
  threshold, head = 0.025, num_steps // 2
  i, tail = np.arange(num_steps + 1), num_steps - head
  slope = threshold / head
  bend = (1 - threshold - slope * tail) / tail ** 2
  later = np.maximum(i - head, 0)
  rise = slope * i + bend * later ** 2
  return np.append(1 - rise[:-1], 0.0)


def levels(num_steps: int, shift: float | int | Float[Array, '*d'] | Float[np.ndarray, '*d'] = 1.0,
           spacing: str = 'uniform', begin: Any = 1.0, end: Any = 0.0) -> Float[Array, 'steps *d']:
  """The schedule of `num_steps` steps: float32[num_steps + 1, ...], falling from exactly 1 to exactly 0, then shifted.

  With an array of shifts every element has its own schedule, the steps in front: shifts [B, L, 1] give
  [steps + 1, B, L, 1]. begin, end: the part of the way in which it falls, as of `within`; numbers, or of the shifts'
  shape.

  uniform: equal steps in t (with EDM, the levels of Karras et al. 2022, eq. 5).
  quadratic: t = u^2 with equal steps in u (Song et al. 2020, appendix D.2): equal steps in sigma at the data end of VP.
  linear_quadratic: half of the steps equal and small, down to t = .975, then growing (Movie Gen, Polyak et al. 2024).
  """
  if num_steps < 1:
    raise ValueError(f'num_steps is {num_steps}; sampling takes at least 1 step')
  if spacing not in SPACINGS:
    raise ValueError(f'no spacing {spacing!r}; choose one of {", ".join(SPACINGS)}')
  if not isinstance(shift, jax.core.Tracer) and not np.all(np.asarray(shift) > 0):
    raise ValueError(f'shift is {shift}; give a positive number, 1 for none')
  t = _spaced(num_steps, spacing).reshape((-1,) + (1,) * np.ndim(shift))
  t = within(t, begin, end)
  s = shift[None] if np.ndim(shift) else shift
  return jnp.asarray(_shift(t, s), jnp.result_type(float))


def rolling(levels: Float[Array, 'steps *d'], age: Int[Array, '*d'] | Int[np.ndarray, '*d'],
            stride: int) -> Float[Array, 'stride *d']:
  """Of a schedule the stride + 1 levels of this turn, for tokens that began `age` turns ago: all make `stride` steps a
  turn. They rest at the first level before they begin (age < 0), and at the last one once they are done."""
  at = age[None] * stride + jnp.expand_dims(jnp.arange(stride + 1), range(1, age.ndim + 1))
  return jnp.take_along_axis(levels, jnp.clip(at, 0, levels.shape[0] - 1), 0)


def stretch(levels: Float[Array, 'steps *d'], terminal: float) -> Float[Array, 'steps *d']:
  """Levels scaled away from 1 so that the last but one is `terminal`; 1 and 0 stay (LTX-Video's stretch, .1 there)."""
  if not 0 < terminal < 1:
    raise ValueError(f'terminal is {terminal}; give a level between 0 and 1')
  if levels.shape[0] < 3:
    return levels
  room = 1 - levels[-2]
  scale = jnp.where(room > 0, (1 - terminal) / jnp.where(room > 0, room, 1), 1.0)
  return jnp.where(levels == 0, 0.0, 1 - (1 - levels) * scale[None])
