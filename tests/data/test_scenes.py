"""Cuts are found where they are made, and only there: not in motion, not in a flash, not in noise."""
import numpy as np
import pytest

from veojax.data import scenes

THRESHOLD = 0.1


def shot(seed, num_frames, speed=2, noise=0.0):
  """A window that pans over a random landscape: uint8[T, 64, 96, 3]."""
  rng = np.random.default_rng(seed)
  coarse = rng.uniform(0, 255, (10, 40, 3))
  wide = np.kron(coarse, np.ones((8, 8, 1)))[:64]
  frames = [np.roll(wide, -speed * t, 1)[:, :96] + noise * rng.standard_normal((64, 96, 3)) for t in range(num_frames)]
  return np.clip(frames, 0, 255).astype(np.uint8)


def cuts(frames):
  return scenes.find_cuts(scenes.distances(frames), THRESHOLD)


@pytest.mark.parametrize('lengths', [(10, 10), (7, 15, 6), (12, 1, 12), (5, 5, 5, 5)])
def test_cuts_stand_where_shots_meet(lengths):
  shots = [shot(seed, length, noise=4.0) for seed, length in enumerate(lengths)]
  expected = list(np.cumsum(lengths)[:-1])
  found = cuts(np.concatenate(shots))
  # A shot of one frame between two others cannot be told from a flash that changes the scene: its end is enough.
  assert set(found) <= set(expected) and (len(found) == len(expected) or 1 in lengths)


@pytest.mark.parametrize('speed', [0, 2, 8, 24])
def test_a_moving_camera_is_no_cut(speed):
  assert cuts(shot(0, 30, speed)) == []


def test_a_flash_is_no_cut():
  frames = shot(0, 20)
  frames[9] = 255
  assert cuts(frames) == []


def test_repeated_frames_hide_no_cut():
  frames = np.repeat(np.concatenate([shot(0, 8), shot(1, 8)]), 2, 0)
  assert cuts(frames) == [16]


def test_short_and_empty_films():
  assert cuts([]) == [] and cuts(shot(0, 1)) == []
  assert scenes.distances(shot(0, 1)[:, :1, :1]).shape == (1, 2)


@pytest.mark.parametrize('limit', [None, 0.7, 2.0, 100.0])
def test_spans_tile_the_film(limit):
  found = list(scenes.spans(11.0, [3.0, 0.0, 7.5, 11.0, 12.0], limit))
  starts, ends = np.array(found).T
  np.testing.assert_allclose(starts[1:], ends[:-1])
  assert starts[0] == 0.0 and ends[-1] == 11.0
  assert {3.0, 7.5} <= set(ends)
  assert limit is None or (ends - starts).max() <= limit * (1 + 1e-3)


def test_a_span_of_the_limit_up_to_rounding_stays_whole():
  assert len(list(scenes.spans(10.0000001, [], 10.0))) == 1


@pytest.mark.parametrize('shape', [(1, 1), (5, 300), (31, 31), (64, 48), (300, 200), (720, 1280)])
def test_a_thumbnail_is_small_and_keeps_the_mean(shape):
  frame = np.tile(np.linspace(0, 255, shape[1]).astype(np.uint8)[None, :, None], (shape[0], 1, 3))
  small = scenes.thumbnail(frame)
  assert 1 <= min(small.shape[:2]) < 2 * scenes.SIDE
  assert abs(small.mean() - frame.mean() / 255) < 0.05
