"""Who hangs, from what is heard of the processes."""
from veojax.training.watch import Beat, Judge


def lines(judge, marks, now, silent=()):
  """What a judge says when every process that is not silent has beaten once more."""
  lines.counts = {p: lines.counts.get(p, 0) + (p not in silent) for p in marks}
  return judge.hanging({p: Beat(mark, lines.counts[p], f'host{p}') for p, mark in marks.items()}, float(now))


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


def test_what_all_do_together_may_take_any_time():
  judge = Judge(10.0)
  for now in range(0, 1000, 50):
    assert lines(judge, {0: 3, 1: 3}, now) == []
  # One is first through it: the others have their patience from then on.
  assert lines(judge, {0: 4, 1: 3}, 1001) == []
  assert lines(judge, {0: 4, 1: 4}, 1005) == []


def test_the_first_step_compiles_and_has_longer():
  judge = Judge(10.0)
  for now in (0, 5, 90):
    assert lines(judge, {0: 1, 1: 0}, now) == []
  assert 'process 1' in lines(judge, {0: 1, 1: 0}, 120)[0]


def test_silence_is_noticed_even_where_nobody_is_ahead():
  judge = Judge(10.0)
  lines(judge, {0: 3, 1: 3}, 0)
  assert lines(judge, {0: 3, 1: 3}, 1, silent=[1]) == []
  assert lines(judge, {0: 3, 1: 3}, 10, silent=[1]) == []
  found = lines(judge, {0: 3, 1: 3}, 12, silent=[1])
  assert len(found) == 1 and 'process 1 on host1 has not been heard of' in found[0]
