"""A clip of the world as the rest of the project receives it."""
import json

import numpy as np
import pytest

from veojax.data.world import LEVELS, WorldConfig
from veojax.data.world_clip import make


def test_a_clip_is_a_function_of_its_seed():
  config = WorldConfig(levels=LEVELS, num_frames=9)
  for seed in range(6):
    one, two = make(seed, config), make(seed, config)
    np.testing.assert_array_equal(one.video, two.video)
    np.testing.assert_array_equal(one.audio, two.audio)
    assert one.text == two.text and one.text and one.info == two.info


def test_the_record_is_json_and_agrees_with_the_clip():
  for seed in range(8):
    clip = make(seed, WorldConfig(levels=LEVELS, num_frames=17, fps=(8, 16), height=(36, 64), width=64))
    info = json.loads(json.dumps(clip.info))
    assert info == clip.info
    assert clip.video.shape == (info['num_frames'], info['height'], info['width'], 3)
    assert len(clip.audio) == round(info['num_frames'] / info['fps'] * info['sample_rate'])
    assert clip.fps == info['fps'] and clip.sample_rate == info['sample_rate']
    for thing in info['objects']:
      assert np.shape(thing['positions']) == np.shape(thing['velocities']) == (17, 2)
      assert len(thing['visibility']) == 17 and len(thing['segments']) == len(thing['modes'])
    for event in info['events']:
      assert event['frame'] / info['fps'] <= event['time'] < info['duration']
    assert len(info['sounds']) == sum(len(event['instances']) for event in info['events'])
    assert np.shape(info['camera']['values']) == (17, 3)
    assert info['fields']


@pytest.mark.parametrize('height, width, num_frames, fps', [(1, 1, 1, 1), (33, 57, 5, 12.5), (128, 48, 2, 30)])
def test_any_size_rate_and_length(height, width, num_frames, fps):
  clip = make(0, WorldConfig(levels=('L2',), height=height, width=width, num_frames=num_frames, fps=fps))
  assert clip.video.shape == (num_frames, height, width, 3)
  assert (clip.audio is None) == (num_frames == 1)


def test_a_still_image_shows_its_objects():
  for level in LEVELS:
    clip = make(1, WorldConfig(levels=(level,), num_frames=1))
    assert clip.audio is None and clip.sample_rate == 0
    assert all(thing['visibility'][0] > .25 for thing in clip.info['objects']), level


def test_the_first_frames_of_a_faster_clip_are_those_of_a_slower_one():
  slow = make(5, WorldConfig(num_frames=8, fps=8))
  fast = make(5, WorldConfig(num_frames=16, fps=16))
  np.testing.assert_array_equal(slow.video, fast.video[::2])
  np.testing.assert_array_equal(slow.audio, fast.audio)
