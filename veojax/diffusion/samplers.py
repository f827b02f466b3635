"""Samplers: from noise to data along a schedule of noise levels. They know a `denoise`, and no network.

All have one signature, sampler(denoise, x, levels, *, process, prediction, key) -> x:

  denoise     (x, t) -> the raw prediction at x, whose level is t; conditions and guidance are closed over
  x           x at levels[0]: process.add_noise(given or zeros, eps, levels[0])
  levels      float[steps + 1, ...], the steps first, as a rule from 1 (noise) down to 0 (data). What follows the steps
              is nothing, or has x's rank and broadcasts against it: with x[B, L, C], levels[steps + 1, B, L, 1] gives
              every token a schedule of its own. t = levels[i] has the shape that follows.
  key         for fresh noise; only the stochastic samplers need one. One key for each row of x, key[B], gives every row
              the noise that it would have alone

A token whose level stays between two steps stays, bit for bit; so one whose levels are all 0 is given. The level may
also rise with ddim (eta = 0), euler and heun, which then run the probability flow from data to noise (inversion).

In the equations t is the present level, s the next one, and rho = (alpha_t / sigma_t) (sigma_s / alpha_s): the root of
the ratio of their signal-to-noise ratios, e^-h of DPM-Solver, 1 for no step, 0 for a step from pure noise or to data.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from veojax.diffusion.predictions import check_sampling, concrete, divide, estimates
from veojax.diffusion.process import Process

Denoise = Callable[[Array, Array], Array]


class Marginal(NamedTuple):
  """alpha and sigma of a level."""
  alpha: Array
  sigma: Array


class Estimate(NamedTuple):
  """What the network says x is made of."""
  x0: Array
  eps: Array


def _rho(t: Marginal, s: Marginal) -> Array:
  return divide(t.alpha * s.sigma, s.alpha * t.sigma)


def ddim_step(now: Estimate, t: Marginal, s: Marginal, eta: float, noise: Array | float) -> Array:
  """Song et al. 2020 (DDIM), eqs. 12 and 16, for any alpha and sigma.

  x_s = alpha_s x_0 + sqrt(sigma_s^2 - eta^2 stilde^2) eps + eta stilde z, with stilde^2 = sigma_s^2 (1 - rho^2) the
  variance of q(x_s | x_t, x_0).
  """
  fresh = eta ** 2 * (1 - jnp.square(_rho(t, s)))
  return s.alpha * now.x0 + s.sigma * (jnp.sqrt(1 - fresh) * now.eps + jnp.sqrt(fresh) * noise)


def ddpm_step(x: Array, now: Estimate, t: Marginal, s: Marginal, noise: Array) -> Array:
  """A draw from q(x_s | x_t, x_0): Ho et al. 2020, eqs. 6 and 7, and algorithm 2 with the smaller of its variances.

  Mean alpha_s (1 - rho^2) x_0 + rho (sigma_s / sigma_t) x_t, variance sigma_s^2 (1 - rho^2); with
  alpha = sqrt(alphabar) and alpha^2 + sigma^2 = 1 these are sqrt(alphabar_s) beta_t / (1 - alphabar_t) and so on.
  """
  rho = _rho(t, s)
  fresh = 1 - jnp.square(rho)
  mean = s.alpha * fresh * now.x0 + rho * divide(s.sigma, t.sigma) * x
  return mean + s.sigma * jnp.sqrt(fresh) * noise


def euler_step(now: Estimate, s: Marginal) -> Array:
  """x_s = alpha_s x_0 + sigma_s eps: the straight line on which x_0 and eps stay what they are now.

  For the rectified flow x + (s - t) dx/dt; for EDM x + (sigma_s - sigma_t) dx/dsigma (Karras et al. 2022, algorithm 1);
  for VP Euler's method after the change of variables of Song et al. 2020, eq. 14, so ddim with eta = 0.
  """
  return s.alpha * now.x0 + s.sigma * now.eps


def heun_step(x: Array, now: Estimate, ahead: Estimate, t: Marginal, s: Marginal, c: float) -> Array:
  """The trapezoidal rule of Karras et al. 2022, algorithm 1, given the estimates at x_t and at its Euler step to s.

  Along y = x / (alpha + c sigma), tau = sigma / (alpha + c sigma), with c the process's straight_weight:
  dy/dtau = eps - c x_0. c = 0 is dx/dsigma of EDM, c = 1 is dx/dt of the rectified flow; VP takes c = 1 too, for which
  alpha = 0 is a level like any other. Where sigma_s = 0 the Euler step stands, as in the algorithm's line 6.
  """
  scale_t, scale_s = t.alpha + c * t.sigma, s.alpha + c * s.sigma
  slope = ((now.eps - c * now.x0) + (ahead.eps - c * ahead.x0)) / 2
  x_s = scale_s * (x / scale_t + (s.sigma / scale_s - t.sigma / scale_t) * slope)
  return jnp.where(s.sigma == 0, euler_step(now, s), x_s)


def dpmpp_2m_step(x: Array, now: Estimate, x0_before: Array, rho_before: Array, t: Marginal, s: Marginal) -> Array:
  """DPM-Solver++(2M), Lu et al. 2022, algorithm 2: exponential integration of x_0 extrapolated from two steps.

  x_s = (sigma_s / sigma_t) x + alpha_s (1 - e^-h) D, D = x_0 + (h / 2 h_before) (x_0 - x_0_before), with
  h = log(1 / rho) the step in log(alpha / sigma). Of first order, D = x_0, where there is no step before, and to
  sigma_s = 0 (h infinite).
  """
  rho = _rho(t, s)
  # From alpha = 0, rho_before = 0 and h_before is infinite: D = x_0 is the limit.
  second_order = (rho > 0) & (rho < 1) & (rho_before > 0) & (rho_before < 1)
  h, h_before = (-jnp.log(jnp.where(second_order, r, 0.5)) for r in (rho, rho_before))
  extrapolated = now.x0 + jnp.where(second_order, h / (2 * h_before), 0.0) * (now.x0 - x0_before)
  return divide(s.sigma, t.sigma) * x + s.alpha * (1 - rho) * extrapolated


def _check(x, levels, process, prediction, key, *, stochastic=False, reversible=False):
  """The door of every sampler: ValueErrors for what would otherwise end in a NaN or a broadcast."""
  if levels.ndim not in (1, 1 + x.ndim) or levels.shape[0] < 2:
    raise ValueError(f'levels are {list(levels.shape)} for x {list(x.shape)}; '
                     'give [steps + 1] or [steps + 1, ...] that broadcasts against x, with at least one step')
  if levels.ndim > 1 and any(a not in (1, b) for a, b in zip(levels.shape[1:], x.shape, strict=True)):
    raise ValueError(f'levels {list(levels.shape)} do not broadcast against x {list(x.shape)} after the steps')
  if stochastic and key is None:
    raise ValueError('a stochastic sampler draws noise; give key=jax.random.key(seed)')
  check_sampling(prediction, process, levels)
  values = concrete(levels)
  if values is None:
    return
  if not np.all((values >= 0) & (values <= 1)):
    raise ValueError(f'levels run from {values.min()} to {values.max()}; they lie between 0 (data) and 1 (noise)')
  if not reversible and np.any(np.diff(values, axis=0) > 0):
    raise ValueError('levels rise, and this sampler only goes from noise to data; '
                     'ddim with eta=0, euler and heun go both ways')


def _fresh_noise(key: Key[Array, '*k'], i: Array, x: Array) -> Array:
  """Normal noise like x for step i, from one key or from one for each row of x."""
  if key.ndim:
    return jax.vmap(lambda key, x: _fresh_noise(key, i, x))(key, x)
  # Without a sharding of its own, noise under an explicit mesh would be drawn whole on every device.
  return jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype, out_sharding=jax.typeof(x).sharding)


def _scan(move: Callable, denoise: Denoise, x: Array, levels: Array, process: Process, prediction: str,
          key: Key[Array, '*k'] | None = None, memory: Array | tuple = ()) -> Array:
  """Runs move(x, estimate, t, s, noise, memory, look) -> (x, memory) over the levels, holding what stays at its level.

  look(x) is the estimate at x on the next level, for those that evaluate there too.
  """
  def estimate(x, t, marginal):
    return Estimate(*estimates(prediction, process, *marginal, x, denoise(x, t)))

  def step(carry, inputs):
    x, memory = carry
    i, t, s, marginal_t, marginal_s = inputs

    def hold(moved):
      return jnp.where(t == s, x, moved.astype(x.dtype))
    noise = 0.0
    if key is not None:
      noise = _fresh_noise(key, i, x)
    moved, memory = move(x, estimate(x, t, marginal_t), marginal_t, marginal_s, noise, memory,
                         lambda y: estimate(hold(y), s, marginal_s))
    return (hold(moved), memory), None

  marginals = Marginal(process.alpha(levels), process.sigma(levels))
  before, after = (jax.tree.map(lambda a: a[part], (levels, marginals)) for part in (slice(-1), slice(1, None)))
  steps = jnp.arange(levels.shape[0] - 1)
  return jax.lax.scan(step, (x, memory), (steps, before[0], after[0], before[1], after[1]))[0][0]


def ddim(denoise: Denoise, x: Float[Array, '*s'], levels: Float[Array, 'steps *d'], *, process: Process,
         prediction: str, key: Key[Array, '*k'] | None = None, eta: float = 0.0) -> Float[Array, '*s']:
  """Song et al. 2020: eta = 0 is deterministic and of first order, eta = 1 is ddpm."""
  if not 0 <= eta <= 1:
    raise ValueError(f'eta is {eta}; give 0 (deterministic) to 1 (ancestral)')
  _check(x, levels, process, prediction, key, stochastic=eta > 0, reversible=eta == 0)

  def move(x, now, t, s, noise, memory, look):
    return ddim_step(now, t, s, eta, noise), memory
  return _scan(move, denoise, x, levels, process, prediction, key if eta > 0 else None)


def ddpm(denoise: Denoise, x: Float[Array, '*s'], levels: Float[Array, 'steps *d'], *, process: Process,
         prediction: str, key: Key[Array, '*k'] | None = None) -> Float[Array, '*s']:
  """Ancestral sampling, Ho et al. 2020, algorithm 2."""
  _check(x, levels, process, prediction, key, stochastic=True)

  def move(x, now, t, s, noise, memory, look):
    return ddpm_step(x, now, t, s, noise), memory
  return _scan(move, denoise, x, levels, process, prediction, key)


def euler(denoise: Denoise, x: Float[Array, '*s'], levels: Float[Array, 'steps *d'], *, process: Process,
          prediction: str, key: Key[Array, '*k'] | None = None) -> Float[Array, '*s']:
  """Euler's method for the probability flow; of first order, one evaluation a step."""
  _check(x, levels, process, prediction, key, reversible=True)

  def move(x, now, t, s, noise, memory, look):
    return euler_step(now, s), memory
  return _scan(move, denoise, x, levels, process, prediction)


