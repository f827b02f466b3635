"""The world as a benchmark: its splits show what they say, rows depend on nothing but their number, floors lie
below."""
import dataclasses
import json
import random

import numpy as np
import pytest

from veojax.data import world, world_scene
from veojax.evaluation import world_judge, world_state
from veojax.evaluation.benchmark import Row, Subject
from veojax.evaluation.world_benchmark import SPLITS, World

TRUTH = Subject('truth')
SMALL = World(num_clips=8, num_frames=17)


@pytest.fixture(scope='module')
def rows():
  return SMALL.rows(TRUTH, 'truth', range(8))


def test_rows_depend_on_their_number_alone_and_are_plain_json(rows):
  assert SMALL.rows(TRUTH, 'truth', [6, 1]) == {column: [part[6], part[1]] for column, part in rows.items()}
  assert json.loads(json.dumps([dataclasses.asdict(row) for row in rows['truth']], allow_nan=False)) == [
      dataclasses.asdict(row) for row in rows['truth']]
  assert [row.group for row in rows['truth']] == ['L1', 'L2', 'L3', 'L4'] * 2


def test_scores_do_not_depend_on_the_order_of_the_clips(rows):
  mixed = {column: random.Random(0).sample(part, len(part)) for column, part in rows.items()}
  one, two = SMALL.scores(rows), SMALL.scores(mixed)
  assert one.keys() == two.keys() and 'fsd' in one
  for metric in one:
    for column, score in one[metric].items():
      np.testing.assert_allclose(two[metric][column], score, rtol=1e-9)
      assert score.low <= score.value <= score.high and 0 < score.coverage <= 1
      assert score.num_clips == (4 if metric in ('fsd', 'mmd') else 8)  # these are of halves


def test_the_truth_is_right_and_held_to_other_captions_it_is_not(rows):
  scores = SMALL.scores(rows)
  for metric in ('permanence', 'count_constancy', 'colour', 'shape', 'size', 'count', 'direction', 'material',
                 'all_right'):
    assert scores[metric]['truth'].value > .95, metric
  for metric in ('colour', 'all_right', 'told', 'f1', 'impact_has_sound'):
    assert scores[metric]['shuffled'].value < scores[metric]['truth'].value - .15, metric
  assert scores['spurious']['truth'].value == 0 < scores['spurious']['shuffled'].value


def test_of_the_laws_the_floor_is_the_same_clips_out_of_order(rows):
  scores = SMALL.scores(rows)
  for metric, least in (('gravity_error', 1.), ('teleports', .3), ('position_error', .1), ('velocity_error', 1.)):
    truth, floor = scores[metric]['truth'], scores[metric]['shuffled']
    assert floor.low > max(least, 10 * truth.high) and floor.num_clips == 8, metric
  assert scores['identity_swaps']['shuffled'].value > scores['identity_swaps']['truth'].value == 0
  # Out of order nothing flies or bounces: no other scene's materials are left for it to be held to.
  left = {name for row in rows['shuffled'] for name in row.values}
  assert not left & {'restitution_error', 'momentum_error', 'energy_gain'}


def test_what_is_made_from_text_alone_has_no_record_in_its_floor_either():
  truth = SMALL.case(1)
  values = SMALL._shuffled(1, world_judge.see(truth), truth, False).values
  assert 'gravity_error' in values and not {'position_error', 'velocity_error'} & set(values)


@pytest.mark.parametrize('given, held', [
    ('nothing', False), ('sound', False), ('first_frame', True), ('picture', True)])
def test_what_is_made_is_held_to_the_record_only_where_frames_were_given(given, held):
  bench = World(num_clips=2, num_frames=9, levels=('L1',), given=given)
  rows = bench.rows(Subject('model', object(), made=[bench.case(0)]), 'made', [0])
  for row in rows['made'] + rows['shuffled']:
    assert ({'position_error', 'velocity_error'} <= set(row.values)) == held and 'teleports' in row.values
  assert ('position_error' in rows['made'][0].kept) == held


@pytest.mark.parametrize('changes', [
    {'levels': ('L7',)}, {'height': 32, 'width': 96}, {'levels': ('L7',), 'height': 32, 'width': 96}])
