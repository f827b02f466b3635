"""Each perturbation of a true clip moves the metric made for it, by the exact amount where one is known."""
import dataclasses

import numpy as np
import pytest

from veojax.data import world, world_clip
from veojax.evaluation import world_laws, world_parser


@pytest.fixture(scope='module')
def clips():
  config = world.WorldConfig(levels=('L2', 'L3'), max_objects=2, num_frames=32, fps=16, height=64, width=64)
  return [world_clip.make(seed, config) for seed in range(10)]


def mean(clips, change=lambda clip: clip) -> dict:
  scores = [world_laws.measure(change(clip), clip.info) for clip in clips]
  values = {key: np.array([s[key] for s in scores]) for key in scores[0]}
  return {key: v[np.isfinite(v)].mean() if np.isfinite(v).any() else np.nan for key, v in values.items()}


def delayed(clip, seconds):
  n = round(seconds * clip.sample_rate)
  return dataclasses.replace(clip, audio=np.pad(clip.audio, ((n, 0), (0, 0)))[:len(clip.audio)])


def test_truth_is_within_the_parser_s_floor(clips):
  truth = mean(clips)
  assert truth['count_constancy'] == truth['permanence'] == 1
  assert truth['pos_err'] < .001 and truth['vel_err'] < .02 and truth['g_err'] < .03
  assert truth['impact_has_sound'] > .9 and truth['f1'] > .6 and abs(truth['bias_ms']) < 2


def test_gravity_is_not_read_under_a_moving_camera():
  config = world.WorldConfig(levels=('L7',), num_frames=24, fps=16, height=64, width=64)
  for clip in (world_clip.make(seed, config) for seed in range(3)):
    scores = world_laws.measure(clip, clip.info)
    assert np.isnan(scores['g_err']) and scores['pos_err'] < .01


def test_late_sound_shows_in_bias_and_then_in_f1(clips):
  assert mean(clips, lambda c: delayed(c, .04))['bias_ms'] == pytest.approx(40, abs=6)
  assert mean(clips, lambda c: delayed(c, .10))['f1'] < .4 * mean(clips)['f1']
  assert mean(clips, lambda c: dataclasses.replace(c, audio=np.zeros_like(c.audio)))['f1'] == 0


def test_slow_motion_is_a_quarter_of_gravity(clips):
  slow = mean(clips, lambda c: dataclasses.replace(c, fps=8.))
  assert slow['g_err'] == pytest.approx(.75, abs=.02)


def test_vanishing_and_wrong_positions(clips):
  def vanish(clip):
    video = clip.video.copy()
    video[16:] = np.round(255 * np.array(world.BACKGROUND)).astype(np.uint8)
    return dataclasses.replace(clip, video=video)
  gone = mean(clips, vanish)
  assert gone['count_constancy'] == .5 and gone['permanence'] == 0
  moved = mean(clips, lambda c: dataclasses.replace(c, video=np.roll(c.video, 2, axis=0)))
  assert moved['pos_err'] > .02


def parse_of(x, y):
  """Of one whole object at 16 frames a second."""
  n = len(x)
  track = world_parser.Track('red', np.stack([x, y], 1), np.full(n, .02), np.zeros((n, 3)), np.zeros(n, bool))
  return world_parser.Parse(16., 64, 64, {'red': track}, None, np.ones(n, int))


@pytest.mark.parametrize('time', [.5, .53, .5625])
def test_the_moment_of_a_bounce_between_frames_is_exact(time):
  t = np.arange(17) / 16
  y = np.where(t < time, .8 + .9 * (t - time) + (t - time)**2, .8 - .7 * (t - time) + (t - time)**2)
  found, = world_laws.visual_impacts(parse_of(.2 + .3 * t, y), gravity=2.)
  assert found == pytest.approx(time, abs=1e-9)


@pytest.mark.parametrize('time', [.5, .53, .5625])
def test_what_shakes_a_lying_object_is_no_impact_and_what_strikes_it_is(time):
  t = np.arange(33) / 16
  shaken = .001 * np.random.default_rng(0).standard_normal((2, 33))
  assert not len(world_laws.visual_impacts(parse_of(.5 + shaken[0], .9 + shaken[1]), gravity=2.))
  found, = world_laws.impacts(parse_of(.5 + .6 * np.maximum(0, t - time), np.full(33, .9)), gravity=2.)
  assert found.time == pytest.approx(time, abs=1e-9) and found.held
  np.testing.assert_allclose((found.before, found.after), ((0, 0), (.6, 0)), atol=1e-9)


def test_matching_is_one_to_one():
  result = world_laws.synchrony(np.array([.5, .52]), np.array([.51]))
  assert result['impact_has_sound'] == .5 and result['sound_has_impact'] == 1 and result['f1'] == pytest.approx(2 / 3)
  assert np.isnan(world_laws.synchrony(np.zeros(0), np.array([.1]))['impact_has_sound'])
