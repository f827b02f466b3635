"""Clips at one loudness: reached where it can be, never by clipping, and silence stays silence."""
import numpy as np
import pytest

from veojax.data import loudness


def noise(db, peak=None):
  x = np.random.default_rng(0).normal(size=(8000, 2)).astype(np.float32)
  x *= 10 ** (db / 20) / np.sqrt(np.mean(x ** 2))
  if peak:
    x[100] = peak
  return x


@pytest.mark.parametrize('given', [-50, -30, -12])
def test_the_target_is_reached_from_below_and_from_above(given):
  assert abs(loudness.level(loudness.normalised(noise(given), -23)) + 23) < 0.01


def test_faint_sound_gains_no_more_than_the_limit():
  assert abs(loudness.level(loudness.normalised(noise(-80), -23)) - (loudness.MAX_GAIN - 80)) < 0.01


def test_a_peak_stays_within_full_scale_and_the_form_is_kept():
  sound = noise(-40, peak=0.5)
  louder = loudness.normalised(sound, -6)
  assert np.isclose(np.abs(louder).max(), 1) and np.allclose(louder / louder.max(), sound / sound.max(), atol=1e-6)


def test_silence_and_emptiness_stay():
  assert not loudness.normalised(np.zeros((10, 1), np.float32), -23).any()
  assert loudness.normalised(np.zeros((0, 2), np.float32), -23).shape == (0, 2)
