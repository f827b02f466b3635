"""DDIM's steps (Song et al. 2021) against diffusers' own scheduler."""
import jax.numpy as jnp
import numpy as np
import pytest

from tests.zoo import parity
from veojax.zoo import ddim


@pytest.mark.parametrize('spacing', ['linspace', 'leading', 'trailing'])
@pytest.mark.parametrize('betas, to_one, steps', [('linear', False, 25), ('scaled_linear', True, 7)])
def test_steps_are_those_of_diffusers(spacing, betas, to_one, steps):
  torch, diffusers = parity.libraries()
  fields = dict(beta_start=0.00085, beta_end=0.012, beta_schedule=betas, set_alpha_to_one=to_one, clip_sample=False,
                steps_offset=1, timestep_spacing=spacing)
  theirs = diffusers.DDIMScheduler(**fields)
  theirs.set_timesteps(steps)
  plan = ddim.Schedule.read({**theirs.config, '_class_name': 'DDIMScheduler'}, 'config').plan(steps)
  np.testing.assert_array_equal(plan.step, theirs.timesteps)
  x = torch.tensor(np.asarray(parity.normal(0, 3, 5)))
  denoise = lambda x, step: x * 0.3 + step / 1000
  ours = ddim.sample(denoise, jnp.asarray(x.numpy()), plan)
  for t in theirs.timesteps:
    x = theirs.step(denoise(x, t), t, x).prev_sample
  assert parity.relative(ours, x) < 2e-5
  with pytest.raises(ValueError, match='clip_sample'):
    ddim.Schedule.read({**fields, 'clip_sample': True}, 'config')
  with pytest.raises(ValueError, match='prediction_type'):
    ddim.Schedule.read({**fields, 'prediction_type': 'v_prediction'}, 'config')
