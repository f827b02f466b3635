"""The parser's own test: each way to spoil true clips moves exactly the metrics that the matrix says."""
import pytest

from veojax.evaluation import world_judge, world_perturbations


@pytest.fixture(scope='module')
def found():
  return world_perturbations.means(16)


@pytest.mark.parametrize('name', world_perturbations.PERTURBATIONS)
def test_a_perturbation_moves_the_metrics_of_its_line_and_no_others(found, name):
  truth, spoilt = found[name]
  wrong = {metric: (truth[metric], spoilt.get(metric), world_perturbations.MATRIX[name].get(metric))
           for metric in truth if not world_perturbations.agrees(found, name, metric)}
  assert not wrong


def test_known_sizes_are_met(found):
  change = lambda name, metric: found[name][1][metric] - found[name][0][metric]
  assert found['gravity x 0.7'][1]['gravity_error'] == pytest.approx(.3, abs=.03)
  assert found['slow motion'][1]['gravity_error'] == pytest.approx(.75, abs=.03)
  assert change('sound + 40 ms', 'bias') == pytest.approx(40, abs=6)
  assert found['vanish'][1]['count_constancy'] == pytest.approx(16 / 33, abs=1e-9)
  assert found["camera's move reversed"][1]['camera_move'] == 0
  # The double may leave the frame; a fifth is gone of the speed that bounces leave, which is .6 to .85 of that before.
  assert found['double'][1]['spurious'] == pytest.approx(17 / 33, abs=.06)
  assert .2 * .6 < change('restitution x 0.8', 'restitution_error') < .2 * .85
  assert change('friction x 0.5', 'friction_error') == pytest.approx(.5, abs=.03)


def test_every_line_speaks_of_metrics_that_are_measured(found):
  assert set(world_perturbations.MATRIX) == set(world_perturbations.PERTURBATIONS) == set(found)
  for name, line in world_perturbations.MATRIX.items():
    assert set(line) <= set(found[name][0]), name
  assert set(world_judge.METRICS) == set(world_perturbations.TOLERANCE)


def test_every_metric_is_moved_by_something():
  moved = {metric for line in world_perturbations.MATRIX.values() for metric, way in line.items()
           if way in (world_perturbations.UP, world_perturbations.DOWN)}
  assert moved == set(world_judge.METRICS)
