"""The picture against the record: where things are, what hides them, how the camera maps them."""
import dataclasses
import math

import numpy as np
import pytest

from veojax.data import world_view
from veojax.data.world import BACKGROUND, BROWN, COLOURS, Camera, Object, Scene, WorldConfig
from veojax.data.world_physics import simulate
from veojax.data.world_render import landmarks, picture
from veojax.data.world_scene import sample

AREA = {'circle': math.pi, 'square': 4., 'triangle': 4 / math.sqrt(3)}


def still(*objects, height=64, width=64, occluders=(), camera=None, level='L0', num_frames=1, walls=True):
  aspect = height / width
  camera = camera or Camera('static', ((0., .5, aspect / 2, 1.), (1., .5, aspect / 2, 1.)))
  return simulate(Scene(
      0, 'train', level, level, height, width, num_frames, 16., 0, 0., .08, walls, True, objects, occluders, camera))


def thing(shape='circle', colour='red', radius=.1, x=.5, y=.5, vx=0., vy=0.):
  return Object(shape, colour, 'small', 'wood', radius, (x, y), (vx, vy))


def coverage(video, colour):
  """How far each pixel is from the background towards the colour, 0 to 1."""
  ray = np.subtract(COLOURS[colour], BACKGROUND)
  return np.clip((video / 255. - BACKGROUND) @ ray / (ray @ ray), 0, 1)


@pytest.mark.parametrize('shape', ['circle', 'square', 'triangle'])
@pytest.mark.parametrize('size', [(64, 64), (45, 80), (121, 67)])
def test_area_and_centroid_are_those_of_the_shape(shape, size):
  height, width = size
  x, y = .4137, .52 * height / width
  cover = coverage(picture(still(thing(shape, x=x, y=y), height=height, width=width))[0], 'red')
  assert cover.sum() / width**2 == pytest.approx(AREA[shape] * .01, rel=.02)
  rows, columns = np.mgrid[:height, :width]
  below = .1 / 3 if shape == 'triangle' else 0.
  assert (cover * (columns + .5)).sum() / cover.sum() / width == pytest.approx(x, abs=1e-3)
  assert (cover * (rows + .5)).sum() / cover.sum() / width == pytest.approx(y + below, abs=2e-3)


def test_the_base_of_every_shape_stands_on_the_floor():
  for shape in AREA:
    cover = coverage(picture(still(thing(shape, y=.9)))[0], 'red')
    assert cover[-1].max() > .9
    cover = coverage(picture(still(thing(shape, y=.9 - 2 / 64)))[0], 'red')
    assert cover[-1].max() < .01 and cover[-3].max() > .9


def test_what_lies_outside_the_frame_leaves_no_trace():
  empty = picture(still(thing(x=-.3)))
  assert (empty == np.round(np.array(BACKGROUND) * 255)).all()
  whole = coverage(picture(still(thing(x=.5)))[0], 'red').sum()
  for place in ({'x': 0.}, {'x': 1.}, {'y': 0.}, {'y': 1.}):
    assert coverage(picture(still(thing(**place)))[0], 'red').sum() == pytest.approx(whole / 2, rel=.01)


def test_later_objects_and_the_pillar_cover_earlier_ones():
  record = still(thing('square'), thing('square', 'green', radius=.05), occluders=((.45, .55),))
  frame = picture(record)[0]
  assert (frame[32, 32] == np.round(np.array(BROWN) * 255)).all()
  front = dataclasses.replace(record, scene=dataclasses.replace(record.scene, occluders=()))
  assert (picture(front)[0][32, 32] == np.round(np.array(COLOURS['green']) * 255)).all()
  assert (frame[0, 29:35] == np.round(np.array(BROWN) * 255)).all(), 'the pillar has the full height'


def test_visibility_is_the_area_left_by_frame_and_pillar():
  rng = np.random.default_rng(0)
  points = rng.uniform(-1, 1, (400_000, 2))
  points = points[(points**2).sum(1) < 1]
  for _ in range(12):
    x, y = rng.uniform(-.15, 1.15, 2)
    x0 = rng.uniform(0, .9)
    record = still(thing(radius=.12, x=x, y=y), occluders=((x0, x0 + .1),))
    px, py = (points * .12 + (x, y)).T
    left = (px > 0) & (px < 1) & (py > 0) & (py < 1) & ~((px > x0) & (px < x0 + .1))
    assert world_view.visibility(record, [0.])[0, 0] == pytest.approx(left.mean(), abs=4e-3)


def test_visibility_agrees_with_the_pixels():
  config = WorldConfig(levels=('L6',), max_objects=1, height=128, width=128, num_frames=17, fps=8)
  for seed in range(12):
    record = simulate(sample(seed, config))
    one = record.scene.objects[0]
    seen = coverage(picture(record), one.colour).sum((1, 2)) / (AREA[one.shape] * (one.radius * 128)**2)
    # The closed form is the disc's; the corners of the other shapes reach further.
    error = np.abs(seen - world_view.visibility(record, record.scene.frame_times)[:, 0])
    assert error.max() < (.02 if one.shape == 'circle' else .25)


