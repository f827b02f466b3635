"""Checkpoints of a run, through Orbax: asynchronous, atomic, with the data's position in them.

A checkpoint holds four parts: `model`, `ema` and `opt` as flat dicts of arrays by dotted path, and `progress` (the
step, the count of skipped steps, the global row number that comes next). A part can be read without the others.

A checkpoint that cannot be read whole is set aside as damaged-<step> and named, and the one before it is used.
"""
import contextlib
import gc
import logging
import pathlib
import warnings

import jax
import numpy as np
from orbax.checkpoint.experimental import v1 as ocp

from veojax.models import weights
from veojax.training.step import State

PARTS = ('model', 'ema', 'opt')
log = logging.getLogger(__name__)


class Damaged(Exception):
  """A checkpoint is there and cannot be read."""


class Checkpoints:
  """The checkpoints in one folder: the newest `keep` are kept. `save` returns at once; `close` waits for what is
  under way."""

  def __init__(self, folder, keep: int = 2):
    self.folder, self.keep = pathlib.Path(folder).resolve(), keep
    self._open()
    self._pending = None

  def _open(self):
    with explained(self.folder):
      self.folder.mkdir(parents=True, exist_ok=True)
      policy = ocp.training.preservation_policies.LatestN(self.keep)
      self._checkpointer = ocp.training.Checkpointer(str(self.folder), preservation_policy=policy)

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
    set_aside = []
    while self.latest is not None:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # Orbax leaves coroutines behind that nobody awaits
        try:
          return self._read(self.latest, abstract)
        except Damaged as error:
          reason = str(error)
        gc.collect()
      set_aside.append(self._set_aside(self.latest, reason))
    if set_aside:
      raise ValueError(f'no checkpoint in {self.folder} can be read ({", ".join(set_aside)}); restore one of them from '
                       'a copy, or give another work directory to begin anew')
    return None

  def _set_aside(self, step: int, reason: str) -> str:
    """Renames a damaged checkpoint, so that its step can be saved again; its new name."""
    name = f'damaged-{step}'
    log.warning('checkpoint %d in %s is damaged (%s): set aside as %s, going on from the one before it', step,
                self.folder, reason, name)
    self._checkpointer.close()
    with explained(self.folder):
      (self.folder / str(step)).rename(self.folder / name)
    self._open()
    return name

  def _read(self, step: int, abstract: State) -> tuple[State, int]:
    with readable():
      stored = self._checkpointer.checkpointables_metadata(step).metadata
    for name in PARTS:
      if stored.get(name) is None:
        raise Damaged(f'its {name} is missing')
      weights.replace(getattr(abstract, name), stored[name])  # names and shapes must agree before anything is read
    wanted = {name: weights.names(getattr(abstract, name)) for name in PARTS}
    with readable():
      loaded = self._checkpointer.load_checkpointables(step, {**wanted, 'progress': None})
      progress = {name: int(loaded['progress'][name]) for name in ('step', 'skipped', 'row')}
    parts = {name: weights.replace(getattr(abstract, name), loaded[name]) for name in PARTS}
    counts = {name: jax.device_put(np.int32(progress[name]), getattr(abstract, name).sharding)
              for name in ('step', 'skipped')}
    return State(**counts, **parts), progress['row']

  def wait(self):
    if self._pending is not None:
      pending, self._pending = self._pending, None
      with explained(self.folder):
        pending.result()

  def close(self):
    self.wait()
    self._checkpointer.close()


@contextlib.contextmanager
def readable():
  """Whatever goes wrong in reading is damage, but for what a person may not read."""
  try:
    yield
  except PermissionError:
    raise
  except Exception as error:  # Orbax and tensorstore raise many kinds for files that are not what they should be
    raise Damaged(str(error).strip().split('\n', 1)[0] or type(error).__name__) from error


@contextlib.contextmanager
def explained(folder):
  """What goes wrong in writing or reading, as one line with the remedy."""
  try:
    yield
  except (OSError, RuntimeError, ValueError) as error:  # tensorstore's are ValueErrors
    reason = getattr(error, 'strerror', None) or str(error).strip().split('\n', 1)[0]
    raise ValueError(f'checkpoint in {folder}: {reason}; free some space or mend the permissions and start again '
                     '(the checkpoints before it are kept)') from error
