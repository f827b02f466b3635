"""What a network predicts, and the exact conversions between the predictions.

Every prediction is a combination p = a x_0 + b eps whose coefficients depend on the noise level alone:

  eps    a = 0, b = 1                     Ho et al. 2020
  x0     a = 1, b = 0                     the denoiser itself
  v      a = -sigma, b = alpha            Salimans & Ho 2022, section 4
  flow   a = -1, b = 1                    eps - x_0, which is dx/dt of the rectified flow (Liu et al. 2022)
  edm    a = sigma / (sigma_data r), b = -sigma_data / r, r^2 = sigma^2 + sigma_data^2
                                          the preconditioned F of Karras et al. 2022, eqs. 7 and 8; EDM only

Together with x = alpha x_0 + sigma eps that is a 2 x 2 system of determinant alpha b - sigma a:
x_0 = (b x - sigma p) / det and eps = (alpha p - a x) / det. It is singular for eps where alpha = 0 (x holds no x_0, and
neither does eps) and for x0 where sigma = 0 (no eps); these are refused by a ValueError, never answered with infinity.
"""
import difflib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from veojax.diffusion.process import EDM, Level, Process

PREDICTIONS = ('eps', 'x0', 'v', 'flow', 'edm')


def _coefficients(kind: str, process: Process, alpha: Array, sigma: Array) -> tuple:
  match kind:
    case 'eps':
      return 0.0, 1.0
    case 'x0':
      return 1.0, 0.0
    case 'v':
      return -sigma, alpha
    case 'flow':
      return -1.0, 1.0
    case 'edm':
      root = jnp.sqrt(sigma ** 2 + process.sigma_data ** 2)
      return sigma / (process.sigma_data * root), -process.sigma_data / root
  raise AssertionError(kind)


def determinant(kind: str, process: Process, t: Level) -> Float[Array, '...']:
  """alpha b - sigma a; for v alpha^2 + sigma^2, flow alpha + sigma, edm -r / sigma_data: none of these reaches 0."""
  alpha, sigma = process.alpha(t), process.sigma(t)
  a, b = _coefficients(kind, process, alpha, sigma)
  return alpha * b - sigma * a


def divide(a: Array, b: Array) -> Array:
  """a / b, and 0 where b = 0, without a NaN on the way."""
  zero = b == 0
  return jnp.where(zero, 0, a / jnp.where(zero, 1, b))


def concrete(t: Level) -> np.ndarray | None:
  """The values of t where Python can see them, None under tracing or when they lie on other processes."""
  if isinstance(t, jax.core.Tracer) or (isinstance(t, jax.Array) and not t.is_fully_addressable):
    return None
  return np.asarray(t)


def check_defined(kind: str, process: Process) -> None:
  """Raises ValueError for an unknown prediction and for 'edm' on a process other than EDM."""
  if kind not in PREDICTIONS:
    near = difflib.get_close_matches(str(kind), PREDICTIONS, 1, cutoff=0)[0]
    raise ValueError(f'no prediction {kind!r}; did you mean {near!r}? There are {", ".join(PREDICTIONS)}')
  if kind == 'edm' and not isinstance(process, EDM):
    raise ValueError(f"prediction 'edm' is the preconditioning of EDM, not of {process}; use 'v' there")


def _refuse_eps(process: Process) -> ValueError:
  return ValueError(f"prediction 'eps' does not determine x0 at t = 1 of {process}, where alpha is 0; "
                    "predict 'v', 'flow' or 'x0', or keep the levels below 1")


def _refuse_x0(process: Process) -> ValueError:
  return ValueError(f"prediction 'x0' does not determine eps at t = 0 of {process}, where sigma is 0; "
                    "predict 'v', 'flow' or 'eps', or keep the levels above 0")


def check_sampling(kind: str, process: Process, levels: Level) -> None:
  """Raises ValueError where a step along `levels` (the steps first) needs what `kind` does not determine.

  Under tracing the values of the levels are not known: the schedule is then taken to go from 1 down to 0.
  """
  check_defined(kind, process)
  values = concrete(levels)
  if kind == 'eps' and process.zero_terminal:
    if values is None or np.any((values[:-1] == 1) & (values[1:] != 1)):
      raise _refuse_eps(process)
  if kind == 'x0' and values is not None and np.any((values[:-1] == 0) & (values[1:] != 0)):
    raise _refuse_x0(process)


def estimates(kind: str, process: Process, alpha: Array, sigma: Array, x: Array, output: Array) -> tuple[Array, Array]:
  """(x_0, eps) that the network's output stands for; 0 for the one of them that it does not determine."""
  if kind == 'eps':
    return divide(x - sigma * output, alpha), output
  if kind == 'x0':
    return output, divide(x - alpha * output, sigma)
  a, b = _coefficients(kind, process, alpha, sigma)
  det = alpha * b - sigma * a
  return (b * x - sigma * output) / det, (alpha * output - a * x) / det


def target(kind: str, process: Process, x0: Float[Array, '*s'], eps: Float[Array, '*s'],
           t: Level) -> Float[Array, '*s']:
  """What the network should answer at x_t; defined at every level."""
  check_defined(kind, process)
  a, b = _coefficients(kind, process, process.alpha(t), process.sigma(t))
  return (a * x0 + b * eps).astype(x0.dtype)


def to_x0(kind: str, process: Process, x: Float[Array, '*s'], t: Level,
          output: Float[Array, '*s']) -> Float[Array, '*s']:
  """The clean data that the output stands for. ValueError for 'eps' at a level whose alpha is 0."""
  check_defined(kind, process)
  if kind == 'eps' and process.zero_terminal and (values := concrete(t)) is not None and np.any(values == 1):
    raise _refuse_eps(process)
  return estimates(kind, process, process.alpha(t), process.sigma(t), x, output)[0].astype(x.dtype)


def to_eps(kind: str, process: Process, x: Float[Array, '*s'], t: Level,
           output: Float[Array, '*s']) -> Float[Array, '*s']:
  """The noise that the output stands for. ValueError for 'x0' at a level whose sigma is 0."""
  check_defined(kind, process)
  if kind == 'x0' and (values := concrete(t)) is not None and np.any(values == 0):
    raise _refuse_x0(process)
  return estimates(kind, process, process.alpha(t), process.sigma(t), x, output)[1].astype(x.dtype)


def convert(kind: str, to: str, process: Process, x: Float[Array, '*s'], t: Level,
            output: Float[Array, '*s']) -> Float[Array, '*s']:
  """The prediction `to` that says the same as `output`, a prediction `kind`, at x_t."""
  if kind == to:
    check_defined(kind, process)
    return output
  x0 = output if kind == 'x0' else to_x0(kind, process, x, t, output)
  eps = output if kind == 'eps' or to == 'x0' else to_eps(kind, process, x, t, output)
  return target(to, process, x0, eps, t)