def test_passing_behind_a_pillar_is_timed_exactly():
  mover = thing(x=.2, vx=.5)
  record = still(mover, occluders=((.4, .7),), num_frames=32)
  events = world_view.visibility_events(record)
  assert [event['kind'] for event in events] == ['hidden', 'reappear']
  np.testing.assert_allclose([event['time'] for event in events], [(.5 - .2) / .5, (.6 - .2) / .5], atol=1e-10)
  times = record.scene.frame_times
  gone = (times >= events[0]['time']) & (times <= events[1]['time'])
  left_part = coverage(picture(record), 'red')[:, :, :25].sum((1, 2))
  np.testing.assert_array_equal(left_part == 0, times * .5 + .2 - .1 >= 25.5 / 64)
  np.testing.assert_array_equal(world_view.visibility(record, times)[:, 0] < 1e-12, gone)


def test_entering_and_leaving_are_timed_exactly():
  record = still(thing(x=-.2, vx=.8), num_frames=32, walls=False)
  events = world_view.visibility_events(record)
  assert [(event['kind'], event['side']) for event in events] == [('enter', 'left'), ('exit', 'right')]
  np.testing.assert_allclose([event['time'] for event in events], [.1 / .8, 1.3 / .8], atol=1e-10)
  for seed in range(5):
    record = simulate(sample(seed, WorldConfig(levels=('L6',))))
    times = record.scene.frame_times
    seen = world_view.visibility(record, times)
    for event in world_view.visibility_events(record):
      edge = np.searchsorted(times, event['time'])
      absent = seen[edge - 1 if event['kind'] == 'enter' else min(edge, len(times) - 1), event['instance']]
      assert absent < .2


@pytest.mark.parametrize('move', [
    Camera('pan right', ((0., .3, .5, 1.), (1., .7, .5, 1.))), Camera('zoom in', ((0., .5, .5, .8), (1., .5, .5, 1.3))),
    Camera('pan up', ((0., .5, .6, .9), (1., .5, .4, .9)), 'smoothstep')])
def test_the_camera_maps_what_is_drawn(move):
  record = still(thing(x=.53, y=.46, colour='green'), camera=move, level='L7', num_frames=17, height=128, width=128)
  times = record.scene.frame_times
  x, y, z = move.path(times).T
  cover = coverage(picture(record), 'green')
  cover = np.where(cover > .35, cover, 0)  # without the lines and the dots
  rows, columns = np.mgrid[:128, :128]
  total = cover.sum((1, 2))
  np.testing.assert_allclose((cover * (columns + .5)).sum((1, 2)) / total / 128, (.53 - x) * z + .5, atol=.01)
  np.testing.assert_allclose((cover * (rows + .5)).sum((1, 2)) / total / 128, (.46 - y) * z + .5, atol=.01)
  assert total[-1] / total[0] == pytest.approx((z[-1] / z[0])**2, rel=.05)


def test_camera_keys_and_easing():
  camera = Camera('zoom in', ((0., .5, .5, .8), (2., .5, .5, 1.25)))
  np.testing.assert_allclose(camera.path([0., 1., 2.])[:, 2], [.8, 1., 1.25])
  eased = Camera('pan left', ((0., .6, .5, 1.), (2., .4, .5, 1.)), 'smoothstep').path([0., .5, 1., 2.])[:, 0]
  np.testing.assert_allclose(eased, [.6, .6 - .2 * (3 / 16 - 2 / 64), .5, .4])


def test_camera_speed_and_zoom_stay_in_range():
  for seed in range(20):
    scene = sample(seed, WorldConfig(levels=('L7',)))
    times = np.linspace(0, scene.duration, 400)
    path = scene.camera.path(times)
    speed = np.linalg.norm(np.diff(path[:, :2], axis=0), axis=1) / np.diff(times)
    assert speed.max() < .2501 and path[:, 2].min() >= .7 and path[:, 2].max() <= 1.4


def test_landmarks_are_seen_with_a_camera_only_and_stay_faint():
  camera = Camera('pan right', ((0., .4, .5, 1.), (1., .6, .5, 1.)))
  record = still(thing(x=-2.), camera=camera, level='L7', num_frames=16, walls=False, height=128, width=128)
  video = picture(record) / 255.
  middle = video[:, 5:-5]  # between floor and ceiling
  rise = middle - BACKGROUND
  assert .03 < rise.max() < .0625
  assert np.linalg.norm(rise, axis=-1).max() < .12
  # A dot that is in view stands where the camera puts it.
  x, y = next(dot for dot in landmarks(1.) if .45 < dot[0] < .55 and .2 < dot[1] < .8)
  for k in (0, 15):
    column = ((x - camera.path([k / 16.])[0, 0]) + .5) * 128
    assert rise[k, int(y * 128) - 5, int(column)].max() > .03
  assert (picture(still(thing(x=-2.))) == np.round(np.array(BACKGROUND) * 255)).all()
