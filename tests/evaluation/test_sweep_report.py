"""What the report of a sweep says of its cells, from what was measured of them."""
import numpy as np

from veojax.evaluation import set_distance, sweep, sweep_report, units
from veojax.evaluation.benchmark import Row
from veojax.evaluation.set_distance import SetBenchmark


class Sets(SetBenchmark):
  """Of one protocol; made sets lie where a setting says."""
  FEATURES, num_clips = 'features', 32

  def __init__(self, protocol):
    self.METRICS = set_distance.metrics(protocol)

  def fitted(self, subject):
    return self

  def parts(self, subject):
    return ('made', 'truth')

  def rows(self, subject, part, indices, keep):
    return {part: [Row(i) for i in indices]}


def of_sets(protocol: str, shift: float) -> sweep.Outcome:
  rng, bench = np.random.default_rng(int(10 * shift)), Sets(protocol)
  rows = {column: [Row(i, kept={'features': rng.normal(at, 1, (1, 3)).tolist()}) for i in range(32)]
          for column, at in (('made', shift), ('truth', 0.))}
  columns, scores = bench.read([rows])
  cell = sweep.Cell('model', (('protocol', protocol), ('shift', shift)), 'model')
  return sweep.Outcome(cell, bench, calls=1 + int(shift), columns=columns, scores=scores)


def test_a_sweep_of_distances_of_sets_shows_all_of_them_and_marks_what_differs(tmp_path):
  outcomes = [of_sets(protocol, shift) for protocol in 'ab' for shift in (0., .1, 3.)]
  marks = sweep_report.compared(outcomes, 'a', 'lower')
  assert sorted(marks.values()) == ['', 'best', 'worse'] and marks['model protocol=a shift=3.0'] == 'worse'
  page = sweep_report.as_page('fvd', outcomes, units.Store(tmp_path)).parts
  scores = page[page.index('<h2>Scores</h2>') + 1]
  assert all(f'<th>{name}</th>' in scores for name in ('a', 'a/halves', 'b', 'b/halves'))
  floors = next(part for part in page if part.startswith('<div') and '<td>truth</td>' in part)
  assert floors.count('[') == 2  # of either protocol
  assert '<h2>Quality against cost</h2>' in page


def test_the_front_is_what_nothing_beats():
  points = [(1, .2), (2, .5), (2, .4), (4, .45), (8, .9)]
  assert sweep_report.front(points, 'higher') == [0, 1, 4]
  assert sweep_report.front(points, 'lower') == [0]
  assert sweep_report.front([(1, -3.), (2, 1.), (3, -2.)], 'zero') == [0, 1]
