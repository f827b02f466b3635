"""Samplers against data whose optimal denoiser, flow and moments are known exactly: N(m, s^2), s = 0 a point mass.

Everything the closed forms need is written out here, in float64, and taken from nothing under test but alpha and sigma.
"""
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from veojax.diffusion import samplers
from veojax.diffusion.predictions import PREDICTIONS
from veojax.diffusion.process import EDM, VP, RectifiedFlow
from veojax.diffusion.timesteps import levels as make_levels

PROCESSES = {
    'linear': VP('linear'), 'cosine': VP('cosine'),
    'linear_zero': VP('linear', zero_terminal_snr=True), 'cosine_zero': VP('cosine', zero_terminal_snr=True),
    'flow': RectifiedFlow(), 'edm': EDM()}
ORDERS = {'ddim': 1, 'euler': 1, 'heun': 2, 'dpmpp_2m': 2}
ANCESTRAL = {'ddpm': (samplers.ddpm, 1.0), 'ddim': (functools.partial(samplers.ddim, eta=0.6), 0.6)}  # with their eta
MEAN = np.array([0.7, -0.4, 0.3, -1.0, 0.5, 0.0])
STD = np.array([0.0, 0.0, 0.3, 0.5, 1.0, 2.0])


def defined(process):
  """The predictions that determine x_0 all along levels from 1 to 0."""
  return [p for p in PREDICTIONS
          if not (p == 'eps' and float(process.alpha(1.0)) == 0) and not (p == 'edm' and not isinstance(process, EDM))]


def spacing(process):
  """sigma of a VP grows as sqrt(t): equal steps in sqrt(t) are equal steps in sigma, where a sampler has its order."""
  return 'quadratic' if isinstance(process, VP) else 'uniform'


def optimal(kind, process, mean, std):
  """E[prediction | x_t] for x_0 ~ N(mean, std^2): the denoiser that a perfect network would be."""
  def denoise(x, t):
    alpha, sigma = process.alpha(t), process.sigma(t)
    var = alpha ** 2 * std ** 2 + sigma ** 2
    inverse = jnp.where(var == 0, 0.0, 1 / jnp.where(var == 0, 1.0, var))
    x0 = mean + alpha * std ** 2 * inverse * (x - alpha * mean)
    eps = sigma * inverse * (x - alpha * mean)
    if kind == 'edm':
      root = jnp.sqrt(sigma ** 2 + process.sigma_data ** 2)
      skip, out = process.sigma_data ** 2 / root ** 2, sigma * process.sigma_data / root
      return jnp.where(sigma == 0, 0.0, (x0 - skip * x) / jnp.where(sigma == 0, 1.0, out))
    return {'eps': eps, 'x0': x0, 'v': alpha * eps - sigma * x0, 'flow': eps - x0}[kind]
  return denoise


def marginal(process, t):
  return tuple(np.asarray(f(jnp.asarray(t)), np.float64) for f in (process.alpha, process.sigma))


def exact(process, x, mean, std, t=1.0, s=0.0):
  """Where the probability flow takes x_t: it keeps (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2)."""
  (alpha_t, sigma_t), (alpha_s, sigma_s) = marginal(process, t), marginal(process, s)
  deviation = np.sqrt((alpha_s * std) ** 2 + sigma_s ** 2) / np.sqrt((alpha_t * std) ** 2 + sigma_t ** 2)
  return alpha_s * mean + deviation * (x - alpha_t * mean)


def schedules(counts, make):
  """float64[max + 1, len(counts), 1]: one run holds all step counts, each row resting at its end once it is done."""
  rows = [np.asarray(make(n)) for n in counts]
  padded = [np.pad(row, (0, max(counts) + 1 - len(row)), mode='edge') for row in rows]
  return jnp.asarray(np.stack(padded, axis=1)[:, :, None])


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


