"""AV-Align's parts: onsets of known clicks, its mel bands, its count of pairs; and that it cannot tell sync."""
import dataclasses

import numpy as np
import pytest
import scipy.signal

from veojax.data import world, world_clip
from veojax.evaluation import av_align

RATE = av_align.SAMPLE_RATE


def clicks(times, seconds=2.):
  t = np.arange(round(seconds * RATE)) / RATE
  sound = sum((t >= at) * np.exp(-np.maximum(t - at, 0) / .05) * np.sin(2 * np.pi * 900 * (t - at)) for at in times)
  return (.5 * sound).astype(np.float32)[:, None]


def test_onsets_are_where_the_clicks_are():
  times = [.3, .71, 1.2, 1.62]
  found = av_align.onsets(clicks(times), RATE)
  assert len(found) == 4 and np.abs(found - times).max() < 2 * av_align.HOP / RATE
  assert len(av_align.onsets(np.zeros((RATE, 2), np.float32), RATE)) == 0


def test_the_spectral_rise_is_that_of_scipys_spectra():
  sound = clicks([.2, .5], 1.)[:, 0].astype(np.float64) + 1e-3 * np.random.default_rng(0).normal(size=RATE)
  window = scipy.signal.get_window('hann', 2048)
  spectra = scipy.signal.stft(sound, window=window, nperseg=2048, noverlap=1536, boundary='zeros', padded=False)[2]
  power = np.abs(spectra * window.sum()) ** 2
  decibels = 10 * np.log10(np.maximum(av_align.mel_matrix().T @ power, 1e-10))
  decibels = np.maximum(decibels, decibels.max() - 80)
  rise = np.maximum(0, np.diff(decibels, axis=1)).mean(0)
  got = av_align.strength(sound)
  assert not got[:3].any()
  np.testing.assert_allclose(got[3:], rise[:len(got) - 3], rtol=1e-9)


def test_bands_have_equal_area():
  area = av_align.mel_matrix().sum(0) * RATE / 2048
  np.testing.assert_allclose(area[60:], 1, rtol=.05)


def test_pairs_are_counted_over_both_lists():
  assert av_align.overlap(np.array([1.]), np.array([1.05]), 10) == 1
  assert av_align.overlap(np.array([1., 2.]), np.array([1.05, 3.]), 10) == pytest.approx(1 / 3)
  assert av_align.overlap(np.array([]), np.array([1.]), 10) == 0
  assert np.isnan(av_align.overlap(np.array([]), np.array([]), 10))
  assert av_align.peaks([0, 2, 1, 3, 3, 1, 4, 0]).tolist() == [1, 6]


def test_it_gives_a_shifted_track_as_much_as_the_true_one():
  """Which is why it is for comparison only."""
  config = world.WorldConfig(levels=('L2', 'L3'), num_frames=25, height=36, width=36)
  clips = [world_clip.make(seed, config) for seed in range(4)]
  late = [dataclasses.replace(c, audio=np.roll(c.audio, c.sample_rate // 8, 0)) for c in clips]
  true, shifted = (np.nanmean([av_align.av_align(c) for c in side]) for side in (clips, late))
  assert 0 <= true <= 1 and shifted > true - .15
  assert np.isnan(av_align.av_align(dataclasses.replace(clips[0], audio=None, sample_rate=0)))
