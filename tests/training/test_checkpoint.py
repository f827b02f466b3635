"""What a checkpoint gives back, on any mesh; which are kept; a damaged one is named and the one before it is used."""
import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from veojax import processes, sharding
from veojax.training import checkpoint, step as train_step


class Model(nnx.Module):

  def __init__(self, key):
    self.w = nnx.Param(jax.random.normal(key, (64, 32)))


pytestmark = pytest.mark.smoke

TX = optax.adam(1e-3)
init = jax.jit(lambda key: train_step.init(Model, TX, key))


def state_at(step):
  state = init(jax.random.key(step))
  return dataclasses.replace(state, step=jnp.asarray(step, jnp.int32), norm_level=jnp.float32(step / 3),
                             skipped_in_a_row=jnp.asarray(step % 2, jnp.int32))


def abstract():
  on_one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_one), state_at(0))


def equal(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


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
  equal(state, state_at(3))
  assert (folder / 'damaged-5').is_dir() and 'checkpoint 5' in caplog.text
  saved.save(state_at(5), 50)
  saved.close()
  again = checkpoint.Checkpoints(folder)
  assert int(again.restore(abstract())[0].step) == 5
  again.close()


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # of reads that Orbax leaves unfinished
@pytest.mark.parametrize('seed', range(12))
def test_a_changed_bit_is_found(folder, seed):
  """Anywhere in the arrays' files: then what comes back is the checkpoint before, or exactly what was written."""
  rng = np.random.default_rng(seed)
  files = sorted(p for p in (folder / '5').rglob('d/*') if p.is_file())
  path = files[rng.integers(len(files))]
  data = bytearray(path.read_bytes())
  data[rng.integers(len(data))] ^= 1 << rng.integers(8)
  path.write_bytes(data)
  saved = checkpoint.Checkpoints(folder)
  state, row = saved.restore(abstract())
  saved.close()
  assert row == 10 * int(state.step)
  equal(state, state_at(int(state.step)))


@pytest.mark.parametrize('error, by_itself', [
    (ValueError('UNAVAILABLE: connection refused'), True), (TimeoutError('after 60 s'), True),
    (jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory'), False),
    (ValueError('PERMISSION_DENIED: log in'), False)])
def test_what_may_pass_is_no_damage(folder, monkeypatch, error, by_itself):
  saved = checkpoint.Checkpoints(folder)
  def fail(*_):
    raise error
  with monkeypatch.context() as context:
    context.setattr(saved._checkpointer, 'load_checkpointables', fail)
    with pytest.raises(ValueError, match='cannot be read now.*start again') as raised:
      saved.restore(abstract())
    assert isinstance(raised.value, processes.Passing) == by_itself
  assert int(saved.restore(abstract())[0].step) == 5
  saved.close()


def test_where_all_are_damaged_nothing_is_begun_anew(folder):
  for step in (3, 5):
    truncate(folder / str(step))
  saved = checkpoint.Checkpoints(folder)
  with pytest.raises(ValueError, match='damaged-5, damaged-3'):
    saved.restore(abstract())
  saved.close()


def on_mesh(num_devices, config):
  """A function that gives how a leaf lies on a mesh of some of the devices: matrices split, the rest whole."""
  mesh = sharding.make_mesh(config, jax.devices()[:num_devices])
  return lambda x: sharding.named(mesh, sharding.D_F if x.ndim == 2 else sharding.REPLICATED)


def test_a_state_saved_on_eight_devices_goes_on_on_four_and_on_one(tmp_path):
  place = on_mesh(8, sharding.MeshConfig(fsdp=4, tensor=2))
  state = jax.tree.map(lambda x: jax.device_put(x, place(x)), state_at(1))
  for number, config in ((4, sharding.MeshConfig(data=2, fsdp=2)), (1, sharding.MeshConfig())):
    saved = checkpoint.Checkpoints(tmp_path / 'checkpoints')
    saved.save(state, 40)
    saved.close()
    place = on_mesh(number, config)
    again = checkpoint.Checkpoints(tmp_path / 'checkpoints')
    state, row = again.restore(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)), state))
    again.close()
    assert row == 40 and all(x.sharding == place(x) for x in jax.tree.leaves(state))
    equal(state, state_at(1))
    shutil.rmtree(tmp_path / 'checkpoints')


def test_the_newest_and_every_kth_are_kept(tmp_path):
  saved = checkpoint.Checkpoints(tmp_path, keep=2, keep_every=4)
  for step in range(1, 12):
    saved.save(state_at(step), step)
  saved.close()
  assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [4, 8, 10, 11]


def test_an_error_is_told_without_waiting_for_other_processes_and_what_is_under_way_is_written(tmp_path, monkeypatch):
  with pytest.raises(KeyError):
    with checkpoint.Checkpoints(tmp_path) as saved:
      saved.save(state_at(3), 30)
      monkeypatch.setattr(checkpoint.processes, 'agree', lambda problem: pytest.fail('waited for the others'))
      raise KeyError
  monkeypatch.undo()
  with checkpoint.Checkpoints(tmp_path) as saved:
    equal(saved.restore(abstract())[0], state_at(3))


def test_what_a_killed_save_left_is_removed(folder):
  partial = folder / '7.orbax-checkpoint-tmp'
  shutil.copytree(folder / '5', partial)
  saved = checkpoint.Checkpoints(folder)
  assert saved.latest == 5 and not partial.exists()
  saved.close()


def test_a_checkpoint_from_before_some_counts_were_kept_is_read(tmp_path, monkeypatch):
  with monkeypatch.context() as context:
    context.setattr(checkpoint, 'COUNTS', {'step': int, 'skipped': int})
    saved = checkpoint.Checkpoints(tmp_path)
    saved.save(state_at(3), 30)
    saved.close()
  saved = checkpoint.Checkpoints(tmp_path)
  state, row = saved.restore(abstract())
  saved.close()
  assert (int(state.step), row, int(state.skipped_in_a_row), float(state.norm_level)) == (3, 30, 0, 0.0)
