"""A Gaussian world under every task: tokens given at noise 0, the others sampled, must be drawn from the conditional
Gaussian, whose mean and covariance are in closed form."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from veojax.diffusion import samplers, timesteps
from veojax.diffusion.process import VP, RectifiedFlow

L = 6
TASKS = {'generate': [], 'first frame': [0], 'last frame': [5], 'both ends': [0, 5], 'inpaint': [1, 2, 4],
         'soundtrack': [0, 1, 2, 3], 'all but one': [0, 1, 2, 3, 4]}


def world():
  """Mean and covariance of L tokens that hang together."""
  rng = np.random.default_rng(0)
  a = rng.normal(size=(L, L))
  return rng.normal(size=L), a @ a.T / L + 0.1 * np.eye(L)


def conditional(mean, covariance, given, values):
  """(mean, covariance) of all tokens once some are known."""
  free = [i for i in range(L) if i not in given]
  gain = covariance[np.ix_(free, given)] @ np.linalg.inv(covariance[np.ix_(given, given)]) if given else np.zeros((L, 0))
  out, spread = np.zeros(L), np.zeros((L, L))
  out[given], out[free] = values, mean[free] + gain @ (values - mean[given])
  spread[np.ix_(free, free)] = covariance[np.ix_(free, free)] - gain @ covariance[np.ix_(given, free)]
  return out, spread


def optimal(process, mean, covariance):
  """The optimal denoiser E[x0 | x], every token at its own level: x = A x0 + S eps."""
  def denoise(x_BL1, t_BL1):
    def one(x, t):
      alpha, sigma = process.alpha(t), process.sigma(t)
      # A token at level 0 is known exactly: a little noise in its place keeps the matrix regular.
      noisy = alpha[:, None] * covariance * alpha[None] + jnp.diag(jnp.maximum(sigma, 1e-4) ** 2)
      inverse = jnp.linalg.inv(noisy)
      return mean + covariance @ (alpha * (inverse @ (x - alpha * mean)))
    return jax.vmap(one)(x_BL1[..., 0], t_BL1[..., 0])[..., None]
  return denoise


@pytest.mark.parametrize('sampler', [samplers.heun, samplers.ddim], ids=['heun', 'ddim'])
@pytest.mark.parametrize('process', [RectifiedFlow(), VP('cosine', zero_terminal_snr=True)], ids=['flow', 'vp'])
@pytest.mark.parametrize('task', TASKS)
def test_what_is_made_is_drawn_from_the_conditional_gaussian(task, process, sampler):
  jax.config.update('jax_enable_x64', True)
  try:
    mean, covariance = world()
    given, steps = TASKS[task], 300
    values = np.linspace(-1.5, 1.5, len(given))
    # The map from noise to data is affine: its image of the origin and of the axes tells mean and covariance exactly.
    noise = np.concatenate([np.zeros((1, L)), np.eye(L)])[..., None]
    x0 = np.zeros((L + 1, L, 1))
    x0[:, given, 0] = values
    level = np.ones((1, L, 1))
    level[:, given] = 0
    levels = jnp.asarray(timesteps.levels(steps, 1.0))[:, None, None, None] * jnp.asarray(level)[None]
    levels = jnp.broadcast_to(levels, (steps + 1, L + 1, L, 1))
    x = process.add_noise(jnp.asarray(x0), jnp.asarray(noise), levels[0])
    out = np.asarray(sampler(optimal(process, jnp.asarray(mean), jnp.asarray(covariance)), x, levels, process=process,
                  prediction='x0', key=jax.random.key(0)))[..., 0]
  finally:
    jax.config.update('jax_enable_x64', False)
  want_mean, want_covariance = conditional(mean, covariance, given, values)
  np.testing.assert_array_equal(out[:, given], np.broadcast_to(values, (L + 1, len(given))))
  np.testing.assert_allclose(out[0], want_mean, atol=0.03)
  axes = out[1:] - out[0]
  np.testing.assert_allclose(axes.T @ axes, want_covariance, atol=0.03)
