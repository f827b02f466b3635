"""The weights that a run had at one of its checkpoints: RUN/checkpoints/STEP, which `training.checkpoint` writes.

It holds beside others `ema`, the averages of the weights: a flat dict of arrays by dotted path, which begins with the
number of the average; and the sums that these must have.
"""
import contextlib

import jax
import numpy as np
from orbax.checkpoint.experimental import v1 as ocp

from veojax import files, processes, sharding
from veojax.models import checksum, orbax_s3

FOLDER, AVERAGES, SUMS = 'checkpoints', 'ema', 'sums'

# As tensorstore and XLA say it: of a store that cannot be reached, and of what a person must see to, a machine without
# room and a store that does not know them.
UNREACHABLE = 'UNAVAILABLE', 'DEADLINE_EXCEEDED'
TO_MEND = 'RESOURCE_EXHAUSTED', 'UNAUTHENTICATED', 'PERMISSION_DENIED'


class Damaged(Exception):
  """A checkpoint is there and cannot be read."""


def run_of(folder):
  """RUN, where the folder is called RUN/checkpoints/STEP, else None."""
  folder = files.absolute(folder)
  return folder.parent.parent if folder.parent.name == FOLDER and folder.name.isdigit() else None


def title(name) -> str:
  """A model's name without the folders above it; RUN@STEP of a checkpoint."""
  run = run_of(name)
  return files.absolute(name).name if run is None else f'{run.name}@{files.path(name).name}'


def steps(run) -> list[int]:
  """Those that a run has checkpoints of."""
  folder = files.path(run) / FOLDER
  return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def told(run) -> str:
  """A run's checkpoints, for a message."""
  return ', '.join(str(files.path(run) / FOLDER / str(step)) for step in steps(run)) or 'none'


def average(folder, number: int = 0) -> dict[str, np.ndarray]:
  """{dotted path: array} of an average of the weights. Each of several processes may call it when it likes. ValueError
  where the checkpoint is missing or damaged, with those that are there."""
  folder, prefix = files.absolute(folder), f'{number}.'
  run = run_of(folder)
  if int(folder.name) not in steps(run):
    raise ValueError(f'there is no checkpoint {folder}; there are: {told(run)}')
  if str(folder).startswith(files.S3):
    orbax_s3.enable()
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  try:
    with readable(), _alone(), sharding.no_mesh():
      stored = ocp.checkpointables_metadata(str(folder)).metadata.get(AVERAGES)
      if stored is None:
        raise ValueError(f'its {AVERAGES} is missing or cannot be read')
      wanted = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device) if name.startswith(prefix)
                else ocp.PLACEHOLDER for name, leaf in stored.items()}
      found = ocp.load_checkpointables(str(folder), {AVERAGES: wanted, 'progress': None})
      loaded = {name: found[AVERAGES][name] for name in wanted if name.startswith(prefix)}
      written = (found['progress'].get(SUMS) or {}).get(AVERAGES)
      if written is not None:
        written = np.asarray(written)[[name.startswith(prefix) for name in sorted(wanted)]]
        if not np.array_equal(written, checksum.checksums(loaded)):
          raise ValueError('bits of its weights have changed since they were written')
      return {name.removeprefix(prefix): np.asarray(value) for name, value in loaded.items()}
  except Damaged as error:
    raise ValueError(f'the checkpoint {folder} is damaged ({error}); give another one: {told(run)}') from None


def _alone() -> ocp.Context:
  """In which Orbax waits for no other process."""
  context, index = ocp.Context(), jax.process_index()
  options = context.multiprocessing
  options.primary_host, options.active_processes, options.barrier_sync_key_prefix = index, {index}, f'process_{index}'
  return context


def unreachable(error: Exception) -> bool:
  """Whether a store could not be reached, which may be otherwise soon."""
  return isinstance(error, (ConnectionError, TimeoutError)) or any(status in str(error) for status in UNREACHABLE)


@contextlib.contextmanager
def readable():
  """Whatever goes wrong in reading is damage, but for what a person may not read or has no room for, ValueError, and
  what passes by itself, `processes.Passing`."""
  try:
    yield
  except PermissionError:
    raise
  except Exception as error:  # Orbax and tensorstore raise many kinds for files that are not what they should be
    reason = str(error).strip().split('\n', 1)[0] or type(error).__name__
    told = f'a checkpoint cannot be read now: {reason}; it is left as it is, start again when that has passed'
    if unreachable(error):
      raise processes.Passing(told) from error
    if isinstance(error, MemoryError) or any(status in str(error) for status in TO_MEND):
      raise ValueError(told) from error
    raise Damaged(reason) from error
