"""Processes against the papers' own formulas, in float64, and at the two ends where float32 loses digits."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from veojax.diffusion.process import EDM, VP, RectifiedFlow

PROCESSES = {
    'linear': VP('linear'), 'cosine': VP('cosine'),
    'linear_zero': VP('linear', zero_terminal_snr=True), 'cosine_zero': VP('cosine', zero_terminal_snr=True),
    'flow': RectifiedFlow(), 'edm': EDM()}
T = np.linspace(0, 1, 101)


def marginal(process, t=T):
  with jax.enable_x64(True):
    return tuple(np.asarray(f(jnp.asarray(t))) for f in (process.alpha, process.sigma))


@pytest.mark.parametrize('name', PROCESSES)
def test_data_at_0_noise_at_1_and_monotone_between(name):
  process = PROCESSES[name]
  for alpha, sigma in (marginal(process), (process.alpha(jnp.asarray(T, jnp.float32)),
                                           process.sigma(jnp.asarray(T, jnp.float32)))):
    assert alpha[0] == 1 and sigma[0] == 0
    assert (alpha[-1] == 0) == process.zero_terminal
    ratio = np.asarray(alpha)[1:] / np.asarray(sigma)[1:]
    assert np.all(np.diff(ratio) < 0), 'the signal-to-noise ratio falls'
    assert ratio[-1] < 0.02


@pytest.mark.parametrize('name', PROCESSES)
def test_no_noise_is_bit_for_bit_the_data(name):
  x0, eps = jax.random.normal(jax.random.key(0), (2, 4, 8))
  t = jnp.asarray([0.0, 0.5, 0.0, 1.0])[:, None]
  x = PROCESSES[name].add_noise(x0, eps, t)
  np.testing.assert_array_equal(x[::2], x0[::2])
  assert not np.any(x[1::2] == x0[1::2])
  assert PROCESSES[name].add_noise(x0.astype(jnp.bfloat16), eps.astype(jnp.bfloat16), t).dtype == jnp.bfloat16


@pytest.mark.parametrize('name', ['linear', 'cosine', 'linear_zero', 'cosine_zero'])
def test_float32_keeps_its_digits_at_both_ends(name):
  process = PROCESSES[name]
  t = np.array([1e-6, 1e-4, 1e-2, 0.5, 0.99, 0.9990234375, 1 - 2.0 ** -20]).astype(np.float32)
  for exact, f in zip(marginal(process, t.astype(np.float64)), (process.alpha, process.sigma)):
    np.testing.assert_allclose(f(jnp.asarray(t)), exact, rtol=3e-6)
  alpha, sigma = marginal(process)
  np.testing.assert_allclose(alpha ** 2 + sigma ** 2, 1, rtol=1e-12)


def test_linear_is_the_limit_of_ddpm():
  """alphabar_i = prod (1 - beta_j), beta from 1e-4 to .02 in 1000 steps: Ho et al. 2020, section 4."""
  alphabar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
  alpha, _ = marginal(VP('linear'), np.arange(1, 1001) / 1000)
  np.testing.assert_allclose(alpha[:900], np.sqrt(alphabar)[:900], rtol=0.03)
  np.testing.assert_allclose(alpha, np.sqrt(alphabar), atol=3e-3)


def test_cosine_is_that_of_nichol_and_dhariwal():
  def f(t):
    return np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
  alpha, _ = marginal(VP('cosine', cosine_end=1.0), T)
  np.testing.assert_allclose(alpha ** 2, f(T) / f(0), atol=1e-12)
  assert 1e-4 < marginal(VP('cosine'))[0][-1] < 1e-2, 'alpha stays above 0, as with their clipped beta'


@pytest.mark.parametrize('schedule', ['linear', 'cosine'])
def test_zero_terminal_snr_is_algorithm_1_of_lin_et_al(schedule):
  alpha, _ = marginal(VP(schedule))
  first, last = alpha[0], alpha[-1]
  rescaled, _ = marginal(VP(schedule, zero_terminal_snr=True))
  np.testing.assert_allclose(rescaled, (alpha - last) * first / (first - last), atol=1e-12)


def test_edm_levels_are_those_of_karras_et_al_but_for_sigma_min():
  process = EDM()
  steps = np.arange(18) / 17  # eq. 5, from sigma_max down to sigma_min
  theirs = (80 ** (1 / 7) + steps * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
  _, sigma = marginal(process, 1 - steps)
  assert np.all(np.abs(sigma - theirs) <= 0.002 * (1 + 1e-9))
  np.testing.assert_allclose(sigma[theirs > 0.1], theirs[theirs > 0.1], rtol=0.02)
  np.testing.assert_allclose(process.level(process.sigma(jnp.asarray(T, jnp.float32))), T, atol=1e-5)
  np.testing.assert_allclose(process.input_scale(0.0), 1 / process.sigma_data, rtol=1e-6)


def test_bad_processes_are_refused():
  with pytest.raises(ValueError, match='cosin.*choose one of linear, cosine'):
    VP('cosin')
  with pytest.raises(ValueError, match='sigma_min'):
    EDM(sigma_min=1.0, sigma_max=0.5)
