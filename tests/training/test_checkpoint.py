"""A damaged checkpoint is named and set aside, and the one before it is used."""
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from veojax.training import checkpoint, step as train_step


class Model(nnx.Module):

  def __init__(self, key):
    self.w = nnx.Param(jax.random.normal(key, (64, 32)))


TX = optax.adam(1e-3)
init = jax.jit(lambda key: train_step.init(Model, TX, key))


def state_at(step):
  state = init(jax.random.key(step))
  return train_step.State(jnp.asarray(step, jnp.int32), state.skipped, state.model, state.ema, state.opt)


def abstract():
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state_at(0))


@pytest.fixture
def folder(tmp_path):
  saved = checkpoint.Checkpoints(tmp_path / 'checkpoints')
  for step in (3, 5):
    saved.save(state_at(step), 10 * step)
  saved.close()
  return tmp_path / 'checkpoints'


def truncate(newest):
  for path in newest.rglob('*'):
    if path.is_file() and path.stat().st_size > 64:
      with open(path, 'r+b') as file:
        file.truncate(path.stat().st_size // 2)


def scribble(newest):
  largest = max((p for p in newest.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
  size = largest.stat().st_size
  largest.write_bytes(np.random.default_rng(0).bytes(size))


DAMAGE = {'truncated': truncate, 'overwritten': scribble, 'a part missing': lambda p: shutil.rmtree(p / 'model'),
          'no progress': lambda p: shutil.rmtree(p / 'progress') if (p / 'progress').is_dir() else (p / 'progress').unlink()}


@pytest.mark.parametrize('kind', DAMAGE)
def test_the_checkpoint_before_a_damaged_one_is_used(folder, kind, caplog):
  DAMAGE[kind](folder / '5')
  saved = checkpoint.Checkpoints(folder)
  state, row = saved.restore(abstract())
  assert int(state.step) == 3 and row == 30
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(state_at(3))):
    np.testing.assert_array_equal(a, b)
  assert (folder / 'damaged-5').is_dir() and 'checkpoint 5' in caplog.text
  saved.save(state_at(5), 50)
  saved.close()
  again = checkpoint.Checkpoints(folder)
  assert int(again.restore(abstract())[0].step) == 5
  again.close()


def test_where_all_are_damaged_nothing_is_begun_anew(folder):
  for step in (3, 5):
    truncate(folder / str(step))
  saved = checkpoint.Checkpoints(folder)
  with pytest.raises(ValueError, match='damaged-5, damaged-3'):
    saved.restore(abstract())
  saved.close()