@pytest.mark.parametrize('name', PROCESSES)
@pytest.mark.parametrize('sampler', ORDERS)
def test_deterministic_samplers_recover_the_data_with_every_prediction(sampler, name, float64):
  process, counts, kinds = PROCESSES[name], (16, 32, 64, 128), defined(PROCESSES[name])
  start = np.array([1.3, -0.8, 0.9, -1.7, 1.1, 0.6]) * float(process.sigma(1.0))
  x = jnp.broadcast_to(start, (len(counts), 6))
  levels = schedules(counts, lambda n: make_levels(n, 1.0, spacing(process)))

  @jax.jit
  def run(x):
    return [getattr(samplers, sampler)(optimal(kind, process, MEAN[None], STD[None]), x, levels,
                                       process=process, prediction=kind) for kind in kinds]
  results = [np.asarray(out) for out in run(x)]
  for a, b in itertools.pairwise(results):
    np.testing.assert_allclose(a, b, atol=1e-8, err_msg=f'{kinds}: what the network predicts does not matter')
  error = np.abs(results[0] - exact(process, start, MEAN, STD))
  assert error[:, STD == 0].max() < 1e-9, 'a point mass is recovered exactly with any number of steps'
  worst = error[:, STD > 0].max(axis=1)
  order = -np.polyfit(np.log(counts), np.log(worst), 1)[0]
  # DPM-Solver++ has its order in steps of log(alpha / sigma), which is infinite at the ends: log factors remain.
  least = ORDERS[sampler] - (0.5 if sampler == 'dpmpp_2m' else 0.1)
  assert least < order < ORDERS[sampler] + 0.3, (order, worst)
  assert worst[-1] < {1: 0.03, 2: 0.005}[ORDERS[sampler]]


@pytest.mark.parametrize('name', PROCESSES)
@pytest.mark.parametrize('sampler', ['ddim', 'heun', 'dpmpp_2m'])
def test_order_between_inner_levels(sampler, name, float64):
  process, counts, (t, s) = PROCESSES[name], (32, 64, 128), (0.9, 0.1)
  start = np.array([1.3, -0.8, 0.9, -1.7, 1.1, 0.6]) * float(process.sigma(t))
  x = jnp.broadcast_to(start, (len(counts), 6))
  levels = schedules(counts, lambda n: np.linspace(t, s, n + 1))
  # eps is defined here for every process: no level has alpha = 0.
  out = jax.jit(lambda x: getattr(samplers, sampler)(optimal('eps', process, MEAN[None], STD[None]), x, levels,
                                                     process=process, prediction='eps'))(x)
  error = np.abs(np.asarray(out) - exact(process, start, MEAN, STD, t, s))
  assert error[:, STD == 0].max() < 1e-9
  order = -np.polyfit(np.log(counts), np.log(error[:, STD > 0].max(axis=1)), 1)[0]
  assert ORDERS[sampler] - 0.15 < order < ORDERS[sampler] + 0.15, (order, error)


def ancestral_moments(process, levels, mean, std, eta):
  """(gain, offset, var) of the sampler's result N(gain x_1 + offset, var), by the recursion of its affine steps."""
  gain, offset, var = np.ones_like(mean), np.zeros_like(mean), np.zeros_like(mean)
  alphas, sigmas = marginal(process, levels)
  for alpha_t, alpha_s, sigma_t, sigma_s in zip(alphas, alphas[1:], sigmas, sigmas[1:]):
    shrink = alpha_t * std ** 2 / (alpha_t ** 2 * std ** 2 + sigma_t ** 2)  # E[x_0 | x] = shrink x + rest
    rest = mean * (1 - alpha_t * shrink)
    forward = sigma_t ** 2 - (alpha_t / alpha_s) ** 2 * sigma_s ** 2        # variance of q(x_t | x_s)
    fresh = eta ** 2 * forward * sigma_s ** 2 / sigma_t ** 2                # eta^2 times that of q(x_s | x_t, x_0)
    direct = np.sqrt(sigma_s ** 2 - fresh) / sigma_t
    a, b = alpha_s * shrink + direct * (1 - alpha_t * shrink), (alpha_s - direct * alpha_t) * rest
    gain, offset, var = a * gain, a * offset + b, a ** 2 * var + fresh
  return gain, offset, var


