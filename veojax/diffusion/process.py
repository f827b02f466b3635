"""Diffusion processes: how data turns into noise, x_t = alpha(t) x_0 + sigma(t) eps with eps ~ N(0, I).

The noise level t runs from 0 (data: alpha = 1, sigma = 0, exactly) to 1 (noise). It is a scalar, or an array that
broadcasts against x, so that every token may have its own. Levels are float32 or wider: near either end alpha and sigma
are computed without cancellation, which bfloat16 levels would throw away.

  VP              Ho et al. 2020 (linear), Nichol & Dhariwal 2021 (cosine), Lin et al. 2023 (zero terminal SNR)
  RectifiedFlow   Liu et al. 2022: alpha = 1 - t, sigma = t
  EDM             Karras et al. 2022: alpha = 1, sigma up to sigma_max

`zero_terminal`   alpha(1) = 0: the last level is noise only.
`input_scale(t)`  what a network's input must be multiplied by to have unit variance; 1 where x has it already.
`straight_weight` c such that the samplers step along x / (alpha + c sigma) against sigma / (alpha + c sigma): there,
                  the path between a fixed x_0 and a fixed eps is a straight line, at constant speed.
"""
import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Level = Float[Array, '...'] | Float[np.ndarray, '...'] | float | int  # t in [0, 1]

SCHEDULES = ('linear', 'cosine')


def _mix(alpha: Array, sigma: Array, x0: Array, eps: Array) -> Array:
  return (alpha * x0 + sigma * eps).astype(x0.dtype)


@dataclasses.dataclass(frozen=True)
class VP:
  """Variance preserving: alpha = sqrt(alphabar), sigma = sqrt(1 - alphabar).

  linear: beta(t) = beta_min + t (beta_max - beta_min), alphabar = exp(-int_0^t beta), the limit of many steps of
    Ho et al. 2020 (there beta_1 = 1e-4 and beta_T = .02 in T = 1000 steps), Song et al. 2021, appendix C.
  cosine: alphabar = f(t) / f(0), f(t) = cos^2((t + s) / (1 + s) pi / 2), Nichol & Dhariwal 2021, eq. 17. They clip
    beta below 1, which keeps their last step short of alpha = 0; here t ends at `cosine_end`, the last but one of their
    1000 steps, which does the same and stays smooth.
  zero_terminal_snr: alpha shifted and scaled to end at 0 and still begin at 1, Lin et al. 2023, algorithm 1.
  """
  schedule: str = 'cosine'
  zero_terminal_snr: bool = False
  beta_min: float = 0.1
  beta_max: float = 20.0
  cosine_offset: float = 0.008  # s
  cosine_end: float = 0.999
  straight_weight: ClassVar[float] = 1.0

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      raise ValueError(f'VP has no schedule {self.schedule!r}; choose one of {", ".join(SCHEDULES)}')

  @property
  def zero_terminal(self) -> bool:
    return self.zero_terminal_snr

  def _angles(self, t):
    """The cosine schedule's theta(t) - theta(0), theta(1) - theta(t) and pi/2 - theta(t), each without cancellation."""
    unit = 0.5 * math.pi / (1 + self.cosine_offset)
    end = self.cosine_end
    return unit * end * t, unit * end * (1 - t), unit * (end * (1 - t) + (1 - end))

  def _exponents(self, t):
    """The linear schedule's -log alpha(t), and -log alpha(1) + log alpha(t)."""
    quadratic, linear = (self.beta_max - self.beta_min) / 4, self.beta_min / 2
    return t * (quadratic * t + linear), (1 - t) * (quadratic * (1 + t) + linear)

  def _one_minus_alpha(self, t):
    """1 - alpha(t) before the rescaling, to full relative precision at t = 0."""
    if self.schedule == 'linear':
      return -jnp.expm1(-self._exponents(t)[0])
    rise, _, _ = self._angles(t)
    theta0 = 0.5 * math.pi * self.cosine_offset / (1 + self.cosine_offset)
    return 2 * jnp.sin(theta0 + rise / 2) * jnp.sin(rise / 2) / math.cos(theta0)

  def _alpha_above_end(self, t):
    """alpha(t), less alpha(1) where that is to become 0, to full relative precision at t = 1."""
    if self.schedule == 'linear':
      fallen, left = self._exponents(t)
      return math.exp(-self._exponents(1.0)[0]) * jnp.expm1(left) if self.zero_terminal_snr else jnp.exp(-fallen)
    _, left, to_right_angle = self._angles(t)
    theta0 = 0.5 * math.pi * self.cosine_offset / (1 + self.cosine_offset)
    if not self.zero_terminal_snr:
      return jnp.sin(to_right_angle) / math.cos(theta0)
    # cos a - cos b = 2 sin((a + b) / 2) sin((b - a) / 2), and (a + b) / 2 is pi/2 less what both lack on average.
    return 2 * jnp.cos(to_right_angle - left / 2) * jnp.sin(left / 2) / math.cos(theta0)

  def _span(self) -> float:
    if not self.zero_terminal_snr:
      return 1.0
    if self.schedule == 'linear':
      return -math.expm1(-self._exponents(1.0)[0])
    return 1 - math.sin(self._angles(1.0)[2]) / math.cos(0.5 * math.pi * self.cosine_offset / (1 + self.cosine_offset))

  def alpha(self, t: Level) -> Float[Array, '...']:
    t = jnp.asarray(t)
    below_one = self._one_minus_alpha(t) / self._span()
    # The first form is exactly 1 at t = 0, the second exactly 0 at t = 1 when it should be.
    return jnp.where(below_one < 0.5, 1 - below_one, self._alpha_above_end(t) / self._span())

  def sigma(self, t: Level) -> Float[Array, '...']:
    below_one = self._one_minus_alpha(jnp.asarray(t)) / self._span()
    return jnp.sqrt(below_one * (2 - below_one))  # 1 - alpha^2 = (1 - alpha)(1 + alpha)

  def input_scale(self, t: Level) -> Float[Array, '...']:
    return jnp.ones_like(jnp.asarray(t))

  def add_noise(self, x0: Float[Array, '*s'], eps: Float[Array, '*s'], t: Level) -> Float[Array, '*s']:
    """x_t; bit for bit x0 where t = 0. Ho et al. 2020, eq. 4."""
    return _mix(self.alpha(t), self.sigma(t), x0, eps)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
  """The straight path from data to noise, x_t = (1 - t) x_0 + t eps: Liu et al. 2022, eq. 1, with time turned round."""
  straight_weight: ClassVar[float] = 1.0
  zero_terminal: ClassVar[bool] = True

  def alpha(self, t: Level) -> Float[Array, '...']:
    return 1 - jnp.asarray(t)

  def sigma(self, t: Level) -> Float[Array, '...']:
    return jnp.asarray(t)

  def input_scale(self, t: Level) -> Float[Array, '...']:
    return jnp.ones_like(jnp.asarray(t))

  def add_noise(self, x0: Float[Array, '*s'], eps: Float[Array, '*s'], t: Level) -> Float[Array, '*s']:
    """x_t; bit for bit x0 where t = 0."""
    return _mix(self.alpha(t), self.sigma(t), x0, eps)


