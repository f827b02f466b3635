"""What the report of a sweep says of its cells, from what was measured of them."""
import numpy as np
import pytest

from veojax.evaluation import basic, benchmark, report, set_distance, sweep, sweep_report, units
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
  own = [units.Unit(bench, 'truth', protocol, 0, 32)]
  return sweep.Outcome(cell, bench, own, 1 + int(shift), f'model {protocol}', columns=columns, scores=scores)


def test_a_sweep_of_distances_of_sets_shows_all_of_them_and_marks_what_differs(tmp_path):
  outcomes = [of_sets(protocol, shift) for protocol in 'ab' for shift in (0., .1, 3.)]
  marks = sweep_report.compared(outcomes, 'a', 'lower')
  assert sorted(marks.values()) == ['', 'best', 'worse'] and marks['model protocol=a shift=3.0'] == 'worse'
  page = sweep_report.as_page('fvd', outcomes, units.Store(tmp_path)).parts
  scores = page[page.index('<h2>Scores</h2>') + 1]
  assert all(f'<th>{name}</th>' in scores for name in ('a', 'a/halves', 'b', 'b/halves'))
  floors = next(part for part in page if part.startswith('<div') and '<td>truth' in part)
  assert floors.count('[') == 2 and all(f'<td>truth protocol={name}</td>' in floors for name in 'ab')
  assert '<h2>Quality against cost</h2>' in page


def test_the_front_is_what_nothing_beats():
  points = [(1, .2), (2, .5), (2, .4), (4, .45), (8, .9)]
  assert sweep_report.front(points, 'higher') == [0, 1, 4]
  assert sweep_report.front(points, 'lower') == [0]
  assert sweep_report.front([(1, -3.), (2, 1.), (3, -2.)], 'zero') == [0, 1]


def of_level(value: float, calls: int = 1, floor: float = 0., title: str = 'model', truth: str = 'truth',
             num_clips: int = 16, **settings) -> sweep.Outcome:
  """A cell under `basic`, of which `truth` names the clips that it is measured against."""
  cell, bench = sweep.Cell(title, tuple(settings.items()), title), basic.Basic(num_clips=num_clips)
  levels = {'made': value, 'truth': float(truth.removeprefix('truth') or 0), 'shuffled': floor}
  columns = {column: [Row(i, values={'clipped': level, 'av_align': level}) for i in range(num_clips)]
             for column, level in levels.items()}
  own = [units.Unit(bench, part, key, 0, num_clips) for part, key in (('made', cell.name), ('truth', truth))]
  return sweep.Outcome(cell, bench, own, calls, title, columns=columns, scores=bench.scores(columns))


def references(outcomes) -> dict[str, list[float]]:
  return {f'{column} {told}': o.scores['clipped'][column].value for column in benchmark.COLUMNS
          for told, o in sweep_report.references(outcomes, column)}


def test_every_cell_has_its_own_reference_beside_it(tmp_path):
  outcomes = [of_level(.5, scale=scale, split=split, truth=truth, floor=scale / 10)
              for split, truth in (('seen', 'truth1'), ('count', 'truth2')) for scale in (1, 3)]
  assert references(outcomes) == {
      'truth split=seen': 1., 'truth split=count': 2.,
      **{f'shuffled scale={scale} split={split}': scale / 10 for split in ('seen', 'count') for scale in (1, 3)}}
  page = ''.join(sweep_report.as_page('basic', outcomes, units.Store(tmp_path)).parts)
  assert '<td>truth split=count</td>' in page and '<td>shuffled scale=3 split=count</td>' in page
  # Of all cells where they share one.
  assert references([of_level(.5, scale=scale, truth='truth1') for scale in (1, 3)]).keys() == {
      'truth ', 'shuffled scale=1', 'shuffled scale=3'}
  models = [of_level(.5, title=title, truth=f'truth{number}') for title, number in (('A', 1), ('B', 2), ('C', 1))]
  assert list(references(models))[:2] == ['truth A|C', 'truth B']


def test_a_front_is_of_one_model_and_one_kind_of_clip():
  """Calls of a small network are no cheaper way to what a large one makes."""
  outcomes = [of_level(level, calls, title=title) for title, levels in (('small', (.3, .2)), ('large', (.25, .1)))
              for calls, level in zip((4, 8), levels)]
  for reverse in (1, -1):
    ax = sweep_report.plots(outcomes[::reverse], ['clipped'], basic.Basic.METRICS).axes[0]
    fronts = [line.get_xydata().tolist() for line in ax.lines if line.get_linestyle() == '-']
    assert sorted(fronts) == [[[4, .25], [8, .1]], [[4, .3], [8, .2]]]


def test_what_is_sampled_otherwise_is_on_one_front_and_other_clips_on_another(model_folder):
  grid = {'seed': [0, 1], 'guidance_scale': [1., 2.], 'num_frames': [5, 9], 'split': ['seen', 'pairs']}
  planned = [sweep.planned(cell, 'world', {'num_clips': 1}, 1)[0] for cell in sweep.cells([str(model_folder)], grid)]
  title = planned[0].cell.title
  assert sorted({o.front for o in planned}) == sorted(f'{title} num_frames={num} split={split}' for num in (5, 9)
                                                      for split in ('seen', 'pairs'))
  assert sweep.planned(sweep.Cell('truth', (('seed', 1),), 'truth'), 'world', {}, 1)[0].front == 'truth'


@pytest.mark.parametrize('num, told', [(1, '1.000 (1 clip)'), (3, '1.000 (3 clips)'), (9, '1.000 (9 clips)'),
                                       (10, '1.000 [1.000, 1.000]')])
def test_few_clips_are_told_by_their_number_in_place_of_an_interval(num, told, tmp_path):
  score = benchmark.score(np.array([1.] * num + [np.nan] * 20))
  assert report.told(score) == told and score.defined == num
  assert np.isnan(report.bars([score])).all() == (num < 10)
  outcomes = [of_level(1., num_clips=num)]
  page = ''.join(sweep_report.as_page('basic', outcomes, units.Store(tmp_path)).parts)
  assert told in page
  assert f'1.0,1.0,1.0,{num},1.0' in sweep_report.as_csv(outcomes)  # the numbers stay
