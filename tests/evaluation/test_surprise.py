"""Surprise: a loss that depends on the clip alone, and a measure that a model which knows the world would win."""
import itertools

import jax
import numpy as np
import pytest

from veojax import sharding
from veojax.data import impossible
from veojax.evaluation import surprise
from veojax.evaluation.benchmark import Subject
from veojax.evaluation.surprise import Surprise
from veojax.generation import model as models

BENCH = Surprise(num_clips=12, draws=3, num_frames=25, height=32, width=32, fps=12., sample_rate=4000)


@pytest.fixture(scope='module')
def subject(model_folder):
  model = models.load(model_folder)
  return Subject('tiny', model, (model.video_codec, model.audio_codec))


def test_rows_are_pure_and_of_all_kinds(subject):
  rows = BENCH.rows(subject, 'made', range(6))['made']
  assert [row.group for row in rows] == list(impossible.KINDS)
  for row in rows:
    assert row.values['surprised'] in (0, .5, 1) and row.values[row.group] == row.values['surprised']
    assert np.isfinite(row.values['margin']) and abs(row.values['margin']) < 1
  again = BENCH.rows(subject, 'made', [4])['made'][0]
  assert again == rows[4]
  scores = BENCH.scores({'made': rows})
  assert scores['surprised']['made'].num_clips == 6 and scores['vanish']['made'].coverage == pytest.approx(1 / 6)


def test_sizes_and_rates_are_the_models(subject):
  bench = Surprise(height=16).fitted(subject)
  assert (bench.num_frames, bench.height, bench.width, bench.fps, bench.sample_rate) == (9, 16, 32, 8., 4000)


def test_what_clips_cannot_show_is_left_out(subject):
  row, = Surprise(num_frames=3, draws=1).fitted(subject).rows(subject, 'made', [0])['made']
  assert row.values == {} and row.group == 'vanish' and 'longer' in row.text


def test_the_four_clips_share_levels_and_noise(subject):
  case = BENCH.case(0)
  clip = case.possible[0]
  one = surprise.loss(subject.model, clip, 3, (0, 5))
  assert one == surprise.loss(subject.model, clip, 3, (0, 5)) != surprise.loss(subject.model, clip, 3, (0, 6))


def test_what_the_loss_finds_harder_wins(subject, monkeypatch):
  """With the loss of one who knows what is possible: what was not seen among the possible clips is hard."""
  known = set()

  def knowing(model, clip, draws, keys):
    return 1. if (clip.video.tobytes(), clip.audio.tobytes()) in known else 1.1
  monkeypatch.setattr(surprise, 'loss', knowing)
  for i in range(12):
    known |= {(c.video.tobytes(), c.audio.tobytes()) for c in BENCH.case(i).possible}
  rows = BENCH.rows(subject, 'made', range(12))['made']
  assert all(row.values['surprised'] == 1 and row.values['margin'] == pytest.approx(.1) for row in rows)


def test_the_floor_names_the_sides_by_lot(subject, monkeypatch):
  """So whoever wins every case wins about half of them, by as much as the others are lost."""
  losses = itertools.cycle((1., 1., 1.5, 1.5))
  monkeypatch.setattr(surprise, 'loss', lambda *given: next(losses))
  monkeypatch.setattr(Surprise, 'case', lambda self, i: impossible.Case('vanish', 1, (None,) * 2, (None,) * 2))
  columns, scores = BENCH.read([BENCH.rows(subject, 'made', range(400))])
  assert list(columns) == ['made', 'shuffled'] and scores['surprised']['made'].value == 1
  floor = scores['surprised']['shuffled']
  assert floor.low <= .5 <= floor.high and floor.high - floor.low < .15 and floor.num_clips == 400
  assert {round(row.values['margin'], 9) for row in columns['shuffled']} == {.5, round(1 / 1.5 - 1, 9)}
  assert BENCH.rows(subject, 'made', [17])['shuffled'] == [columns['shuffled'][17]]


def test_a_loss_of_content_alone_is_at_chance(subject, monkeypatch):
  """Which adds up over frames and samples, and so finds both sides equally hard, however unequal the clips."""
  def of_content(model, clip, draws, keys):
    return int(np.square(clip.video.astype(np.int64)).sum())
  monkeypatch.setattr(surprise, 'loss', of_content)
  rows = BENCH.rows(subject, 'made', range(12))['made']
  assert all(row.values['surprised'] == .5 for row in rows)


def test_without_a_model_there_is_nothing_to_measure():
  with pytest.raises(ValueError, match='truth is no model'):
    BENCH.fitted(Subject('truth'))


def test_on_whatever_mesh_it_is_the_same(subject):
  """Of a model that another mesh has had before; also where the mesh does not divide a row's tokens of itself."""
  clip, losses = BENCH.case(0).possible[0], []
  for sizes, devices in (({}, 8), ({'data': 2, 'context': 4}, 8), ({'data': 1, 'context': 3}, 3)):
    with sharding.use(sharding.MeshConfig(**sizes), jax.devices()[:devices]):
      losses.append(surprise.loss(subject.model, clip, 2, (0, 5)))
  assert losses[1] == pytest.approx(losses[0], rel=1e-5) and np.isfinite(losses[2])
