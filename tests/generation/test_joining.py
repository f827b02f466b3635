"""Where clips meet, what is seen changes no faster than within them: in a world whose optimal model is known."""
import jax
import numpy as np
import pytest

from tests.generation import gaussian_world as world
from veojax import sharding
from veojax.generation import joining


@pytest.fixture(scope='module')
def model():
  return world.make(world.smooth, world.Blocks, None, 64, num_inference_steps=16)


def change(video):
  """Root mean square from each frame to the next."""
  return np.sqrt(np.square(np.diff(video.astype(float), axis=0)).mean((1, 2, 3)))


def test_joints_change_no_more_than_the_clips_do(model):
  with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
    first, second = (model.generate('a', seed=seed) for seed in (1, 2))
    own = max(change(clip.video).max() for clip in (first, second))
    joined = joining.join(model, 'a', first, second, 8, context=5)
    looped = joining.loop(model, 'a', first, 8, context=5)
  assert change(joined.video)[[8, 16]].max() <= own
  assert change(looped.video)[8] <= own and change(looped.video[[-1, 0]])[0] <= own
  assert change(np.stack([first.video[-1], second.video[0]]))[0] > 2 * own  # as they are, they do not fit together
