"""The weights that a run had at one of its checkpoints: RUN/checkpoints/STEP, which `training.checkpoint` writes.

It holds beside others `ema`, the averages of the weights: a flat dict of arrays by dotted path, which begins with the
number of the average.
"""
import contextlib

import jax
import numpy as np
from orbax.checkpoint.experimental import v1 as ocp

from veojax import files
from veojax.models import orbax_s3

FOLDER, AVERAGES = 'checkpoints', 'ema'


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
    with readable(), _alone():
      stored = ocp.checkpointables_metadata(str(folder)).metadata.get(AVERAGES)
      if stored is None:
        raise ValueError(f'its {AVERAGES} is missing or cannot be read')
      wanted = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device) if name.startswith(prefix)
                else ocp.PLACEHOLDER for name, leaf in stored.items()}
      loaded = ocp.load_checkpointables(str(folder), {AVERAGES: wanted})[AVERAGES]
      return {name.removeprefix(prefix): np.asarray(loaded[name]) for name in wanted if name.startswith(prefix)}
  except Damaged as error:
    raise ValueError(f'the checkpoint {folder} is damaged ({error}); give another one: {told(run)}') from None


def _alone() -> ocp.Context:
  """In which Orbax waits for no other process."""
  context, index = ocp.Context(), jax.process_index()
  options = context.multiprocessing
  options.primary_host, options.active_processes, options.barrier_sync_key_prefix = index, {index}, f'process_{index}'
  return context


@contextlib.contextmanager
def readable():
  """Whatever goes wrong in reading is damage, but for what a person may not read."""
  try:
    yield
  except PermissionError:
    raise
  except Exception as error:  # Orbax and tensorstore raise many kinds for files that are not what they should be
    raise Damaged(str(error).strip().split('\n', 1)[0] or type(error).__name__) from error
