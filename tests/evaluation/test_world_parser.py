"""The parser on small renderings whose truth is known, sharp and blurred, and on pictures that show no world at all."""
import numpy as np
import pytest

from veojax.data import world
from veojax.evaluation import world_parser
from veojax.evaluation.world_parser import LOOSE, STRICT


def draw(objects, *, num_frames=5, height=64, width=64, blur=0., gain=1., noise=0., pillar=None) -> np.ndarray:
  """uint8 video of (colour, shape, radius, position, step per frame), by signed distance; blur in pixels."""
  x, y = (np.arange(width) + .5) / width, (np.arange(height)[:, None] + .5) / width
  video = np.zeros((num_frames, height, width, 3)) + world.BACKGROUND
  for colour, shape, r, position, step in objects:
    for k in range(num_frames):
      dx, dy = x - position[0] - k * step[0], y - position[1] - k * step[1]
      distance = {
        'circle': np.hypot(dx, dy) - r, 'square': np.maximum(abs(dx), abs(dy)) - r,
        'triangle': np.maximum(dy - r, (np.sqrt(3) * abs(dx) - dy - r) / 2),
      }[shape]
      alpha = np.clip(.5 - distance * width, 0, 1)[..., None]
      video[k] += alpha * (np.array(world.COLOURS[colour]) - video[k])
  if pillar:
    video[:, :, (x > pillar[0]) & (x < pillar[1])] = world.BROWN
  if blur:
    for size, axis in ((height, 1), (width, 2)):
      place = np.arange(size)
      kernel = np.exp(-(place[:, None] - place)**2 / (2 * blur**2))
      video = np.moveaxis(np.moveaxis(video, axis, -1) @ (kernel / kernel.sum(0)), -1, axis)
  video = world.BACKGROUND + gain * (video - world.BACKGROUND)
  video += np.random.default_rng(0).normal(0, noise, video.shape) if noise else 0
  return np.round(np.clip(video, 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize('height, width', [(48, 48), (64, 64), (36, 64), (96, 128)])
@pytest.mark.parametrize('shape', world.SHAPES)
def test_positions_sizes_and_shapes_of_sharp_pictures(shape, height, width):
  a = height / width
  objects = [(c, shape, world.RADII[s], (x, .45 * a), (.01, .004))
             for c, s, x in (('red', 'small', .2), ('cyan', 'large', .65))]
  seen = world_parser.parse(draw(objects, height=height, width=width), 8)
  assert set(seen.tracks) == {'red', 'cyan'} and (seen.counts == 2).all() and seen.pillar is None
  for colour, _, r, position, step in objects:
    track = seen.tracks[colour]
    truth = np.array(position) + np.arange(5)[:, None] * step
    assert np.abs(track.positions - truth).max() < .1 / width + .001
    assert track.shape == shape and world.RADII[world_parser.size(track.radius)] == r
    assert abs(track.radius - r) < .003


@pytest.mark.parametrize('colour', world.COLOURS)
@pytest.mark.parametrize('shape', world.SHAPES)
def test_blurred_dim_and_noisy_pictures(shape, colour):
  video = draw([(colour, shape, .085, (.3, .6), (.02, -.01))], blur=1.6, gain=.8, noise=.03)
  seen = world_parser.parse(video, 8, LOOSE)
  assert set(seen.tracks) == {colour}
  track = seen.tracks[colour]
  assert track.shape == shape and world_parser.size(track.radius) == 'small'
  assert np.abs(track.positions - [[.3 + .02 * k, .6 - .01 * k] for k in range(5)]).max() < .01


def test_an_object_that_is_gone_is_missing():
  video = draw([('green', 'square', .125, (.5, .5), (0, 0))])
  video[3:] = draw([])[3:]
  track = world_parser.parse(video, 8).tracks['green']
  assert track.present.tolist() == [True, True, True, False, False] and np.isnan(track.positions[3:]).all()


@pytest.mark.parametrize('size', [4, 5])
def test_speckle_of_the_same_colour_does_not_move_an_object(size):
  video = draw([('red', 'circle', .125, (.3, .5), (0, 0))])
  video[:, 5:5 + size, 55:55 + size] = np.round(255 * np.array(world.COLOURS['red'])).astype(np.uint8)
  track = world_parser.parse(video, 8).tracks['red']
  assert np.abs(track.positions - [.3, .5]).max() < .002
  assert (track.doubled == (size**2 / 64**2 >= STRICT.min_area)).all()


@pytest.mark.parametrize('config', [STRICT, LOOSE])
@pytest.mark.parametrize('shape', world.SHAPES)
@pytest.mark.parametrize('side', [-1, 1])
def test_a_second_object_of_a_colour_is_a_double_and_the_track_stays_with_the_first(side, shape, config):
  first = ('red', shape, .125, (.5 - .22 * side, .4), (.004, .01))
  second = ('red', shape, .125, (.5 + .22 * side, .4), (.004, .01))
  alone, both = draw([first], num_frames=8), draw([first, second], num_frames=8)
  video = np.concatenate([alone[:2], both[2:7], alone[7:]])
  truth, track = (world_parser.parse(v, 8, config).tracks['red'] for v in (alone, video))
  assert track.doubled.tolist() == [False] * 2 + [True] * 5 + [False] and not truth.doubled.any()
  assert np.abs(track.positions - truth.positions).max() < .003 and np.abs(track.areas / truth.areas - 1).max() < .02
  assert track.shape == truth.shape == shape and (track.whole == truth.whole).all()


@pytest.mark.parametrize('config', [STRICT, LOOSE])
def test_neither_a_pillar_nor_another_object_in_front_of_an_object_makes_two_of_it(config):
  behind = ('red', 'square', .125, (.2, .5), (.04, 0))
  for blur in (0., 1.2):
    passing = draw([behind], num_frames=16, pillar=(.4, .68), blur=blur)
    crossed = draw([behind, ('white', 'triangle', .085, (.5, .5), (0, 0))], num_frames=16, blur=blur)
    for video in (passing, crossed):
      assert not world_parser.parse(video, 8, config).tracks['red'].doubled.any()


def test_a_pillar_is_seen_and_is_no_object():
  seen = world_parser.parse(draw([('white', 'circle', .085, (.2, .5), (0, 0))], pillar=(.5, .7)), 8)
  assert set(seen.tracks) == {'white'} and np.allclose(seen.pillar, (.5, .7), atol=.03)


def test_an_object_cut_by_the_frame_keeps_its_shape():
  square = draw([('blue', 'square', .125, (.5, .92), (0, 0))])
  assert world_parser.parse(square, 8, LOOSE).tracks['blue'].shape == 'square'


@pytest.mark.parametrize('config', [STRICT, LOOSE])
def test_black_grey_and_noise_have_no_persistent_objects(config):
  rng = np.random.default_rng(0)
  black = np.zeros((5, 64, 64, 3), np.uint8)
  assert not world_parser.parse(black, 8, config).tracks
  noise = rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
  assert not world_parser.parse(noise, 8, config).tracks


def test_a_picture_that_is_not_uint8_is_refused():
  with pytest.raises(ValueError, match='float64'):
    world_parser.parse(np.zeros((1, 8, 8, 3)), 8)
