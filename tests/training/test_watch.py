"""Who hangs, from what is heard of the processes."""
import types

import pytest

from veojax.training import loop, watch
from veojax.training.watch import TOGETHER, Beat, Judge


def lines(judge, marks, now, silent=(), own={}):
  """What a judge says when every process that is not silent has beaten once more."""
  lines.counts = {p: lines.counts.get(p, 0) + (p not in silent) for p in marks}
  beats = {p: Beat(mark, lines.counts[p], f'host{p}', own.get(p)) for p, mark in marks.items()}
  return judge.hanging(beats, float(now))


lines.counts = {}


def test_the_one_that_stays_behind_is_named_after_the_patience_and_not_before():
  judge = Judge(10.0)
  assert lines(judge, {0: 5, 1: 5, 2: 5}, 0) == []
  assert lines(judge, {0: 7, 1: 5, 2: 7}, 1) == []
  assert lines(judge, {0: 7, 1: 5, 2: 7}, 10) == []
  found = lines(judge, {0: 7, 1: 5, 2: 7}, 12)
  assert len(found) == 1 and 'process 1 on host1' in found[0] and '2 steps ahead' in found[0]


def test_one_that_is_slow_but_goes_on_is_not():
  judge = Judge(10.0)
  for now in range(0, 100, 5):
    assert lines(judge, {0: 100, 1: now}, now) == []


def test_what_all_do_together_may_take_long_but_not_for_ever():
  judge = Judge(10.0)
  for now in range(0, 10 * TOGETHER, 5):
    assert lines(judge, {0: 3, 1: 3}, now) == []
  # One is first through it: the others have their patience from then on.
  assert lines(judge, {0: 4, 1: 3}, 10 * TOGETHER + 1) == []
  assert lines(judge, {0: 4, 1: 4}, 10 * TOGETHER + 5) == []
  assert lines(judge, {0: 4, 1: 4}, 10 * TOGETHER + 10) == []
  found = lines(judge, {0: 4, 1: 4}, 20 * TOGETHER + 12)
  assert len(found) == 1 and 'none of the processes 0, 1' in found[0]


def test_work_of_ones_own_may_end_sooner_but_must_go_on():
  """As latents are encoded: process 1 has less to do, and waits; process 2 hangs in it."""
  judge, same = Judge(10.0), {0: 0, 1: 0, 2: 0}
  assert lines(judge, same, 0, own={0: 1, 1: 1, 2: 1}) == []
  for now in range(5, 300, 5):
    assert lines(judge, same, now, own={0: now, 2: now}) == []
  assert lines(judge, same, 300, own={0: 300, 2: 295}) == []
  found = lines(judge, same, 315, own={0: 315, 2: 295})
  assert len(found) == 1 and 'process 2 on host2 has not gone on with its own work' in found[0]


def test_the_first_work_of_ones_own_compiles_and_has_longer():
  judge = Judge(10.0)
  for now in (0, 5, 90):
    assert lines(judge, {0: 0, 1: 0}, now, own={0: now, 1: 0}) == []
  assert 'process 1' in lines(judge, {0: 0, 1: 0}, 120, own={0: 120, 1: 0})[0]


@pytest.fixture
def marks():
  """The watch in force, which watches nothing."""
  with watch.Watch(0.0) as found:
    yield found
  assert watch.Watch.in_force is None


def test_a_run_has_one_watch_and_what_has_none_is_not_watched(marks):
  with watch.over(60.0) as inner:
    inner.mark()
  assert inner is marks is watch.Watch.in_force and marks.marks == 1
  with watch.alone():
    watch.mark()
    assert (marks.marks, marks.own) == (1, 1)
  assert marks.own is None


def test_interludes_are_marked_before_and_after(marks):
  """So one that hangs in evaluating, drawing or saving is behind those that have come through."""
  seen = []
  config = types.SimpleNamespace(evaluate_every=1, sample_every=1, save_every=1, ema_decays=(0.9, 0.99))
  saw = lambda *_: seen.append(marks.marks) or {}
  stage = types.SimpleNamespace(config=types.SimpleNamespace(loop=config), evaluate=saw, draw=saw)
  journal = types.SimpleNamespace(evaluated=lambda *_: None, attempt=lambda what, do: do())
  checkpoints = types.SimpleNamespace(save=saw)
  loop.interludes(stage, types.SimpleNamespace(ema=(0, 1)), 0, 1, checkpoints, journal, None)
  assert seen == [1, 2, 5, 7] and marks.marks == 8