def heun(denoise: Denoise, x: Float[Array, '*s'], levels: Float[Array, 'steps *d'], *, process: Process,
         prediction: str, key: Key[Array, '*k'] | None = None) -> Float[Array, '*s']:
  """Heun's method, Karras et al. 2022, algorithm 1 without its churn; of second order, two evaluations a step."""
  _check(x, levels, process, prediction, key, reversible=True)

  def move(x, now, t, s, noise, memory, look):
    return heun_step(x, now, look(euler_step(now, s)), t, s, process.straight_weight), memory
  return _scan(move, denoise, x, levels, process, prediction)


def dpmpp_2m(denoise: Denoise, x: Float[Array, '*s'], levels: Float[Array, 'steps *d'], *, process: Process,
             prediction: str, key: Key[Array, '*k'] | None = None) -> Float[Array, '*s']:
  """DPM-Solver++(2M), Lu et al. 2022, algorithm 2; of second order, one evaluation a step."""
  _check(x, levels, process, prediction, key)

  def move(x, now, t, s, noise, memory, look):
    return dpmpp_2m_step(x, now, *memory, t, s), (now.x0.astype(x.dtype), _rho(t, s))
  none_before = jnp.zeros_like(x), jnp.ones_like(levels[0])
  return _scan(move, denoise, x, levels, process, prediction, memory=none_before)
