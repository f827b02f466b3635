"""What is drawn from a seed, and what a configuration may ask for."""
import dataclasses
import itertools

import numpy as np
import pytest

from veojax.data import world_view
from veojax.data.world import COLOURS, LEVELS, SHAPES, SPLITS, WorldConfig
from veojax.data.world_physics import simulate
from veojax.data.world_scene import held_out, sample


def drawn(config, seeds=range(25)):
  return [sample(seed, config) for seed in seeds]


def test_a_scene_is_a_function_of_seed_and_config():
  config = WorldConfig(levels=LEVELS)
  assert drawn(config) == drawn(config)
  assert len(set(drawn(config))) == 25


def test_format_is_drawn_apart_from_content():
  fixed = drawn(WorldConfig(levels=LEVELS, width=64, height=64))
  free = drawn(WorldConfig(levels=LEVELS, width=(64,), height=(64, 64), fps=(16., 16.)))
  assert fixed == free
  sizes = {(s.width, s.height, s.fps, s.num_frames) for s in drawn(
      WorldConfig(width=(64, 96), height=(48, 64), fps=(8, 16), num_frames=(17, 33)))}
  assert len(sizes) > 8


def test_train_and_test_share_no_scene():
  for one, two in zip(drawn(WorldConfig()), drawn(WorldConfig(split='test'))):
    assert one.objects != two.objects


def test_colours_differ_and_held_out_pairs_stay_out():
  for config in (WorldConfig(levels=LEVELS), WorldConfig(levels=LEVELS, split='test')):
    for scene in drawn(config):
      pairs = [(thing.colour, thing.shape) for thing in scene.objects]
      assert len({colour for colour, _ in pairs}) == len(pairs)
      assert not any(held_out(*pair) for pair in pairs)
  assert [sum(held_out(c, s) for s in SHAPES) for c in COLOURS] == [1] * len(COLOURS)


@pytest.mark.parametrize('change', [
    {}, {'min_objects': 3}, {'min_objects': 4, 'max_objects': 4, 'levels': ('L3', 'L5', 'L6')}])
def test_all_that_the_split_combination_shows_is_held_out(change):
  config = dataclasses.replace(WorldConfig(levels=('L1', 'L2', 'L3', 'L4'), split='combination'), **change)
  scenes = drawn(config, range(64))
  for scene in scenes:
    assert all(held_out(thing.colour, thing.shape) for thing in scene.objects)
    assert len({thing.colour for thing in scene.objects}) == len(scene.objects)
  assert max(len(scene.objects) for scene in scenes) >= 3


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('aspect', [(36, 64), (64, 64), (112, 64), (16, 64), (2, 96), (128, 16)])
def test_every_split_and_aspect_can_be_drawn(split, aspect):
  levels = tuple(level for level in LEVELS if (split, level) != ('count', 'L2'))
  for scene in drawn(WorldConfig(levels=levels, split=split, height=aspect[0], width=aspect[1]), range(4)):
    assert len(scene.objects) == 4 or split != 'count'
    inside = [thing for thing in scene.objects if scene.content != 'L6']
    assert all(thing.half_width <= thing.position[0] <= 1 - thing.half_width for thing in inside)
    assert all(thing.radius <= thing.position[1] <= scene.aspect - thing.radius + 1e-12 for thing in inside)


def test_velocities_of_the_splits():
  for scene in drawn(WorldConfig(levels=('L2',), split='v_zero'), range(8)):
    assert scene.objects[0].velocity == (0., 0.)
  for scene in drawn(WorldConfig(levels=('L2',), split='v_out'), range(8)):
    assert abs(scene.objects[0].velocity[0]) > .6
  for scene in drawn(WorldConfig(levels=('L2',), split='r_out'), range(8)):
    assert scene.objects[0].radius in (.065, .145)


@pytest.mark.parametrize('num_frames', [20, 33])
def test_levels_show_what_they_are_for(num_frames):
  share = {}
  for level in LEVELS:
    shown = []
    for scene in drawn(WorldConfig(levels=(level,), num_frames=num_frames), range(20)):
      record = simulate(scene)
      kinds = {event.kind for event in record.events}
      visible = [event['kind'] for event in world_view.visibility_events(record)]
      shown.append({'L0': not kinds, 'L1': scene.gravity == 0, 'L2': len(scene.objects) == 1 and 'floor' in kinds,
                    'L3': 'pair' in kinds, 'L4': 'hidden' in visible and 'reappear' in visible,
                    'L5': any('rolling' in modes for modes in record.modes), 'L6': 'enter' in visible,
                    'L7': scene.camera.move != 'static'}[level])
    share[level] = np.mean(shown)
  assert all(part >= .9 for part in share.values()), share


def test_colliding_objects_are_circles():
  for scene in drawn(WorldConfig(levels=('L3', 'L5', 'L6'))):
    for event in simulate(scene).events:
      if event.kind == 'pair':
        assert all(scene.objects[i].shape == 'circle' for i in event.instances)


def test_nothing_overlaps_at_the_start():
  for scene in drawn(WorldConfig(levels=LEVELS, min_objects=2)):
    for one, two in itertools.combinations(scene.objects, 2):
      assert np.hypot(*np.subtract(one.position, two.position)) > one.radius + two.radius


@pytest.mark.parametrize('change, word', [
    ({'levels': ('L9',)}, 'L0'), ({'levels': ()}, 'L0'), ({'split': 'valid'}, 'train'), ({'min_objects': 0}, 'min'),
    ({'max_objects': 1}, 'L3'), ({'num_frames': 0}, 'num_frames'), ({'fps': ()}, 'fps'), ({'width': (64, -1)}, 'width'),
    ({'sample_rate': 100}, '4000'), ({'fps_min': 0}, 'fps_min'), ({'split': 'count'}, 'L2')])
def test_bad_configurations_are_refused_with_the_remedy(change, word):
  with pytest.raises(ValueError, match=word):
    dataclasses.replace(WorldConfig(), **change)
  with pytest.raises(ValueError, match='seed=-1'):
    sample(-1, WorldConfig())
