"""The picture of a record: signed distances, coverage, and "over" composition.

With r the half-height and x, y measured from the shape's centre in widths, y down:
  circle    sqrt(x² + y²) - r
  square    max(|x|, |y|) - r
  triangle  max(y - r, (√3 |x| - y - r)/2)     base on y = +r, height 2 r
coverage = clip(1/2 - distance in pixels, 0, 1); pixel' = pixel + coverage (colour - pixel), in object order, the pillar
last; quantised once at the end. So centroids carry the position to a small part of a pixel.

A moving camera also shows floor and walls as thin brown lines, and a fixed field of landmark dots, too faint to be
taken for an object. Only the pixels around a shape are visited, for all frames at once.
"""
import math

import numpy as np

from veojax.data import world_view
from veojax.data.world import BACKGROUND, BROWN, COLOURS
from veojax.data.world_physics import Record

LINE = .012            # thickness of floor and walls, in widths
DOT_RADIUS = .012
DOT_SPACING = .2
DOT_COLOUR = tuple(c + .06 for c in BACKGROUND)


def picture(record: Record) -> np.ndarray:
  """uint8[F, H, W, 3], RGB."""
  scene = record.scene
  times = scene.frame_times
  canvas = _Canvas(scene.num_frames, scene.height, scene.width)
  if scene.level == 'L7':
    _draw_room(canvas, scene, times)
  centre, zoom = world_view.screen(record, times)
  frames = np.arange(scene.num_frames)
  for i, thing in enumerate(scene.objects):
    reach = thing.half_width / thing.radius
    canvas.shapes(thing.shape, frames, centre[:, i], thing.radius * zoom, reach, COLOURS[thing.colour])
  edges = world_view.pillars(record, times)
  for i in range(edges.shape[1]):
    canvas.rectangle(edges[:, i, 0], edges[:, i, 1], None, None, BROWN)
  return canvas.quantise()


def _draw_room(canvas, scene, times):
  """The landmarks and lines of a clip with a camera, given in the world's coordinates."""
  x, y, z = scene.camera.path(times).T
  to_x, to_y = (lambda v: (v - x) * z + .5), (lambda v: (v - y) * z + scene.aspect / 2)
  dots = landmarks(scene.aspect)
  place = np.stack([to_x(dots[:, :1]), to_y(dots[:, 1:])], -1)  # [dots, F, 2]
  seen = ((place > -.1) & (place < np.array([1.1, scene.aspect + .1]))).all(-1)
  frames = np.broadcast_to(np.arange(len(times)), seen.shape)
  canvas.shapes('circle', frames[seen], place[seen], np.broadcast_to(DOT_RADIUS * z, seen.shape)[seen], 1., DOT_COLOUR)
  low, high = (to_x(-LINE), to_x(1 + LINE)) if scene.walls else (None, None)
  canvas.rectangle(low, high, to_y(scene.aspect), to_y(scene.aspect + LINE), BROWN)
  roof = to_y(0.) if scene.ceiling else None
  if scene.ceiling:
    canvas.rectangle(low, high, to_y(-LINE), roof, BROWN)
  if scene.walls:
    canvas.rectangle(low, to_x(0.), roof, to_y(scene.aspect), BROWN)
    canvas.rectangle(to_x(1.), high, roof, to_y(scene.aspect), BROWN)


def landmarks(aspect: float) -> np.ndarray:
  """float64[N, 2]: the dots' centres in the world, a jittered grid, the same for every clip of this aspect ratio."""
  x = np.arange(-.8, 1.8, DOT_SPACING)
  y = np.arange(-.8, aspect + .8, DOT_SPACING)
  grid = np.stack(np.meshgrid(x, y, indexing='ij'), -1).reshape(-1, 2)
  return grid + np.random.default_rng(0).uniform(-.3, .3, grid.shape) * DOT_SPACING


class _Canvas:
  """Frames in float32 on a scale of 255, with one pixel more at the end that takes what falls outside."""

  def __init__(self, num_frames, height, width):
    self.shape = (num_frames, height, width, 3)
    self.flat = np.empty((num_frames * height * width + 1, 3), np.float32)
    self.video = self.flat[:-1].reshape(self.shape)
    row = np.tile(np.float32(BACKGROUND) * 255, width)
    self.video.reshape(-1, len(row))[:] = row  # rows are filled faster than pixels
    self.flat[-1] = row[:3]

  def shapes(self, shape, frames, centre, radius, reach, colour):
    """Draws M shapes: frames int[M], centre float[M, 2] and radius float[M] in widths; reach is half-width/radius."""
    if len(frames) == 0:
      return
    _, height, width, _ = self.shape
    radius = radius * width
    cx, cy = centre[:, 0] * width, centre[:, 1] * width
    across, down = (math.ceil(2 * radius.max() * k) + 3 for k in (reach, 1.))
    ix = np.floor(cx - radius * reach - 1).astype(np.int64)[:, None] + np.arange(across)
    iy = np.floor(cy - radius - 1).astype(np.int64)[:, None] + np.arange(down)
    x, y = (ix + .5 - cx[:, None])[:, None, :], (iy + .5 - cy[:, None])[:, :, None]
    cover = np.clip(.5 - _distance(shape, x, y, radius[:, None, None]), 0., 1.).astype(np.float32)
    inside_x, inside_y = (ix >= 0) & (ix < width), (iy >= 0) & (iy < height)
    drawn = (cover > 0) & inside_x[:, None, :] & inside_y[:, :, None]
    index = ((frames * height)[:, None, None] + iy[:, :, None]) * width + ix[:, None, :]
    index, cover = index[drawn], cover[drawn][:, None]
    pixels = self.flat[index]
    self.flat[index] = pixels + cover * (np.float32(colour) * 255 - pixels)

  def rectangle(self, left, right, top, bottom, colour):
    """Edges float[F] in widths, or None for one beyond the frame; coverage is the part of a pixel that lies inside."""
    _, height, width, _ = self.shape
    across, down = _overlap(left, right, width, width), _overlap(top, bottom, height, width)
    rows, columns = np.nonzero((down > 0).any(0))[0], np.nonzero((across > 0).any(0))[0]
    if len(rows) == 0 or len(columns) == 0:
      return
    rows, columns = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    cover = (down[:, rows, None] * across[:, None, columns])[..., None]
    part = self.video[:, rows, columns]
    part += cover * (np.float32(colour) * 255 - part)

  def quantise(self):
    self.flat += .5
    return self.flat[:-1].astype(np.uint8).reshape(self.shape)


def _distance(shape, x, y, r):
  """Signed distance in pixels of offsets x, y from the centre of a shape of half-height r."""
  if shape == 'circle':
    return np.sqrt(x * x + y * y) - r
  if shape == 'square':
    return np.maximum(np.abs(x), np.abs(y)) - r
  return np.maximum(y - r, .5 * (math.sqrt(3) * np.abs(x) - y - r))


def _overlap(low, high, num_pixels, scale):
  """float32[F or 1, num_pixels]: the part of each pixel that lies between low and high."""
  edge = np.arange(num_pixels, dtype=np.float64)
  a = edge if low is None else np.maximum(edge, np.asarray(low)[:, None] * scale)
  b = edge + 1 if high is None else np.minimum(edge + 1, np.asarray(high)[:, None] * scale)
  return np.atleast_2d(np.clip(b - a, 0., 1.)).astype(np.float32)
