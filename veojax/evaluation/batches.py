"""Batches of the sampler that several cells of a sweep share.

A unit that does not fill a batch waits for units of other cells of its model whose clips are of the same kind
(`Model.kind`: they differ in prompts, seeds, given media, and in how large scales and shifts are), as many as fit. The
clips are then made in one call, and the units judged one by one, as if each had made its own: a clip's noise is of its
own key, and no row of a batch sees another. Where the call fails, each unit does make its own, and that of the cell at
fault fails again.
"""
import dataclasses
import time
from collections.abc import Hashable

from veojax.evaluation import benchmark
from veojax.evaluation.benchmark import Subject
from veojax.evaluation.units import Store, Unit
from veojax.generation.wanted import Wanted

Work = tuple[Unit, Subject, list[Wanted]]


class Batches:
  """Units on their way into a store. failed: keys of those of which something failed. Its methods raise what keeps the
  store from being written, and nothing else."""

  def __init__(self, store: Store):
    self.store, self.failed = store, set()
    self._waiting: dict[Hashable, list[Work]] = {}

  def run(self, unit: Unit, subject: Subject):
    """At once, or when others fill a batch with it, or in `finish`. What fails stands in the store."""
    kind, wanted = self._shared(unit, subject)
    if not wanted:
      self._judge(unit, subject)
      return
    if _size(self._waiting.get(kind, [])) + len(wanted) > subject.batch:
      self._make(kind)
    self._waiting.setdefault(kind, []).append((unit, subject, wanted))
    if _size(self._waiting[kind]) == subject.batch:
      self._make(kind)

  def finish(self):
    """Runs what waits: all that there is of a model."""
    for kind in list(self._waiting):
      self._make(kind)

  def _shared(self, unit: Unit, subject: Subject) -> tuple[Hashable, list[Wanted]]:
    """What the unit asks of the model, and of what kind that is; (None, []) where nothing may be made beside it."""
    if unit.part == 'made' and unit.end - unit.first < subject.batch and subject.mixes:
      try:
        wanted = unit.benchmark.wanted(range(unit.first, unit.end))
        return subject.model.kind(subject.complete(wanted)[0]) if wanted else None, wanted
      except Exception:  # it will be raised again, and told, where the unit is run
        pass
    return None, []

  def _make(self, kind: Hashable):
    work = self._waiting.pop(kind)
    started, made = time.perf_counter(), [()] * len(work)
    if len(work) > 1:
      try:
        made = benchmark.together([(subject, wanted) for _, subject, wanted in work])
      except Exception:  # of one of them, which will be told of it where each is made alone
        pass
    seconds = (time.perf_counter() - started) / _size(work)
    for (unit, subject, _), clips in zip(work, made):
      self._judge(unit, dataclasses.replace(subject, made=clips), seconds * len(clips))

  def _judge(self, unit: Unit, subject: Subject, seconds: float = 0.):
    try:
      self.store.run(unit, subject, clips=unit.first == 0 and unit.part == 'made', seconds=seconds)
    except Exception:  # whatever it is: it stands in the store and in the report, and the other cells do not suffer
      if not self.store.failures([unit]):
        raise
      self.failed.add(unit.key)


def _size(work: list[Work]) -> int:
  return sum(len(wanted) for _, _, wanted in work)