@pytest.mark.parametrize('name', PROCESSES)
@pytest.mark.parametrize('sampler', ANCESTRAL)
def test_ancestral_samplers_follow_the_recursion_of_the_moments(sampler, name, float64):
  process, (run, eta) = PROCESSES[name], ANCESTRAL[sampler]
  kinds = defined(process) if sampler == 'ddpm' else ['v']  # ddim has had them all, without noise
  levels, n = make_levels(8, 1.0, spacing(process)), 4000
  x = jnp.broadcast_to(jnp.asarray([1.3, -0.8, 0.9, -1.7, 1.1, 0.6]) * process.sigma(1.0), (n, 6))

  @jax.jit
  def results(x):
    return [run(optimal(kind, process, MEAN[None], STD[None]), x, levels, process=process, prediction=kind,
                key=jax.random.key(3, impl='rbg')) for kind in kinds]
  outs = [np.asarray(out) for out in results(x)]
  for a, b in itertools.pairwise(outs):
    np.testing.assert_allclose(a, b, atol=1e-8, err_msg=f'{kinds}: what the network predicts does not matter')
  gain, offset, var = ancestral_moments(process, levels, MEAN, STD, eta)
  noise = outs[0] - (gain * np.asarray(x) + offset)
  assert np.abs(noise[:, STD == 0]).max() < 1e-9, 'a point mass is recovered exactly'
  noise, var = noise[:, STD > 0], var[STD > 0]
  assert np.all(np.abs(noise.mean(axis=0)) < 5 * np.sqrt(var / n))
  assert np.all(np.abs(noise.var(axis=0) - var) < 5 * var * np.sqrt(2 / n))

  # The same noise from another start: the sampler is affine in x, with exactly this gain.
  np.testing.assert_allclose(results(x + 1)[0] - outs[0], np.broadcast_to(gain, x.shape), atol=1e-9)


@pytest.mark.parametrize('name', PROCESSES)
def test_many_ancestral_steps_give_the_data(name, float64):
  """What the recursion above tends to, so that following it means sampling the data: x_1 becomes N(mean, std^2)."""
  process = PROCESSES[name]
  gain, offset, var = ancestral_moments(process, make_levels(1000, 1.0, spacing(process)), MEAN, STD, 1.0)
  alpha, sigma = marginal(process, 1.0)
  np.testing.assert_allclose(gain * alpha * MEAN + offset, MEAN, atol=1e-9)
  np.testing.assert_allclose(gain ** 2 * (alpha ** 2 * STD ** 2 + sigma ** 2) + var, STD ** 2, rtol=0.03)


def compiled(sampler, kind, process, **rest):
  """(x, levels) -> x for N(.2, .7^2); the levels are traced."""
  denoise = optimal(kind, process, 0.2, 0.7)
  return jax.jit(lambda x, levels: sampler(denoise, x, levels, process=process, prediction=kind, **rest))


@pytest.mark.parametrize('name', ['cosine_zero', 'edm'])
@pytest.mark.parametrize('sampler', ['ddpm', 'ddim', 'heun', 'dpmpp_2m'])
def test_a_token_whose_level_stays_is_held_bit_for_bit(sampler, name):
  """Given tokens (0 all along) and half-noised ones, beside one that is made, one that waits and one that rests."""
  process, n = PROCESSES[name], 6
  made, given = np.linspace(1, 0, n + 1), np.zeros(n + 1)
  waits, rests = np.clip(1.5 * made, 0, 1), np.where(made > 0.3, np.maximum(made, 0.5), made)
  levels = jnp.asarray(np.stack([given, given + 0.5, made, waits, rests], axis=1)[:, None, :, None], jnp.float32)
  x0, eps = jax.random.normal(jax.random.key(0), (2, 1, 5, 7))
  x = process.add_noise(x0, eps, levels[0])
  # Where sigma is 0 the prediction x0 determines no eps: no NaN may come of it.
  out = compiled(getattr(samplers, sampler), 'x0', process, key=jax.random.key(1))(x, levels)
  np.testing.assert_array_equal(out[0, :2], x[0, :2])
  np.testing.assert_array_equal(out[0, 0], x0[0, 0])
  assert np.isfinite(out).all() and not np.any(np.asarray(out[0, 2:]) == np.asarray(x[0, 2:]))
  assert np.abs(out[0, 2:]).max() < 5, 'made, however late'


