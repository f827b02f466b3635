"""Checkpoints of a run, through Orbax: asynchronous, atomic, with the data's position in them.

A checkpoint holds four parts: `model`, `ema` and `opt` as flat dicts of arrays by dotted path, and `progress` (the
step, the counts of skipped steps, the norm's level, the global row number that comes next; and of all these and of the
arrays the sums that they must have when they are read). A part can be read without the others. Of several processes each
writes and reads its devices' part, and all of them find the same: what one cannot read or write, none has.

A checkpoint that cannot be read whole is set aside as damaged-<step> and named, and the one before it is used.
"""
import contextlib
import gc
import logging
import warnings
import zlib

import jax
import numpy as np
from orbax.checkpoint.experimental import v1 as ocp

from veojax import files, processes
from veojax.models import checksum, orbax_s3, run_checkpoint, weights
from veojax.models.run_checkpoint import SUMS, Damaged, readable
from veojax.training.step import State

PARTS = ('model', run_checkpoint.AVERAGES, 'opt')
COUNTS = {'step': int, 'skipped': int, 'skipped_in_a_row': int, 'norm_level': float}
PROGRESS = {**COUNTS, 'row': int}
NEWER = {'skipped_in_a_row': 0, 'norm_level': 0.0}  # what older checkpoints do not have, as they have no sums
log = logging.getLogger(__name__)


