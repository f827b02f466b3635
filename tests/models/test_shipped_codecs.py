"""The codecs that come with the package: what they keep of scenes they have not seen, on a fixed set."""
import numpy as np
import pytest

from veojax.data import world_clip
from veojax.data.world import LEVELS, WorldConfig
from veojax.evaluation import round_trip
from veojax.generation import codecs
from veojax.training import distortion

LOST = {'impact_has_sound': .08}  # what jitter between the latents' frames and quiet impacts cost so few clips
ENOUGH = 12  # clips for which a score is defined


@pytest.fixture(scope='module')
def shipped():
  return [codecs.load('world', kind) for kind in codecs.KINDS]


def clips(num, **config):
  return [world_clip.make(seed, WorldConfig(levels=LEVELS[1:], split='test', **config)) for seed in range(num)]


def test_the_worlds_codecs_keep_what_is_seen_and_heard(shipped):
  truth = clips(24)
  result = round_trip.measure(truth, [round_trip.through(clip, *shipped) for clip in truth])
  assert result['psnr'] >= 37
  kept = {name: after - before for name, (before, after, _, _, num) in result['scores'].items()
          if name not in round_trip.ERRORS and num >= ENOUGH}
  assert {'permanence', 'count_constancy', 'f1', 'caption shape', 'caption material', 'caption overall'} <= kept.keys()
  for name, change in kept.items():
    assert change > -LOST.get(name, .05), name
  for name, times in (('pos_err', 5), ('vel_err', 5), ('g_err', 4)):
    assert result['scores'][name][1] < times * result['scores'][name][0]
  sound = {name: np.array(values) for name, values in result['sound'].items()}
  assert len(sound['found']) >= 20 and np.median(sound['delay_ms']) <= 5 and sound['material'].mean() >= 0.95


def test_other_sizes_lengths_and_rates_are_kept_too(shipped):
  truth = clips(4, height=40, width=72, num_frames=21, fps=24.0)
  made = [round_trip.through(clip, *shipped) for clip in truth]
  assert distortion.psnr(round_trip.pictures(truth, made)) >= 31
