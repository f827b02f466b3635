"""Which cells are marked: of equal ones few, however many there are; of others those that differ."""
import math

import numpy as np
import pytest
from scipy import stats

from veojax.evaluation import comparison
from veojax.evaluation.benchmark import LEAST_CLIPS, Row, Score


def cell(values, text: str = '') -> comparison.Judged:
  """Its interval is left out: of clips that have values it is not asked for."""
  score = Score(np.nanmean(values), math.nan, math.nan, len(values), np.mean(np.isfinite(values)))
  return [Row(i, text, values={'m': float(v)}) for i, v in enumerate(values)], score


def marked(cells: list[comparison.Judged], better: str = 'higher') -> list[str]:
  return list(comparison.marks({str(i): own for i, own in enumerate(cells)}, 'm', better).values())


def share_marked(num_clips: int, means, better: str = 'higher', alike: bool = True, draw=np.random.Generator.normal,
                 reports: int = 40) -> float:
  """Of reports of cells, drawn around the means, those in which any is marked as worse. alike: of the same clips."""
  rng = np.random.default_rng(0)
  cells = lambda: [cell(draw(rng, size=num_clips) + mean, '' if alike else str(i)) for i, mean in enumerate(means)]
  return np.mean(['worse' in marked(cells(), better) for _ in range(reports)])


def right(rng, size):
  """Of each clip whether it is right."""
  return (rng.random(size) < .7).astype(float)


@pytest.mark.parametrize('alike', [True, False])
@pytest.mark.parametrize('num_cells', [2, 6, 24])
def test_of_equal_cells_any_is_seldom_marked_however_many_there_are(num_cells, alike):
  # Of 40 reports three standard deviations above 0.05.
  for num_clips in (LEAST_CLIPS, 60):
    assert share_marked(num_clips, [0.] * num_cells, alike=alike) < .16
    assert share_marked(num_clips, [0.] * num_cells, alike=alike, draw=right) < .16
  assert share_marked(LEAST_CLIPS - 1, [9.] + [0.] * (num_cells - 1), alike=alike, reports=1) == 0


@pytest.mark.parametrize('alike', [True, False])
@pytest.mark.parametrize('num_cells', [2, 6, 24])
def test_a_cell_that_differs_is_marked_among_many(num_cells, alike):
  rng = np.random.default_rng(0)
  cells = lambda: [cell(rng.normal(size=60) - (i == 1), '' if alike else str(i)) for i in range(num_cells)]
  assert np.mean([marked(cells())[1] == 'worse' for _ in range(12)]) > .9
  assert share_marked(LEAST_CLIPS, (0., 2.), alike=alike) > .9


def test_of_signed_errors_the_sizes_count():
  assert share_marked(60, (5., -5.) * 3, 'zero') < .16 and share_marked(60, (0.,) * 6, 'zero') < .16
  assert share_marked(60, (5., -7.), 'zero') == 1


def test_what_is_paired_is_seen_below_what_clips_differ_by():
  rng = np.random.default_rng(0)
  clips, small = rng.normal(0, 5, 60), lambda: rng.normal(0, .1, 60)
  assert marked([cell(clips + small()), cell(clips - .2 + small())]) == ['best', 'worse']
  assert marked([cell(clips + small()), cell(clips - .2 + small(), 'others')]) == ['best', '']
  holes = np.where(np.arange(60) < 4, np.nan, clips + small())  # of a cell that defines it for nearly all
  assert marked([cell(clips + .2), cell(holes)]) == ['best', 'worse']


@pytest.mark.parametrize('num_shared', [1, 9, 20])
def test_captions_that_coincide_by_chance_neither_keep_nor_make_a_mark(num_shared):
  rng = np.random.default_rng(0)
  for sign in (1, -1):  # of the shared clips, against all others
    best, worse = rng.normal(1, .1, 60), rng.normal(0, .1, 60)
    worse[:num_shared] = best[:num_shared] + .001 * sign
    one, other = cell(best, 'one'), cell(worse, 'other')
    for rows in (one[0], other[0]):
      for row in rows[:num_shared]:
        row.text = 'the same'
    assert marked([one, other]) == ['best', 'worse']
  equal = [cell(rng.normal(0, 1, 60), text) for text in ('one', 'other')]
  for own, value in zip(equal, (.5, -.5)):
    for row in own[0][:num_shared]:
      row.text, row.values['m'] = 'the same', value + .001 * row.index
  assert 'worse' not in marked(equal)


def test_clips_are_the_same_by_number_and_caption():
  rows = lambda values: [Row(i, f'text {i}', values={'m': v}) for i, v in enumerate(values)]
  low, high = [.1, .9, .2, .8, .5, .4], [.2, 1., .3, .9, .6, .5]
  pairs = comparison.paired(rows(high), rows(low)[1:], 'm')
  assert pairs.tolist() == [[h, l] for h, l in zip(high[1:], low[1:])]
  assert not len(comparison.paired(rows(high), [Row(i, 'another text', values={'m': 1.}) for i in range(6)], 'm'))
  assert not len(comparison.paired(rows(high), rows(low), 'of the set'))


def test_the_chances_are_those_of_students_and_welchs_tests():
  rng = np.random.default_rng(0)
  for num in (10, 60):
    a, b = rng.normal(.3, 1, num), rng.normal(0, 2, num)
    a, b = sorted((a, b), key=np.mean, reverse=True)
    chance = lambda text: comparison.chance(cell(b, text), cell(a), 'm', 'higher')
    assert chance('') == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-3)
    assert chance('others') == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-3)
  of_set = lambda value: ([Row(i) for i in range(32)], Score(value, value - 1.96, value + 1.96, 32, 1.))
  assert comparison.chance(of_set(3.), of_set(0.), 'm', 'lower') == pytest.approx(2 * stats.norm.sf(3 / math.sqrt(2)))


def test_cells_whose_clips_agree_are_equal_or_differ():
  same = [.5] * LEAST_CLIPS
  assert marked([cell(same), cell(same)]) == ['best', '']
  for text in ('', 'others'):
    assert marked([cell(same), cell([.4] * LEAST_CLIPS, text)]) == ['best', 'worse']
  assert marked([]) == marked([cell(same)], better='') == []
