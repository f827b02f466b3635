"""The comparison with the truth: nothing changes for a codec that changes nothing; what is changed is measured as
changed."""
import dataclasses

import numpy as np
import pytest

from veojax.data import world_clip
from veojax.data.world import WorldConfig
from veojax.evaluation import round_trip
from veojax.training import distortion


@pytest.fixture(scope='module')
def clips():
  config = WorldConfig(levels=('L2', 'L3'), split='test')
  return [world_clip.make(seed, config) for seed in range(6)]


def changed(clips, video=lambda v: v, audio=lambda a: a):
  return [dataclasses.replace(c, video=video(c.video), audio=audio(c.audio)) for c in clips]


def test_a_codec_that_changes_nothing_scores_as_the_truth(clips):
  result = round_trip.measure(clips, changed(clips, lambda v: np.where(v == 0, 1, v - 1).astype(np.uint8)))
  assert np.isclose(result['psnr'], 20 * np.log10(255))
  assert result['scores'] and all(abs(truth - trip) < 0.02 for truth, trip, *_ in result['scores'].values())
  for truth, trip, low, high, count in result['scores'].values():
    assert low <= trip <= high and 1 <= count <= len(clips)
  assert (max(result['sound']['delay_ms']) == 0
          and min(result['sound']['found']) == min(result['sound']['material']) == 1)


def test_a_half_without_a_codec_stays(clips):
  class Silent:
    channels = 1

    def reconstruct(self, audio):
      return 0 * audio
  made = round_trip.through(clips[0], None, Silent())
  assert made.video is clips[0].video and made.audio.shape == (len(clips[0].audio), 1) and not made.audio.any()
  assert round_trip.through(clips[0], None, None) == clips[0]


def test_a_delay_of_the_sound_is_measured(clips):
  late = changed(clips, audio=lambda a: np.pad(a, ((160, 0), (0, 0)))[:len(a)])
  result = round_trip.measure(clips, late)
  assert abs(np.median(result['sound']['delay_ms']) - 10) < 1.1


def test_silence_loses_onsets_and_a_black_picture_objects(clips):
  result = round_trip.measure(clips, changed(clips, np.zeros_like, np.zeros_like))
  assert not any(result['sound']['found'])
  truth, trip, *_ = result['scores']['caption colour']
  assert truth > 0.9 and trip < 0.1


def test_distortion_is_in_decibels(clips):
  quieter = changed(clips, audio=lambda a: 0.9 * a)
  assert np.isclose(distortion.sdr(round_trip.sounds(clips, quieter)), 20, atol=1e-4)
