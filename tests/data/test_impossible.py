"""Both sides of a case show and sound the same, and only the impossible one breaks where it says."""
import dataclasses

import numpy as np
import pytest

from veojax.data import impossible
from veojax.data.world import WorldConfig
from veojax.evaluation import world_parser

CONFIG = WorldConfig(num_frames=33, fps=16, height=48, width=48, sample_rate=8000, split='test')


@pytest.fixture(scope='module', params=list(impossible.KINDS))
def cases(request):
  return [impossible.make(request.param, number, CONFIG) for number in range(3)]


def frames(clip):
  return clip.video.astype(int)


def test_both_sides_hold_the_same_frames_and_samples(cases):
  for case in cases:
    (a, b), (c, d) = case.possible, case.impossible
    np.testing.assert_array_equal(frames(a) + frames(b), frames(c) + frames(d))
    np.testing.assert_allclose(a.audio + b.audio, c.audio + d.audio, atol=1e-6)
    assert not np.array_equal(a.video, b.video) and abs(a.audio).max() > 0
    for clip in (a, b, c, d):
      assert clip.video.shape == (33, 48, 48, 3) and clip.audio.shape == (16500, 2)


def test_one_goes_on_as_the_other(cases):
  for case in cases:
    (a, b), (c, d), k = case.possible, case.impossible, case.frame
    if case.kind == 'sound':
      assert np.array_equal(c.video, a.video) and np.array_equal(c.audio, b.audio)
      assert np.array_equal(d.video, b.video) and np.array_equal(d.audio, a.audio)
      assert not np.array_equal(a.audio, b.audio)
      continue
    assert 3 <= k <= 30
    assert np.array_equal(c.video, np.concatenate([a.video[:k], b.video[k:]]))
    assert np.array_equal(d.video, np.concatenate([b.video[:k], a.video[k:]]))
    # It differs before and after, so that each of the four is another clip.
    assert not np.array_equal(a.video[:k], b.video[:k]) and not np.array_equal(a.video[k:], b.video[k:])


def test_what_changes_behind_the_pillar_changes_unseen(cases):
  for case in cases:
    a, b = case.possible
    if case.kind in ('vanish', 'colour', 'shape'):
      assert np.array_equal(a.video[case.frame], b.video[case.frame])


def test_the_mid_air_turn_keeps_the_place_and_reverses_the_fall():
  for number in range(4):
    case = impossible.make('bounce', number, dataclasses.replace(CONFIG, height=96, width=96))
    a, b, k = *case.possible, case.frame
    y = [next(iter(world_parser.parse(clip.video, 16).tracks.values())).positions[k - 2:k + 2, 1] for clip in (a, b)]
    assert abs(y[0][2] - y[1][2]) < .01             # one place at frame k
    assert y[0][1] < y[0][2] and y[1][1] > y[1][2]  # A falls to it, B rises to it
    broken = next(iter(world_parser.parse(case.impossible[0].video, 16).tracks.values())).positions[:, 1]
    assert broken[k - 1] < broken[k] > broken[k + 1]  # what it shows: down, and up again
    assert broken[k] < 1 - .125 - .02                 # above the floor
    early = slice(0, int(k / 16 * 8000))
    assert not case.impossible[0].audio[early].any()  # and nothing sounds


def test_a_case_is_the_same_whenever_it_is_made():
  one, two = (impossible.make('teleport', 5, CONFIG) for _ in range(2))
  assert all(np.array_equal(x.video, y.video) for x, y in zip(one.impossible, two.impossible))
  silent = impossible.make('teleport', 5, dataclasses.replace(CONFIG, sample_rate=0))
  assert silent.possible[0].audio is None and np.array_equal(silent.possible[0].video, one.possible[0].video)


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="kind='melt'"):
    impossible.make('melt', 0, CONFIG)
  with pytest.raises(ValueError, match='longer or taller clips'):
    impossible.make('vanish', 0, dataclasses.replace(CONFIG, num_frames=3))
