"""Min-SNR: an error of x_0 costs the same whatever the network predicts."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from veojax.diffusion import predictions, weighting
from veojax.diffusion.objective import PROCESSES

DEFINED = [(process, kind) for process in PROCESSES for kind in ('eps', 'x0', 'v', 'flow')] + [('edm', 'edm')]


@pytest.mark.parametrize('name, kind', DEFINED)
def test_every_prediction_weighs_the_error_of_x0_alike(name, kind):
  process, t, gamma = PROCESSES[name], jnp.linspace(0.05, 0.95, 19), 5.0
  x, x0 = jax.random.normal(jax.random.key(0), (2, 19))
  outputs = [predictions.convert('x0', kind, process, x, t, value) for value in (x0, x0 + 0.1)]
  weighted = weighting.min_snr(kind, process, t, gamma) * jnp.square(outputs[1] - outputs[0])
  snr = np.square(np.asarray(process.alpha(t)) / np.asarray(process.sigma(t)))
  np.testing.assert_allclose(weighted, np.minimum(snr, gamma) * 0.01, rtol=2e-2)


@pytest.mark.parametrize('name, kind', DEFINED)
def test_weights_are_finite_to_both_ends_and_never_negative(name, kind):
  weight = np.asarray(weighting.min_snr(kind, PROCESSES[name], jnp.linspace(0, 1, 101)))
  assert np.all(np.isfinite(weight)) and weight.min() >= 0 and weight.max() > 0