def test_sizes_are_told_under_a_moving_camera_and_in_flat_frames(changes):
  bench = World(num_clips=8, density='dense', **changes)
  for i in range(8):
    truth = bench.case(i)
    seen = world_judge.see(truth)
    assert world_judge.judge(seen, truth).get('size') in (1, None), i
    assert {o['colour'] for o in truth.info['objects']} >= set(seen.observation.radii)


def of_states(truth, made):
  return World(num_clips=len(truth)).scores({column: [Row(i, kept={'state': x.tolist()}) for i, x in enumerate(states)]
                                             for column, states in (('truth', truth), ('made', made))})


def test_distances_are_told_in_the_truths_spread(rows):
  """Whatever the units; of what never varies in the truth, in the least spread."""
  assert (np.std([row.kept['state'] for row in rows['truth']], 0) > world_state.LEAST).all()  # ordinary scenes vary
  truth, made = np.random.default_rng(0).normal(size=(2, 32, len(world_state.LEAST))) * 3 * world_state.LEAST
  one, two = of_states(truth, made), of_states(10 * truth, 10 * made)
  for metric in ('fsd', 'mmd'):
    assert one[metric]['made'].value == pytest.approx(two[metric]['made'].value, rel=1e-9)
  truth[:, [0, 5, 10]] = 4
  fewer = truth.copy()
  fewer[:, [0, 5, 10]] = 3
  scores = of_states(truth, fewer)['fsd']
  assert scores['made'].value - scores['truth'].value == pytest.approx(3 * (1 / .5)**2)


def test_errors_over_time_are_drawn_of_clips_whose_frames_were_given(rows):
  figure, = SMALL.plots({**rows, 'made': rows['truth']}).values()
  for axes, name in zip(figure.axes, ('position_error', 'velocity_error'), strict=True):
    curves = dict(zip(axes.get_legend_handles_labels()[1], axes.lines))
    assert set(curves) == {'made', 'truth'}
    kept = [dict(row.kept[name]) for row in rows['truth']]
    drawn = dict(zip(*curves['made'].get_data()))
    assert drawn and all(error == pytest.approx(np.mean([one[t] for one in kept if t in one]))
                         for t, error in drawn.items())
  assert SMALL.plots({**rows, 'made': rows['shuffled']}) == {}


@pytest.mark.parametrize('split', SPLITS)
def test_splits_show_what_training_does_not(split):
  bench = World(num_clips=6, split=split, num_frames=9)
  cases = [bench.case(i) for i in range(6)]
  things = [o for case in cases for o in case.info['objects']]
  assert len({case.text for case in cases}) == 6
  assert all(world_scene.held_out(o['colour'], o['shape']) == (split == 'pairs') for o in things) or split in (
      'count', 'range')
  assert all((len(case.info['objects']) == 4) == (split == 'count') for case in cases)
  assert all((o['radius'] in world.OUTER_RADII.values()) == (split == 'range') for o in things)
  assert all(len(case.video) == (17 if split == 'length' else 9) for case in cases)


def test_what_does_not_go_together_is_refused():
  with pytest.raises(ValueError, match='four objects'):
    World(split='count', levels=('L2',))
  with pytest.raises(ValueError, match='num_clips=0'):
    World(num_clips=0)


class Exact:
  """A codec that loses nothing."""
  sample_rate, channels = 8000, 2

  def reconstruct(self, x):
    return x


def test_codecs_get_sound_at_their_rate():
  subject, heard = Subject('exact', codecs=(Exact(), Exact())), []
  bench = dataclasses.replace(SMALL, num_clips=1, sample_rate=16000).fitted(subject)
  bench.rows(subject, 'codec', [0], lambda column, index, clip: heard.append(clip))
  truth = bench.case(0)
  assert heard[0].sample_rate == 8000 and len(heard[0].audio) * 2 == len(truth.audio)


def test_of_a_model_without_a_codec_for_sound_no_sound_is_judged(rows):
  heard = {name for name, metric in World.METRICS.items() if metric.group in ('sync', 'sound')} | {'material'}
  found = SMALL.rows(Subject('silent', codecs=(Exact(), None)), 'codec', range(4))['codec']
  assert heard & {name for row in rows['truth'][:4] for name in row.values}
  assert not heard & {name for row in found for name in row.values}
  assert all(row.values['permanence'] == 1 for row in found)