@dataclasses.dataclass(frozen=True)
class EDM:
  """Variance exploding with the levels of Karras et al. 2022, eq. 5, so that equal steps in t are theirs:

    sigma(t) = ((a + t (b - a))^rho - a^rho) / (1 - sigma_min / sigma_max)
    with a = sigma_min^(1/rho) and b = sigma_max^(1/rho).

  Theirs is a^rho = sigma_min at t = 0 and then jumps to 0; taking sigma_min off makes t = 0 data and sigma smooth, and
  moves only levels comparable to sigma_min. `level` gives the t of any sigma, for a published list of sigmas.
  """
  sigma_min: float = 0.002
  sigma_max: float = 80.0
  rho: float = 7.0
  sigma_data: float = 0.5
  straight_weight: ClassVar[float] = 0.0
  zero_terminal: ClassVar[bool] = False

  def __post_init__(self):
    if not (0 < self.sigma_min < self.sigma_max and self.rho > 0 and self.sigma_data > 0):
      raise ValueError(f'EDM needs 0 < sigma_min < sigma_max, rho > 0 and sigma_data > 0; got {self}')

  def _ratio(self) -> float:
    return (self.sigma_max / self.sigma_min) ** (1 / self.rho) - 1  # b / a - 1

  def _unit(self) -> float:
    return self.sigma_min / (1 - self.sigma_min / self.sigma_max)

  def alpha(self, t: Level) -> Float[Array, '...']:
    return jnp.ones_like(jnp.asarray(t))

  def sigma(self, t: Level) -> Float[Array, '...']:
    return self._unit() * jnp.expm1(self.rho * jnp.log1p(self._ratio() * jnp.asarray(t)))

  def level(self, sigma: Level) -> Float[Array, '...']:
    """The inverse of `sigma`."""
    return jnp.expm1(jnp.log1p(jnp.asarray(sigma) / self._unit()) / self.rho) / self._ratio()

  def input_scale(self, t: Level) -> Float[Array, '...']:
    """c_in of Karras et al. 2022, table 1."""
    return 1 / jnp.sqrt(self.sigma(t) ** 2 + self.sigma_data ** 2)

  def add_noise(self, x0: Float[Array, '*s'], eps: Float[Array, '*s'], t: Level) -> Float[Array, '*s']:
    """x_t = x_0 + sigma(t) eps; bit for bit x0 where t = 0."""
    return _mix(self.alpha(t), self.sigma(t), x0, eps)


Process = VP | RectifiedFlow | EDM
