"""What of a record is to be seen: the screen position of every object, its visible fraction, its comings and goings.

Screen coordinates are the world's after the camera: 1 wide, `aspect` high, origin at the top-left corner of the frame.
"""
import math

import numpy as np

from veojax.data.world_physics import Record

GRID = .002  # seconds between the samples among which comings and goings are sought; each is then bisected


def screen(record: Record, times) -> tuple[np.ndarray, np.ndarray]:
  """times float[T] → centres float64[T, objects, 2] on the screen, zoom float64[T]."""
  scene = record.scene
  positions, _ = record.states(times)
  path = scene.camera.path(times)
  zoom = path[:, 2]
  middle = np.array([.5, scene.aspect / 2])
  return (positions - path[:, None, :2]) * zoom[:, None, None] + middle, zoom


def pillars(record: Record, times) -> np.ndarray:
  """float64[T, occluders, 2]: left and right edge of every pillar on the screen."""
  path = record.scene.camera.path(times)
  edges = np.array(record.scene.occluders, np.float64).reshape(-1, 2)
  return (edges[None] - path[:, None, None, 0]) * path[:, None, None, 2] + .5


def visibility(record: Record, times) -> np.ndarray:
  """float64[T, objects]: the fraction of each object's disc in the frame and beside every pillar, in closed form."""
  scene = record.scene
  centre, zoom = screen(record, times)
  r = np.array([thing.radius for thing in scene.objects]) * zoom[:, None]
  left, right = -centre[..., 0] / r, (1 - centre[..., 0]) / r
  top, bottom = -centre[..., 1] / r, (scene.aspect - centre[..., 1]) / r
  area = _rectangle(left, right, top, bottom)
  edges = pillars(record, times)
  for i in range(edges.shape[1]):
    x0, x1 = ((edges[:, None, i, k] - centre[..., 0]) / r for k in (0, 1))
    area = area - _rectangle(np.clip(x0, left, right), np.clip(x1, left, right), top, bottom)
  return np.clip(area / math.pi, 0., 1.)


def _rectangle(left, right, top, bottom):
  """Area of the unit disc inside left < x < right, top < y < bottom."""
  return _quadrant(right, bottom) - _quadrant(left, bottom) - _quadrant(right, top) + _quadrant(left, top)


def _quadrant(u, v):
  """Area of the unit disc where x < u and y < v."""
  u, v = np.clip(u, -1., 1.), np.clip(v, -1., 1.)
  half_u, half_v = _half(u), _half(v)
  inside = .5 * (half_u + half_v) - math.pi / 4 + u * v
  # Where the corner (u, v) lies outside the disc the two cuts do not meet.
  both = np.where(u >= 0, np.where(v >= 0, half_u + half_v - math.pi, half_v), np.where(v >= 0, half_u, 0.))
  return np.where(u * u + v * v <= 1, inside, both)


def _half(u):
  return u * np.sqrt(1 - u * u) + np.arcsin(u) + math.pi / 2


def _absent(record, times):
  """bool[T, 2, objects]: wholly outside the frame; wholly behind a pillar. By the box in which the shape is drawn."""
  scene = record.scene
  centre, zoom = screen(record, times)
  half = np.array([[thing.half_width, thing.radius] for thing in scene.objects]) * zoom[:, None, None]
  low, high = centre - half, centre + half
  outside = (high <= 0).any(-1) | (low[..., 0] >= 1) | (low[..., 1] >= scene.aspect)
  edges = pillars(record, times)
  hidden = (low[:, :, None, 0] >= edges[:, None, :, 0]) & (high[:, :, None, 0] <= edges[:, None, :, 1])
  return np.stack([outside, hidden.any(-1)], 1)


def visibility_events(record: Record) -> list[dict]:
  """Every 'enter', 'exit', 'hidden', 'reappear' in (0, duration): dict(time, kind, instance, side), in order of time.

  Times are found to 1e-12 s by bisection; an absence shorter than GRID may be missed. side: where an object comes in or
  leaves ('left', 'right', 'top', 'bottom'); '' for those of a pillar.
  """
  duration, aspect = record.scene.duration, record.scene.aspect
  grid = np.linspace(0., duration, max(2, math.ceil(duration / GRID) + 1))
  absent = _absent(record, grid)
  k, what, which = np.nonzero(absent[1:] != absent[:-1])
  before, found = absent[k, what, which], []
  times = _bisect(record, grid[k], grid[k + 1], what, which, before)
  centre = screen(record, times)[0] if len(k) else ()
  for time, crossed, i, was, (x, y) in zip(times, what, which, before, (at[i] for at, i in zip(centre, which))):
    beyond = {'left': -x, 'right': x - 1, 'top': -y, 'bottom': y - aspect}
    found.append({'time': float(time), 'kind': (('exit', 'enter'), ('hidden', 'reappear'))[crossed][int(was)],
                  'instance': int(i), 'side': '' if crossed else max(beyond, key=beyond.get)})
  return sorted(found, key=lambda event: (event['time'], event['instance']))


def _bisect(record, low, high, what, which, before):
  """float64[M]: when each of M absences, that are `before` at `low` and not at `high`, ends or begins."""
  while True:
    middle = .5 * (low + high)
    wide = (high - low > 1e-12) & (middle != low) & (middle != high)
    if not wide.any():
      return high
    same = _absent(record, middle)[np.arange(len(middle)), what, which] == before
    low, high = np.where(wide & same, middle, low), np.where(wide & ~same, middle, high)