class Checkpoints:
  """The checkpoints in one folder: the newest `keep` are kept, and every `keep_every`-th step (0: none). `save` returns
  at once; `close`, as the end of a `with`, waits for what is under way. A save that takes more than `patience` seconds
  has failed: where one process cannot write, the others wait that long for it."""

  def __init__(self, folder, keep: int = 2, keep_every: int = 0, patience: int = 1200):
    self.folder, self.keep, self.keep_every = files.absolute(folder), keep, keep_every
    if str(self.folder).startswith(files.S3):
      orbax_s3.enable()
    self.context = ocp.Context()
    self.context.asynchronous.timeout_secs = patience
    self._pending = None
    self._open()

  def _open(self):
    processes.on_first(self._clear)
    policies = ocp.training.preservation_policies
    kept = [policies.LatestN(self.keep)] + ([policies.EveryNSteps(self.keep_every)] if self.keep_every else [])
    with explained(self.folder):
      self._checkpointer = ocp.training.Checkpointer(
          str(self.folder), context=self.context, preservation_policy=policies.AnyPreservationPolicy(kept))

  def _clear(self):
    """Makes the folder, and removes what saves have left in it that came to no end."""
    with explained(self.folder):
      self.folder.mkdir(parents=True, exist_ok=True)
      for partial in self.folder.glob('*.orbax-checkpoint-tmp*'):
        partial.rmtree()

  @property
  def latest(self) -> int | None:
    """Step of the newest complete checkpoint."""
    newest = self._checkpointer.latest
    return None if newest is None else newest.step

  def save(self, state: State, row: int):
    """Copies the state off the device and writes it in the background; waits for the save before it, if any.

    ValueError where this could not begin in some process, or where the save before it has failed; this one then goes
    on. The checkpoints before are kept.
    """
    failed = None
    try:
      self.wait()
    except ValueError as error:
      failed = error
    step = int(state.step)
    if step != self.latest:
      parts = {name: weights.names(getattr(state, name)) for name in PARTS}
      progress = {name: kind(getattr(state, name)) for name, kind in COUNTS.items()} | {'row': int(row)}
      progress[SUMS] = {name: checksum.checksums(part) for name, part in parts.items()} | {'progress': _sum(progress)}
      self._together(lambda: self._begin(step, {**parts, 'progress': progress}))
    if failed is not None:
      raise failed

  def _begin(self, step, parts):
    self._pending = self._checkpointer.save_checkpointables_async(step, parts, force=True)

  def _together(self, do):
    """do(), which writes; where it fails in any process, all raise ValueError, and none counts what was not written."""
    problem, kind = '', ValueError
    try:
      with explained(self.folder):
        do()
    except ValueError as error:
      problem, kind = str(error), type(error)
    problem = processes.agree(problem)
    if problem:
      self._pending = None
      self._open()
      raise kind(problem)

  def restore(self, abstract: State) -> tuple[State, int] | None:
    """The newest state, laid out as `abstract` (of jax.ShapeDtypeStruct with shardings), and the next row; None if
    none.

    Raises ValueError where the checkpoint is of another model, naming what differs.
    """
    set_aside = []
    while self.latest is not None:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # Orbax leaves coroutines behind that nobody awaits
        found, reason = None, ''
        try:
          found = self._read(self.latest, abstract)
        except Damaged as error:
          reason = str(error)
        reason = processes.agree(reason) or self._altered(found)
        if not reason:
          return self._state(found, abstract)
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
    def rename():
      with explained(self.folder):
        files.rename_folder(self.folder / str(step), self.folder / name)
    processes.on_first(rename)
    self._open()
    return name

  def _read(self, step: int, abstract: State) -> dict:
    """All parts, and the sums of those whose arrays are read in the precision that they are stored in."""
    with readable():
      stored = self._checkpointer.checkpointables_metadata(step).metadata
    for name in PARTS:
      if stored.get(name) is None:
        raise Damaged(f'its {name} is missing')
      weights.replace(getattr(abstract, name), stored[name])  # names and shapes must agree before anything is read
    wanted = {name: weights.names(getattr(abstract, name)) for name in PARTS}
    with readable():
      loaded = self._checkpointer.load_checkpointables(step, {**wanted, 'progress': None})
      progress = {name: kind(loaded['progress'][name]) for name, kind in PROGRESS.items() if name in loaded['progress']}
    cast = {name for name in PARTS if any(stored[name][key].dtype != leaf.dtype for key, leaf in wanted[name].items())}
    sums = {name: value for name, value in loaded['progress'].get(SUMS, {}).items() if name not in cast}
    return {**{name: loaded[name] for name in PARTS}, 'progress': progress, SUMS: sums}

  def _altered(self, found: dict) -> str:
    """What of a checkpoint is not what was written, or ''. All processes call it, after all have read."""
    own = lambda name: _sum(found[name]) if name == 'progress' else checksum.checksums(found[name])
    altered = [name for name, written in found[SUMS].items() if not np.array_equal(written, own(name))]
    return f'of its {", ".join(altered)} bits have changed since they were written' if altered else ''

  def _state(self, found: dict, abstract: State) -> tuple[State, int]:
    parts = {name: weights.replace(getattr(abstract, name), found[name]) for name in PARTS}
    progress = NEWER | found['progress']
    place = lambda name, like: jax.device_put(np.asarray(progress[name], like.dtype), like.sharding)
    return State(**{name: place(name, getattr(abstract, name)) for name in COUNTS}, **parts), progress['row']

  def wait(self):
    """Until what is under way is written. ValueError where it failed in any process."""
    if self._pending is not None:
      pending, self._pending = self._pending, None
      self._together(pending.result)

  def close(self):
    self.wait()
    self._checkpointer.close()

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    if kind is None:
      self.close()
      return
    # The error may be this process's alone: the others then wait elsewhere for it, and it must not wait for them here.
    # Their part of a checkpoint that is under way their own threads write.
    try:
      if self._pending is not None:
        self._pending.result()
      self._checkpointer.close()
    except Exception as error:
      log.warning('the checkpoint that was under way in %s could not be written: %s', self.folder, error)


def _sum(progress: dict) -> np.ndarray:
  """uint32[1], of the counts and the row, those that there are."""
  told = repr([(name, progress[name]) for name in PROGRESS if name in progress])
  return np.array([zlib.crc32(told.encode())], np.uint32)


@contextlib.contextmanager
def explained(folder):
  """What goes wrong in writing or reading, as one line with the remedy."""
  try:
    yield
  except (OSError, RuntimeError, ValueError) as error:  # tensorstore's are ValueErrors
    reason = getattr(error, 'strerror', None) or str(error).strip().split('\n', 1)[0]
    kind, remedy = ((processes.Passing, 'wait until that has passed') if run_checkpoint.unreachable(error) else
                    (ValueError, 'free some space or mend the permissions'))
    raise kind(f'checkpoint in {folder}: {reason}; {remedy} (the checkpoints before it are kept)') from error
