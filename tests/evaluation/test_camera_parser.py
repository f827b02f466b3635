"""The camera's path is recovered from the background, and a picture that stands still has none."""
import numpy as np
import pytest

from veojax.data import world, world_clip
from veojax.evaluation import camera_parser

CONFIG = world.WorldConfig(levels=('L7',), split='test', num_frames=17)


@pytest.fixture(scope='module')
def clips():
  found = {}
  for seed in range(40):
    clip = world_clip.make(seed, CONFIG)
    found.setdefault(clip.info['camera']['move'], clip)
  return found


def test_every_move_is_recognised_with_its_speed(clips):
  assert set(clips) == set(world.CAMERA_MOVES) - {'static'}
  for move, clip in clips.items():
    truth = np.array(clip.info['camera']['values'])
    path = camera_parser.path(clip.video)
    assert camera_parser.move(path, clip.fps) == move
    velocity, rate = camera_parser.speeds(path, clip.fps)
    asked, asked_rate = camera_parser.speeds(truth, clip.fps)
    assert np.hypot(*(velocity / truth[0, 2] - asked)) < .03 and abs(rate - asked_rate) < .1, move


def test_a_still_picture_has_no_path_and_moving_objects_are_no_camera(clips):
  clip = clips['pan left']
  frozen = np.repeat(clip.video[:1], 5, axis=0)
  assert np.allclose(camera_parser.path(frozen), [0, 0, 1], atol=1e-3)
  plain = world_clip.make(0, world.WorldConfig(levels=('L2',), split='test', num_frames=9))
  assert camera_parser.move(camera_parser.path(plain.video), plain.fps) == 'static'
