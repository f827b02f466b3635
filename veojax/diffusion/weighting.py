"""How much each noise level counts in the training loss."""
import jax.numpy as jnp
from jaxtyping import Array, Float

from veojax.diffusion import predictions
from veojax.diffusion.process import Level, Process


def min_snr(kind: str, process: Process, t: Level, gamma: float = 5.0) -> Float[Array, '...']:
  """Weight of a prediction's squared error under which the error of x_0 counts min(SNR, gamma),
  SNR = (alpha / sigma)^2.

  Hang et al. 2023, eq. 4 and table 1: eps min(SNR, gamma) / SNR, x0 min(SNR, gamma), v min(SNR, gamma) / (SNR + 1);
  any other by (dx_0 / dp)^2. Nothing is learned at a terminal level without signal, except of eps.
  """
  predictions.check_defined(kind, process)
  signal, noise = jnp.square(process.alpha(t)), jnp.square(process.sigma(t))
  if kind == 'eps':
    return gamma * noise / jnp.maximum(jnp.maximum(gamma * noise, signal), 1e-30)
  if kind == 'x0':
    return jnp.minimum(signal / jnp.maximum(noise, 1e-30), gamma)
  return jnp.minimum(signal, gamma * noise) / jnp.square(predictions.determinant(kind, process, t))
