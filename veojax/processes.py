"""Several processes of one run: how they find, await and tell each other, and how they part.

They all run the same program on the same arrays, each with its own devices, and call everything here in the same order.
JAX's coordination service, which process 0 serves, connects them. A file is written by process 0 alone (`is_first`).
With one process all of this is nothing.
"""
import contextlib
import errno
import itertools
import os
import sys
import traceback

import jax
import numpy as np
from jax.experimental import multihost_utils

RESTART = 75  # exit code: start me again (EX_TEMPFAIL)
BY_HAND = {'coordinator': 'JAX_COORDINATOR_ADDRESS', 'num_processes': 'JAX_NUM_PROCESSES',
           'process_index': 'JAX_PROCESS_ID'}
AT_ONCE = 2**28  # bytes of an array that every device may hold whole, to fetch it
FOREVER = 2**31 - 1  # milliseconds: 24 days; a process that hangs is found by training.watch
_turn = itertools.count()


class Lost(Exception):
  """Another process of the run is gone: start all of them again."""


class Passing(ValueError):
  """What passes by itself, such as a store that cannot be reached now: start again, with nothing mended."""


def passes(error: BaseException) -> bool:
  """Whether an error is one that passes by itself: of a network, or of a disk that is reached through one. Not of a
  pipe that nobody reads any more."""
  if isinstance(error, BrokenPipeError):
    return False
  return (isinstance(error, (Passing, ConnectionError, TimeoutError))
          or isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE))


# Joining and leaving.


def join(coordinator: str = '', num_processes: int | None = None, process_index: int | None = None) -> bool:
  """Joins the run's other processes, before anything touches a device; whether there are any.

  By hand: host:port of process 0, how many, which of them; or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
  JAX_PROCESS_ID. Otherwise as Slurm (a step of several tasks), GKE or a TPU pod's environment say; the word auto for
  the coordinator asks the TPU machine's metadata. Raises ValueError for what does not fit together.
  """
  if jax.distributed.is_initialized():
    return jax.process_count() > 1
  given = _by_hand(coordinator, num_processes, process_index)
  if given is None and not _in_a_cluster():
    return False
  try:
    if given in (None, 'auto'):
      jax.distributed.initialize()
    else:
      jax.distributed.initialize(*given, cluster_detection_method='deactivate')
  except (RuntimeError, OSError) as error:
    raise ValueError(f'the processes of this run do not find each other ({_line(error)}); start all of them, each with '
                     'a number of its own, and let them reach the coordinator\'s port') from error
  return jax.process_count() > 1


def _by_hand(coordinator, num_processes, process_index):
  """(address, number, index) as given; 'auto'; or None where nothing is."""
  values = dict(zip(BY_HAND, (coordinator or None, num_processes, process_index)))
  values = {name: os.environ.get(BY_HAND[name]) if value is None else value for name, value in values.items()}
  if values['coordinator'] == 'auto':
    return 'auto'
  values = {name: value for name, value in values.items() if value is not None}
  if not values:
    return None
  if len(values) < len(BY_HAND):
    raise ValueError(f'{", ".join(values)} without {", ".join(n for n in BY_HAND if n not in values)}; give all of '
                     f'--coordinator, --num_processes and --process_index (or {", ".join(BY_HAND.values())})')
  host, _, port = values['coordinator'].rpartition(':')
  if not host or not port.isdigit():
    raise ValueError(f'coordinator {values["coordinator"]!r} is no HOST:PORT; give the address of process 0 with a '
                     'free port')
  try:
    number, index = int(values['num_processes']), int(values['process_index'])
  except ValueError:
    raise ValueError(f'num_processes={values["num_processes"]!r}, process_index={values["process_index"]!r}; give '
                     'whole numbers') from None
  if not 0 <= index < number:
    raise ValueError(f'process_index={index} of num_processes={number}; processes are numbered from 0')
  return values['coordinator'], number, index


