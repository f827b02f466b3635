"""Checkpoints of a run, through Orbax: asynchronous, atomic, with the data's position in them.

A checkpoint holds four parts: `model`, `ema` and `opt` as flat dicts of arrays by dotted path, and `progress` (the
step, the count of skipped steps, the global row number that comes next). A part can be read without the others.
"""
import contextlib
import pathlib

import jax
import numpy as np
from orbax.checkpoint.experimental import v1 as ocp

from veojax.models import weights
from veojax.training.step import State

PARTS = ('model', 'ema', 'opt')


class Checkpoints:
  """The checkpoints in one folder: the newest `keep` are kept. `save` returns at once; `close` waits for what is
  under way."""

  def __init__(self, folder, keep: int = 2):
    self.folder = pathlib.Path(folder).resolve()
    with explained(self.folder):
      self.folder.mkdir(parents=True, exist_ok=True)
      policy = ocp.training.preservation_policies.LatestN(keep)
      self._checkpointer = ocp.training.Checkpointer(str(self.folder), preservation_policy=policy)
    self._pending = None

  @property
  def latest(self) -> int | None:
    """Step of the newest complete checkpoint."""
    newest = self._checkpointer.latest
    return None if newest is None else newest.step

  def save(self, state: State, row: int):
    """Copies the state off the device and writes it in the background; waits for the save before it, if any."""
    self.wait()
    step = int(state.step)
    if step == self.latest:
      return
    parts = {name: weights.names(getattr(state, name)) for name in PARTS}
    progress = {'step': step, 'skipped': int(state.skipped), 'row': int(row)}
    with explained(self.folder):
      self._pending = self._checkpointer.save_checkpointables_async(step, {**parts, 'progress': progress}, force=True)

  def restore(self, abstract: State) -> tuple[State, int] | None:
    """The newest state, laid out as `abstract` (of jax.ShapeDtypeStruct with shardings), and the next row; None if
    none.

    Raises ValueError where the checkpoint is of another model, naming what differs.
    """
    if self.latest is None:
      return None
    stored = self._checkpointer.checkpointables_metadata(self.latest).metadata
    for name in PARTS:
      weights.replace(getattr(abstract, name), stored[name])  # names and shapes must agree before anything is read
    wanted = {name: weights.names(getattr(abstract, name)) for name in PARTS}
    with explained(self.folder):
      loaded = self._checkpointer.load_checkpointables(self.latest, {**wanted, 'progress': None})
    parts = {name: weights.replace(getattr(abstract, name), loaded[name]) for name in PARTS}
    counts = {name: jax.device_put(np.int32(loaded['progress'][name]), getattr(abstract, name).sharding)
              for name in ('step', 'skipped')}
    return State(**counts, **parts), loaded['progress']['row']

  def wait(self):
    if self._pending is not None:
      pending, self._pending = self._pending, None
      with explained(self.folder):
        pending.result()

  def close(self):
    self.wait()
    self._checkpointer.close()


@contextlib.contextmanager
def explained(folder):
  """What goes wrong in writing or reading, as one line with the remedy."""
  try:
    yield
  except (OSError, RuntimeError, ValueError) as error:  # tensorstore's are ValueErrors
    reason = getattr(error, 'strerror', None) or str(error).strip().split('\n', 1)[0]
    raise ValueError(f'checkpoint in {folder}: {reason}; free some space or mend the permissions and start again '
                     '(the checkpoints before it are kept)') from error
