"""Friction, on tracks that are written down and on true clips."""
import numpy as np
import pytest

from veojax.data import world, world_clip
from veojax.evaluation import world_dynamics, world_judge
from veojax.evaluation.world_parser import Parse, Track

FPS, R, G = 16., .1, 2.


def error(x, y=1 - R, mu=.08, gravity=G):
  """friction_error of a circle at x, y float[T] of a frame that is as high as wide; None where it is undefined."""
  positions = np.stack(np.broadcast_arrays(x, y), 1)
  T = len(positions)
  track = Track('red', positions, np.full(T, np.pi * R * R), np.tile([1., 0, 0], (T, 1)), np.zeros(T, bool))
  parse = Parse(FPS, 64, 64, {'red': track}, None, np.ones(T, int))
  return world_dynamics.measure(parse, [], gravity, {'red': {'friction': mu}}, rest_speed=.1, fastest=9.).get(
      'friction_error')


def rolling(seconds, speed=.6, mu=.08):
  """x float[T], until it rests."""
  t = np.minimum(np.arange(round(seconds * FPS) + 1) / FPS, speed / (mu * G))
  return .2 + speed * t - mu * G * t**2 / 2


def test_friction_is_the_deceleration_of_what_rolls_either_way():
  for x in (rolling(2), 1 - rolling(2), rolling(6)):
    assert error(x) == pytest.approx(0, abs=1e-9)
    assert error(x, mu=.16) == pytest.approx(.5) and error(x, mu=.04) == pytest.approx(1)
  assert error(rolling(2, mu=1e-9)) == pytest.approx(1)  # nothing slows it
  assert error(rolling(2)[::-1]) == pytest.approx(2)     # it is driven


def test_a_wall_ends_a_run_and_another_begins():
  there, back = rolling(1), rolling(1, speed=.4)
  both = np.concatenate([there, (there[-1] + back[0] - back)[1:]])
  assert error(both) == pytest.approx(0, abs=1e-9)
  assert error(np.concatenate([there[-8:], (there[-1] + back[0] - back)[1:8]])) is None  # both runs are short


def test_what_does_not_roll_has_no_friction():
  assert error(rolling(2), y=.5) is None  # it flies
  assert error(np.full(33, .5)) is None   # it rests
  assert error(rolling(2), gravity=0.) is None


@pytest.mark.parametrize('fps', [8, 16, 24])
def test_of_true_clips_it_is_nearly_none(fps):
  config = world.WorldConfig(levels=('L5',), split='test', num_frames=2 * fps + 1, fps=fps)
  clips = [world_clip.make(seed, config, 'dense') for seed in range(8)]
  found = [world_judge.judge(world_judge.see(clip), clip).get('friction_error') for clip in clips]
  assert sum(value is not None for value in found) >= 7
  assert np.mean([value for value in found if value is not None]) < .02
