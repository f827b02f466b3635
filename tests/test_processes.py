"""How processes are told of each other; what they then do together is in training/test_pod.py."""
import errno

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from veojax import cli, processes, sharding


@pytest.fixture(autouse=True)
def alone(monkeypatch):
  for name in (*processes.BY_HAND.values(), 'TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES', 'MEGASCALE_NUM_SLICES',
               'SLURM_STEP_NUM_TASKS'):
    monkeypatch.delenv(name, raising=False)


@pytest.fixture
def asked(monkeypatch):
  """What JAX was asked for."""
  calls = []
  monkeypatch.setattr('jax.distributed.initialize', lambda *args, **kwargs: calls.append((args, kwargs)))
  return calls


def test_one_process_joins_nothing_and_everything_is_nothing(asked):
  assert processes.join() is False and not asked
  processes.wait()
  assert processes.is_first() and processes.agree('problem') == 'problem'
  done = []
  processes.on_first(lambda: done.append(1))
  assert done == [1]
  with processes.together():
    pass


def test_by_hand_as_arguments_or_in_the_environment(asked, monkeypatch):
  processes.join('host:1234', 4, 3)
  for name, value in zip(processes.BY_HAND.values(), ('other:99', '2', '1')):
    monkeypatch.setenv(name, value)
  processes.join()
  processes.join(process_index=0)
  hand = {'cluster_detection_method': 'deactivate'}
  assert asked == [(('host:1234', 4, 3), hand), (('other:99', 2, 1), hand), (('other:99', 2, 0), hand)]


@pytest.mark.parametrize('name, several, one', [
    ('TPU_WORKER_HOSTNAMES', 't1k-0.svc,t1k-1.svc', 'localhost'), ('TPU_PROCESS_ADDRESSES', 'a:8471,b:8471', 'a:8471'),
    ('MEGASCALE_NUM_SLICES', '2', '1'), ('SLURM_STEP_NUM_TASKS', '8', '1')])
def test_clusters_are_found_where_they_have_several_processes(asked, monkeypatch, name, several, one):
  monkeypatch.setenv(name, one)
  processes.join()
  assert not asked
  monkeypatch.setenv(name, several)
  processes.join()
  assert asked == [((), {})]


def test_the_tpu_machine_is_asked_where_one_says_auto(asked):
  processes.join('auto')
  assert asked == [((), {})]


@pytest.mark.parametrize('given, words', [
    (('host:1', 2, None), 'process_index'), (('', 2, 0), 'coordinator'), (('host', 2, 0), 'HOST:PORT'),
    (('host:1', 2, 2), 'numbered from 0'), (('host:1', 0, 0), 'numbered from 0')])
def test_what_does_not_fit_together_is_refused(given, words):
  with pytest.raises(ValueError, match=words):
    processes.join(*given)


@pytest.mark.parametrize('error, code', [
    (processes.Passing('the store is away'), processes.RESTART), (ConnectionResetError(), processes.RESTART),
    (TimeoutError(), processes.RESTART), (OSError(errno.EIO, 'of the disk'), processes.RESTART),
    (OSError(errno.ESTALE, 'of the disk'), processes.RESTART), (BrokenPipeError(), 2), (FileNotFoundError(), 2),
    (OSError(errno.ENOSPC, 'no room'), 2), (ValueError('no such thing'), 2), (KeyboardInterrupt(), 130)])
def test_what_passes_by_itself_ends_with_start_me_again(monkeypatch, capsys, error, code):
  def fail(argv):
    raise error
  monkeypatch.setitem(cli.COMMANDS, 'train', fail)
  assert cli.main(['train']) == code
  told = capsys.readouterr().err.splitlines()
  assert len(told) == 1 and told[0].startswith('veojax: ')


@pytest.mark.parametrize('spec', [P(None, ('fsdp', 'context'), 'tensor'), P(None, None, 'tensor'), P()])
def test_a_stack_of_layers_is_fetched_one_by_one_as_it_is(spec):
  with sharding.use(sharding.MeshConfig(fsdp=2, context=2, tensor=2)) as mesh:
    x = jnp.arange(3 * 8 * 4, dtype=jnp.bfloat16).reshape(3, 8, 4)
    np.testing.assert_array_equal(processes.layer_by_layer(jax.device_put(x, sharding.named(mesh, spec))), x)
