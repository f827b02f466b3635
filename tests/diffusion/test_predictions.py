"""Predictions: exact conversions between all of them, the papers' formulas, and refusals by name."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from veojax.diffusion import predictions
from veojax.diffusion.predictions import PREDICTIONS, convert, target, to_eps, to_x0
from veojax.diffusion.process import EDM, VP, RectifiedFlow

PROCESSES = {'linear': VP('linear'), 'cosine_zero': VP('cosine', zero_terminal_snr=True), 'flow': RectifiedFlow(),
             'edm': EDM(sigma_data=0.7)}


def kinds(process):
  return [k for k in PREDICTIONS if k != 'edm' or isinstance(process, EDM)]


def data(t):
  x0, eps = jax.random.normal(jax.random.key(1), (2, len(t), 16))
  return x0, eps, jnp.asarray(t, jnp.float32)[:, None]


@pytest.mark.parametrize('name', PROCESSES)
def test_every_prediction_gives_back_data_and_noise_and_every_other(name):
  process = PROCESSES[name]
  x0, eps, t = data([0.05, 0.3, 0.5, 0.7, 0.9])
  x = process.add_noise(x0, eps, t)
  scale = float(process.sigma(0.9))  # an error in x of one part in 2^24 is this much larger in x_0
  for kind in kinds(process):
    out = target(kind, process, x0, eps, t)
    np.testing.assert_allclose(to_x0(kind, process, x, t, out), x0, atol=1e-5 * max(1, scale))
    np.testing.assert_allclose(to_eps(kind, process, x, t, out), eps, atol=2e-4)
    for to in kinds(process):
      np.testing.assert_allclose(convert(kind, to, process, x, t, out), target(to, process, x0, eps, t),
                                 atol=1e-3 * max(1, scale))


@pytest.mark.parametrize('name', PROCESSES)
def test_at_the_ends_what_is_determined_is_finite_and_right(name):
  process = PROCESSES[name]
  x0, eps, t = data([0.0, 1.0])
  x = process.add_noise(x0, eps, t)
  for kind in kinds(process):
    out = target(kind, process, x0, eps, t)
    assert np.isfinite(out).all()
    if not (kind == 'eps' and process.zero_terminal):
      np.testing.assert_allclose(to_x0(kind, process, x, t, out), x0, atol=1e-3)
    if kind != 'x0':
      np.testing.assert_allclose(to_eps(kind, process, x, t, out), eps, atol=1e-5)


def test_the_papers_formulas():
  x0, eps, t = data([0.2, 0.6, 0.9])
  vp = VP('cosine')
  alpha, sigma = vp.alpha(t), vp.sigma(t)
  np.testing.assert_allclose(target('v', vp, x0, eps, t), alpha * eps - sigma * x0, rtol=1e-6)  # Salimans & Ho 2022
  np.testing.assert_array_equal(target('eps', vp, x0, eps, t), eps)
  flow = RectifiedFlow()
  _, velocity = jax.jvp(lambda t: flow.add_noise(x0, eps, t), (t,), (jnp.ones_like(t),))
  np.testing.assert_allclose(target('flow', flow, x0, eps, t), velocity, atol=1e-6)  # dx/dt
  edm = EDM()
  sigma = edm.sigma(t)
  # Karras et al. 2022, table 1: D = c_skip x + c_out F.
  skip = edm.sigma_data ** 2 / (sigma ** 2 + edm.sigma_data ** 2)
  out = sigma * edm.sigma_data / jnp.sqrt(sigma ** 2 + edm.sigma_data ** 2)
  x = edm.add_noise(x0, eps, t)
  np.testing.assert_allclose(skip * x + out * target('edm', edm, x0, eps, t), x0, atol=2e-5)


def test_the_preconditioned_target_has_unit_variance():
  """What c_out is for: Karras et al. 2022, appendix B.6."""
  edm = EDM()
  x0, eps = jax.random.normal(jax.random.key(1), (2, 3, 20000))
  t = jnp.asarray([0.1, 0.5, 0.9])[:, None]
  np.testing.assert_allclose(target('edm', edm, edm.sigma_data * x0, eps, t).std(axis=1), 1, atol=0.03)
  x = edm.add_noise(edm.sigma_data * x0, eps, t)
  np.testing.assert_allclose((edm.input_scale(t) * x).std(axis=1), 1, atol=0.03)


def test_what_is_not_determined_is_refused_by_name():
  x0, eps, t = data([0.5, 1.0])
  with pytest.raises(ValueError, match="'eps' does not determine x0 at t = 1.*predict 'v'"):
    to_x0('eps', RectifiedFlow(), x0, t, eps)
  with pytest.raises(ValueError, match="'eps' does not determine x0"):
    convert('eps', 'v', VP('linear', zero_terminal_snr=True), x0, t, eps)
  with pytest.raises(ValueError, match="'x0' does not determine eps at t = 0.*predict 'v'"):
    to_eps('x0', VP('linear'), x0, jnp.zeros((2, 1)), eps)
  with pytest.raises(ValueError, match="'edm' is the preconditioning of EDM"):
    target('edm', RectifiedFlow(), x0, eps, t)
  with pytest.raises(ValueError, match="no prediction 'epz'; did you mean 'eps'"):
    predictions.check_defined('epz', VP())
  assert np.isfinite(to_x0('eps', VP('cosine'), x0, t, eps)).all(), 'where alpha only comes near 0 nothing is refused'
