"""The discrete process of Ho et al. 2020 with DDIM's steps (Song et al. 2020, eq. 12), as a scheduler_config.json of
diffusers says it.

The network is asked at integer steps i of N (0 the least noise); alphabar_i = prod_{j <= i} (1 - beta_j). A sampling
step goes from i to i - N // S, S the number of steps, whatever the next asked step is: where 'linspace' spaces steps
otherwise, the level that is reached and the next one that is assumed differ, as published. Below 0 lies data, or with
`set_alpha_to_one` False the level of step 0.
"""
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from veojax import config as door
from veojax.diffusion.samplers import Estimate, Marginal, ddim_step

# Fields of a scheduler_config.json that do not change what DDIM's steps are.
IGNORED = frozenset(('clip_sample_range', 'dynamic_thresholding_ratio', 'sample_max_value', 'skip_prk_steps',
                     'solver_order', 'interpolation_type', 'use_karras_sigmas'))


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The fields of scheduler_config.json that matter, under their names there, with the defaults of DDIMScheduler."""
  num_train_timesteps: int = 1000
  beta_start: float = 1e-4
  beta_end: float = 0.02
  beta_schedule: Literal['linear', 'scaled_linear'] = 'linear'
  trained_betas: Literal[None] = None
  clip_sample: Literal[False] = False
  set_alpha_to_one: bool = True
  steps_offset: int = 0
  prediction_type: Literal['epsilon'] = 'epsilon'
  thresholding: Literal[False] = False
  timestep_spacing: Literal['linspace', 'leading', 'trailing'] = 'leading'
  rescale_betas_zero_snr: Literal[False] = False

  @classmethod
  def read(cls, tree: Mapping[str, Any], path: str, **changes) -> 'Schedule':
    """That of a scheduler_config.json, with fields replaced; ValueError for what is not supported."""
    fields = {name: value for name, value in tree.items() if not name.startswith('_') and name not in IGNORED}
    # DDIMScheduler clips where nothing is said of it.
    return door.build(cls, {'clip_sample': True, **fields, **changes}, path)

  @functools.cached_property
  def alphabar(self) -> np.ndarray:
    """float64[N]."""
    if self.beta_schedule == 'linear':
      beta = np.linspace(self.beta_start, self.beta_end, self.num_train_timesteps)
    else:
      beta = np.linspace(self.beta_start ** 0.5, self.beta_end ** 0.5, self.num_train_timesteps) ** 2
    return np.cumprod(1 - beta)

  def marginal(self, step: np.ndarray) -> Marginal:
    """alpha and sigma, float32, of integer steps."""
    end = 1.0 if self.set_alpha_to_one else self.alphabar[0]
    alphabar = np.where(step < 0, end, self.alphabar[np.maximum(step, 0)])
    return Marginal(np.sqrt(alphabar).astype(np.float32), np.sqrt(1 - alphabar).astype(np.float32))

  def steps(self, num_steps: int) -> np.ndarray:
    """int64[num_steps], falling: where the network is asked."""
    N = self.num_train_timesteps
    if not 1 <= num_steps <= N:
      raise ValueError(f'num_inference_steps={num_steps}; give 1 to {N}, the steps that it was trained with')
    if self.timestep_spacing == 'linspace':
      return np.linspace(0, N - 1, num_steps).round()[::-1].astype(np.int64)
    if self.timestep_spacing == 'leading':
      return np.arange(num_steps)[::-1] * (N // num_steps) + self.steps_offset
    return np.round(np.arange(N, 0, -N / num_steps)).astype(np.int64) - 1

  def plan(self, num_steps: int) -> 'Plan':
    steps = self.steps(num_steps)
    if steps[0] >= self.num_train_timesteps:
      raise ValueError(f'num_inference_steps={num_steps} with steps_offset={self.steps_offset} asks at step {steps[0]} '
                       f'of {self.num_train_timesteps}; give fewer steps')
    before = steps - self.num_train_timesteps // num_steps
    return Plan(steps.astype(np.float32), *self.marginal(steps), *self.marginal(before))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
  """Of every sampling step where the network is asked, the level that is assumed there, and the level that is
  reached: float32[S] each."""
  step: Any
  alpha: Any
  sigma: Any
  next_alpha: Any
  next_sigma: Any


def sample(denoise: Callable[[Array, Array], Array], x: Float[Array, '*s'], plan: Plan) -> Float[Array, '*s']:
  """From noise to data; denoise(x, step) predicts eps."""
  def step(x, at: Plan):
    eps = denoise(x, at.step)
    x0 = (x - at.sigma * eps) / at.alpha
    return ddim_step(Estimate(x0, eps), Marginal(at.alpha, at.sigma), Marginal(at.next_alpha, at.next_sigma), 0.0,
                     0.0), None
  return jax.lax.scan(step, x, jax.tree.map(jnp.asarray, plan))[0]