@pytest.mark.parametrize('sampler', ['heun', 'dpmpp_2m'])
def test_a_token_with_its_own_schedule_is_as_if_alone(sampler):
  run = compiled(getattr(samplers, sampler), 'flow', RectifiedFlow())
  levels = make_levels(7, jnp.asarray([1.0, 4.0, 0.5])[None, :, None])
  x = jax.random.normal(jax.random.key(0), (2, 3, 5))
  together = run(x, levels)
  for token in range(3):
    np.testing.assert_allclose(together[:, token], run(x[:, token], levels[:, 0, token, 0]), atol=1e-6)


@pytest.mark.parametrize('sampler', ['ddim', 'heun'])
def test_scan_is_a_loop_over_its_steps(sampler):
  run, levels = compiled(getattr(samplers, sampler), 'edm', EDM()), make_levels(5)
  x = y = 80 * jax.random.normal(jax.random.key(0), (4, 5))
  for i in range(5):
    y = run(y, levels[i:i + 2])
  np.testing.assert_allclose(run(x, levels), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('sampler', ['euler', 'heun'])
def test_the_flow_runs_backwards_to_the_noise_it_came_from(sampler, float64):
  run = compiled(getattr(samplers, sampler), 'v', VP('cosine'))
  x, down = jnp.asarray([[1.3, -0.8, 0.4]]), jnp.asarray(np.linspace(1, 0, 401) ** 2)
  np.testing.assert_allclose(run(run(x, down), down[::-1]), x, atol=0.02)


def test_ddpm_and_ddim_take_the_papers_steps(float64):
  process = VP('linear')
  t, s = (samplers.Marginal(process.alpha(u), process.sigma(u)) for u in (0.61, 0.47))
  x, eps, z = jax.random.normal(jax.random.key(0), (3, 50))
  now = samplers.Estimate((x - t.sigma * eps) / t.alpha, eps)
  abar_t, abar_s = t.alpha ** 2, s.alpha ** 2
  a = abar_t / abar_s
  beta = 1 - a
  # Ho et al. 2020, algorithm 2 with sigma^2 = betatilde of eq. 7.
  ho = (x - beta / jnp.sqrt(1 - abar_t) * eps) / jnp.sqrt(a) + jnp.sqrt((1 - abar_s) / (1 - abar_t) * beta) * z
  np.testing.assert_allclose(samplers.ddpm_step(x, now, t, s, z), ho, rtol=1e-10)
  for eta in (0.0, 0.4, 1.0):
    # Song et al. 2020, eqs. 12 and 16.
    std = eta * jnp.sqrt((1 - abar_s) / (1 - abar_t)) * jnp.sqrt(1 - abar_t / abar_s)
    song = (jnp.sqrt(abar_s) * (x - jnp.sqrt(1 - abar_t) * eps) / jnp.sqrt(abar_t)
            + jnp.sqrt(1 - abar_s - std ** 2) * eps + std * z)
    np.testing.assert_allclose(samplers.ddim_step(now, t, s, eta, z), song, rtol=1e-10)
  np.testing.assert_allclose(samplers.ddim_step(now, t, s, 1.0, z), ho, rtol=1e-9)


def test_heun_is_algorithm_1_of_karras_et_al(float64):
  process, levels = EDM(), make_levels(9)
  x = 80 * jax.random.normal(jax.random.key(0), (1, 5))
  sigma = np.asarray(process.sigma(levels))

  def slope(x, sigma):  # d_i, from the denoiser of N(.2, .7^2)
    return (x - (0.2 + 0.49 / (0.49 + sigma ** 2) * (x - 0.2))) / sigma
  y = np.asarray(x)
  for now, after in itertools.pairwise(sigma):
    first = slope(y, now)
    ahead = y + (after - now) * first
    y = ahead if after == 0 else y + (after - now) * (first + slope(ahead, after)) / 2
  out = compiled(samplers.heun, 'x0', process)(x, levels)
  np.testing.assert_allclose(out, y, rtol=1e-8)


def test_dpmpp_2m_is_algorithm_2_of_lu_et_al(float64):
  process, levels = VP('cosine'), jnp.asarray(np.linspace(0.95, 0.05, 10))
  x = jax.random.normal(jax.random.key(0), (1, 5))
  alpha, sigma = marginal(process, levels)
  lam, y, before = np.log(alpha / sigma), np.asarray(x), None
  for i in range(1, 10):
    shrink = alpha[i - 1] * 0.49 / (alpha[i - 1] ** 2 * 0.49 + sigma[i - 1] ** 2)
    x0, h = 0.2 + shrink * (y - alpha[i - 1] * 0.2), lam[i] - lam[i - 1]
    r = None if i == 1 else (lam[i - 1] - lam[i - 2]) / h
    d = x0 if i == 1 else (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
    y, before = sigma[i] / sigma[i - 1] * y - alpha[i] * (np.exp(-h) - 1) * d, x0
  out = compiled(samplers.dpmpp_2m, 'v', process)(x, levels)
  np.testing.assert_allclose(out, y, rtol=1e-8)


@pytest.mark.parametrize('sampler', ['ddpm', 'heun', 'dpmpp_2m'])
def test_sharded_is_unsharded(sampler):
  sample = compiled(getattr(samplers, sampler), 'flow', RectifiedFlow(), key=jax.random.key(1))
  x = jax.random.normal(jax.random.key(0), (8, 4, 3))
  levels = make_levels(4, jnp.broadcast_to(jnp.asarray([1.0, 2.0, 3.0, 4.0])[None, :, None], (8, 4, 1)))
  expected = sample(x, levels)
  mesh = jax.make_mesh((4, 2), ('data', 'model'), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
  with jax.set_mesh(mesh):
    spec = jax.sharding.PartitionSpec
    out = sample(jax.device_put(x, spec('data')), jax.device_put(levels, spec(None, 'data')))
    assert out.sharding.spec[0] == 'data'
  np.testing.assert_allclose(out, expected, atol=1e-6)


def test_what_is_not_defined_is_refused_by_name():
  x, levels, flow = jnp.zeros((2, 3)), make_levels(4), RectifiedFlow()
  key = jax.random.key(0)

  def run(sampler=samplers.euler, levels=levels, prediction='flow', process=flow, **rest):
    return sampler(lambda x, t: x, x, levels, process=process, prediction=prediction, **rest)
  with pytest.raises(ValueError, match="'eps' does not determine x0 at t = 1"):
    run(prediction='eps')
  with pytest.raises(ValueError, match="'eps' does not determine x0 at t = 1"):
    jax.jit(lambda levels: run(levels=levels, prediction='eps', process=VP(zero_terminal_snr=True)))(levels)
  with pytest.raises(ValueError, match="'x0' does not determine eps at t = 0"):
    run(levels=levels[::-1], prediction='x0')
  with pytest.raises(ValueError, match="'edm' is the preconditioning of EDM"):
    run(prediction='edm')
  with pytest.raises(ValueError, match='draws noise; give key'):
    run(samplers.ddpm)
  with pytest.raises(ValueError, match='eta is 1.5'):
    run(samplers.ddim, eta=1.5, key=key)
  for sampler in (samplers.ddpm, samplers.dpmpp_2m, functools.partial(samplers.ddim, eta=0.5)):
    with pytest.raises(ValueError, match='levels rise'):
      run(sampler, levels=levels[::-1], key=key)
  with pytest.raises(ValueError, match='between 0'):
    run(levels=2 * levels)
  with pytest.raises(ValueError, match='do not broadcast'):
    run(levels=jnp.zeros((5, 2, 4)))
  with pytest.raises(ValueError, match='at least one step'):
    run(levels=levels[:1])
  with pytest.raises(ValueError, match='at least one step'):
    run(levels=jnp.zeros((5, 3)))
