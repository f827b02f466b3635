"""Noise levels in training (their distributions) and in sampling (their schedules)."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from veojax.diffusion import timesteps


def test_draws_have_their_distributions():
  n, key = 4000, jax.random.key(0)
  assert stats.kstest(timesteps.uniform(key, (n,)), 'uniform').pvalue > 1e-3
  t = timesteps.logit_normal(key, (n,), 0.5, 0.8)
  assert stats.kstest(np.log(t / (1 - t)), 'norm', args=(0.5, 0.8)).pvalue > 1e-3
  mixed = timesteps.logit_normal(key, (n,), -2.0, 0.1, uniform_fraction=0.3)
  share = np.mean(np.asarray(mixed) > 0.3)  # of the uniform draws; the others do not come there
  assert abs(share - 0.3 * 0.7) < 5 * math.sqrt(0.21 / n)


def test_a_shift_translates_the_logit_and_keeps_the_ends():
  t = jnp.linspace(0, 1, 11)
  for s in (0.3, 1.0, 3.0, 17.9):
    out = timesteps.shift(t, s)
    assert out[0] == 0 and out[-1] == 1
    np.testing.assert_allclose(out, s * t / (1 + (s - 1) * t), atol=1e-6)  # Esser et al. 2024, eq. 23
    moved = jax.scipy.special.logit(out[1:-1]) - jax.scipy.special.logit(t[1:-1])
    np.testing.assert_allclose(moved, math.log(s), atol=1e-4)
  np.testing.assert_array_equal(timesteps.shift(t, 1.0), t)
  np.testing.assert_allclose(timesteps.shift(timesteps.shift(t, 2.0), 3.0), timesteps.shift(t, 6.0), atol=1e-6)


def test_shift_for_tokens_goes_through_its_two_points_and_stops_at_its_limit():
  shifts = timesteps.shift_for_tokens(jnp.asarray([1024, 4096, 16384]))
  np.testing.assert_allclose(shifts, [math.exp(0.95), math.exp(2.05), 12.0], rtol=1e-5)
  np.testing.assert_allclose(timesteps.shift_for_tokens(7168, limit=math.inf), math.exp(3.15), rtol=1e-5)
  assert timesteps.shift_for_tokens(256) < timesteps.shift_for_tokens(512)


@pytest.mark.parametrize('spacing', timesteps.SPACINGS)
@pytest.mark.parametrize('num_steps', [1, 2, 3, 8, 50])
def test_levels_fall_from_exactly_1_to_exactly_0(spacing, num_steps):
  for s in (1.0, 5.0, 1):
    levels = timesteps.levels(num_steps, s, spacing)
    assert levels.shape == (num_steps + 1,) and levels.dtype == jnp.float32
    assert levels[0] == 1 and levels[-1] == 0 and np.all(np.diff(levels) < 0)


def test_spacings_are_what_they_say():
  np.testing.assert_allclose(timesteps.levels(10), np.linspace(1, 0, 11), atol=1e-6)
  np.testing.assert_allclose(np.diff(np.sqrt(timesteps.levels(10, 1.0, 'quadratic'))), -0.1, atol=1e-6)
  levels = np.asarray(timesteps.levels(50, 1.0, 'linear_quadratic'), np.float64)
  np.testing.assert_allclose(levels[:26], 1 - np.arange(26) / 1000, atol=1e-6)  # the first 25 steps of 1000
  np.testing.assert_allclose(np.diff(levels[25:], 3), 0, atol=2e-6)             # then a parabola


def test_every_token_may_have_a_schedule_of_its_own():
  shifts = jnp.asarray([[1.0, 5.0, 0.5], [2.0, 2.0, 12.0]])[:, :, None]
  levels = timesteps.levels(6, shifts)
  assert levels.shape == (7, 2, 3, 1)
  np.testing.assert_allclose(levels[:, 1, 2, 0], timesteps.levels(6, 12.0), rtol=1e-6)
  np.testing.assert_allclose(timesteps.levels(6, np.asarray(shifts)), levels, rtol=1e-6)


def test_what_lags_rests_at_noise_first_and_the_rest_at_data_last():
  late = np.array([False, True])
  lagging = lambda lag: np.asarray(timesteps.levels(20, np.array([6.0, 3.0]), 'uniform', *timesteps.part(late, lag)))
  first, later = lagging(0.4).T
  ahead = np.asarray(timesteps.levels(12, 6.0))
  np.testing.assert_allclose(first, [*ahead, *np.zeros(8)], atol=1e-6)
  np.testing.assert_allclose(later, [*np.ones(8), *timesteps.levels(12, 3.0)], atol=1e-6)
  np.testing.assert_array_equal(lagging(0.0), timesteps.levels(20, np.array([6.0, 3.0])))


def test_stretch_moves_the_last_but_one():
  levels = timesteps.levels(8, 7.0)
  out = timesteps.stretch(levels, 0.1)
  np.testing.assert_allclose(out[jnp.asarray([0, -2, -1])], [1, 0.1, 0], atol=1e-6)
  assert np.all(np.diff(out) < 0)
  given = timesteps.stretch(jnp.where(jnp.arange(2) == 0, levels[:, None], 0.0), 0.1)
  np.testing.assert_array_equal(given, np.stack([out, np.zeros(9)], axis=1), err_msg='given: stays at 0')


@pytest.mark.parametrize('call, message', [
    (lambda: timesteps.levels(0), 'num_steps is 0'),
    (lambda: timesteps.levels(4, -1.0), 'shift is -1.0'),
    (lambda: timesteps.levels(4, 1.0, 'karras'), "no spacing 'karras'; choose one of uniform"),
    (lambda: timesteps.check_lag(0.6), 'audio_lag=0.6; give a share'),
    (lambda: timesteps.logit_normal(jax.random.key(0), (2,), 0.0, 0.0), 'std=0.0'),
    (lambda: timesteps.stretch(timesteps.levels(4), 1.5), 'terminal is 1.5')])
def test_bad_arguments_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call()