def _in_a_cluster() -> bool:
  """Whether the environment is that of one of several processes."""
  hosts = os.environ.get('TPU_PROCESS_ADDRESSES') or os.environ.get('TPU_WORKER_HOSTNAMES') or ''
  return (',' in hosts or int(os.environ.get('MEGASCALE_NUM_SLICES') or 1) > 1
          or int(os.environ.get('SLURM_STEP_NUM_TASKS') or 1) > 1)  # of a step that srun started


@contextlib.contextmanager
def together():
  """What the processes do until they leave, all at once. Where another one is gone, this one ends with RESTART; after
  an error of its own it ends with that alone, not waiting for others."""
  try:
    with others_present():
      yield
    if jax.distributed.is_initialized():
      jax.distributed.shutdown()
  except Lost as lost:
    print(f'veojax: {lost}; start all of them again, they go on from the last checkpoint', file=sys.stderr)
    abandon(RESTART)
  except (ValueError, FloatingPointError, OSError):
    raise
  except Exception:
    if jax.distributed.is_initialized():
      traceback.print_exc()
      abandon(1)
    raise


def abandon(code: int):
  """Ends this process of several now: neither threads nor devices that wait for others can hold it."""
  if jax.distributed.is_initialized():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def others_present():
  """A collective that fails because another process is gone raises Lost."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1 or str(error).startswith(('RESOURCE_EXHAUSTED', 'INVALID_ARGUMENT')):
      raise
    raise Lost(f'process {jax.process_index()} lost another one ({_line(error)[:200]})') from error


# Together.


def is_first() -> bool:
  """Whether this process is the one that writes."""
  return jax.process_index() == 0


def wait():
  """Until all processes are here."""
  if jax.process_count() > 1:
    with others_present():
      client().wait_at_barrier(f'veojax/wait/{next(_turn)}', FOREVER)


def on_first(do):
  """Runs do() on process 0 while the others wait; a ValueError of it is raised on all of them, as `Passing` where it is
  one."""
  if jax.process_count() == 1:
    do()
    return
  key, told = f'veojax/on_first/{next(_turn)}', ':'
  if is_first():
    try:
      do()
    except ValueError as error:
      told = f'{"passing" if passes(error) else ""}:{error}'
    client().key_value_set(key, told)
  else:
    with others_present():
      told = client().blocking_key_value_get(key, FOREVER)
  passing, _, message = told.partition(':')
  if message:
    wait()  # process 0 serves the key: it must not leave before the others have read it
    raise (Passing if passing else ValueError)(message)


def agree(problem: str) -> str:
  """The problems that the processes have, each with its number; '' where none has one."""
  if jax.process_count() == 1:
    return problem
  key = f'veojax/agree/{next(_turn)}/'
  if problem:
    client().key_value_set(f'{key}{jax.process_index()}', f'process {jax.process_index()}: {problem}')
  wait()
  return '; '.join(told for _, told in sorted(client().key_value_dir_get(key))[:4])


def fetch(x) -> np.ndarray:
  """The whole array on this host, whichever processes hold it."""
  if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)
  leading_is_split = x.ndim < 2 or x.sharding.shard_shape(x.shape)[0] < x.shape[0]
  if x.nbytes <= AT_ONCE or leading_is_split:
    return multihost_utils.process_allgather(x, tiled=True)
  return layer_by_layer(x)


def layer_by_layer(x: jax.Array) -> np.ndarray:
  """The whole of a stack of layers, of which every device gathers one at a time: all would not fit beside a
  training's state."""
  gather = jax.jit(_layer, out_shardings=jax.sharding.NamedSharding(x.sharding.mesh, jax.sharding.PartitionSpec()))
  out = np.empty(x.shape, x.dtype)
  for i in range(len(out)):
    out[i] = np.asarray(gather(x, i).addressable_data(0))
  return out


def _layer(x, i):
  return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def here(tree):
  """The tree, its arrays of several processes as whole ones of this host."""
  return jax.tree.map(lambda x: fetch(x) if isinstance(x, jax.Array) and not x.is_fully_addressable else x, tree)


def client():
  """The coordination service's: keys, values and barriers. JAX has no public door to it; Orbax uses this one too."""
  from jax._src import distributed
  return distributed.global_state.client


def _line(error) -> str:
  return ' '.join(str(error).split())
