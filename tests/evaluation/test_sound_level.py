"""Loudness, clipping and silence of sounds whose values are known."""
import numpy as np
import pytest

from veojax.evaluation import sound_level


def tone(amplitude, rate=16000, seconds=1.):
  return (amplitude * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)[:, None]


def test_a_sines_level():
  assert sound_level.level(tone(1.)) == pytest.approx(-3.01, abs=.01)
  assert sound_level.level(tone(.1)) == pytest.approx(-23.01, abs=.01)
  assert sound_level.level(np.zeros((100, 2), np.float32)) == -120


def test_clipping_is_runs_at_full_scale():
  assert sound_level.clipped(tone(1.)) == 0  # peaks that just reach it
  loud = np.clip(tone(2.), -1, 1)
  assert sound_level.clipped(loud) == pytest.approx(2 / 3, abs=.02)  # |sin| > 1/2 for two thirds of the time
  assert sound_level.clipped(np.hstack([loud, 0 * loud])) == pytest.approx(1 / 3, abs=.01)
  assert sound_level.clipped(np.zeros((0, 1), np.float32)) == 0


def test_silence_is_a_share_of_time():
  half = np.concatenate([tone(.1), np.zeros((16000, 1), np.float32)])
  assert sound_level.silence(half, 16000) == pytest.approx(.5)
  assert sound_level.silence(tone(1e-4), 16000) == 1 and sound_level.silence(tone(.01), 16000) == 0
  assert np.isnan(sound_level.silence(np.zeros((0, 1), np.float32), 16000))
