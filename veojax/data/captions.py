"""Captions of the world: the record of a clip → observable facts (`fields`) → English (`write`), and back (`read`).

Conventions:
  - Only what can be seen or heard is a fact. Impacts are counted when they are seen, and at least three frames from
    the next impact on the same object; where some are not, the count is 'some', and the text says no number.
  - Objects are named by colour, which no two objects of a clip share, and are kept sorted by colour, so that the
    order in which a text mentions them does not matter.
  - Left, right, up and down are on the screen; y points down. Lengths are in frame widths, times in seconds.
  - A text states a part of the fields (`select`); `read(render(stated))` gives that part back exactly.

fields = {count, objects: [{colour, shape, size, material, motion, direction, floor, ceiling, left, right, rests, enter,
exit, behind}], collisions, order: [{kind, actors}], occluder, camera, sound: {silent, hits, timbres, side}}. The
keys floor, ceiling, left and right (walls) are numbers of impacts, and so is collisions (over all pairs).
"""
import numpy as np

from veojax.data.caption_grammar import render
from veojax.data.caption_reader import read

__all__ = ['DENSITIES', 'describe', 'fields', 'read', 'render', 'select', 'write']

DENSITIES = ('short', 'normal', 'dense')
DIRECTION_SPEED = .15  # widths/s: slower than this a motion has no direction
VISIBLE = .25          # share of its area from which an object counts as visible
WHOLE = .85            # and from which what it does is seen


def describe(info: dict, rng: np.random.Generator, family: str = 'train') -> tuple[str, dict]:
  """A caption for a record, and all its fields (JSON-able)."""
  facts = fields(info)
  return write(facts, rng, family=family), facts


def write(facts: dict, rng: np.random.Generator, density: str | None = None, family: str = 'train') -> str:
  """Text that states the fields of one density (drawn when None) in the wording of a family: 'train' or 'test'."""
  return render(select(facts, rng, density), rng, family)


def fields(info: dict) -> dict:
  """Observable facts of a clip's record; see the module's docstring for the keys."""
  shown = [i for i, o in enumerate(info['objects']) if max(o['visibility']) >= VISIBLE]
  objects = sorted((_object_fields(info, i) for i in shown), key=lambda o: o['colour'])
  camera = info.get('camera') or {}
  return {
    'count': len(objects),
    'objects': objects,
    'collisions': _count([e for e in info['events'] if e['kind'] == 'pair'], info),
    'order': _order(info),
    'occluder': bool(info.get('occluders')),
    'camera': str(camera.get('move') or 'static').replace('_', ' '),
    'sound': _sound(info),
  }


def select(facts: dict, rng: np.random.Generator, density: str | None = None) -> dict:
  """The part of the fields that a text of this density states.

  short: objects and what they do. normal: also directions, impacts, pillar, entering and leaving. dense: also order,
  camera and sound. Short texts drop sizes and materials half of the time.
  """
  if density is None:
    density = str(rng.choice(DENSITIES, p=(.25, .45, .3)))
  if density not in DENSITIES:
    raise ValueError(f'density {density!r} is none of {", ".join(DENSITIES)}')
  keys = ['colour', 'shape', 'motion']
  if density != 'short' or rng.random() < .5:
    keys += ['size', 'material']
  if density != 'short':
    keys += ['direction', 'floor', 'ceiling', 'left', 'right', 'rests', 'enter', 'exit', 'behind']
  objects = [{key: o[key] for key in keys if o.get(key)} for o in facts['objects']]
  for o in objects:
    # "bounces" says already that the floor is hit some times.
    if o.get('floor') == 'some' and o.get('motion') == 'bounces':
      del o['floor']
  stated = {'count': facts['count'], 'objects': objects}
  if density != 'short':
    stated |= {key: facts[key] for key in ('collisions', 'occluder') if facts[key]}
  if density == 'dense':
    stated |= {key: facts[key] for key in ('order', 'sound') if facts[key]}
    if facts['camera'] != 'static' or rng.random() < .2:
      stated['camera'] = facts['camera']
  return stated


def screen(info: dict, points, frames=None) -> np.ndarray:
  """World points float[F, 2] (one a frame, or at the given frames) on the screen, in widths.

  camera['values'], where present, is float[F, 3]: the point in the middle of the frame (x, y) and the zoom.
  """
  points = np.asarray(points, np.float64).reshape(-1, 2)
  values = (info.get('camera') or {}).get('values')
  if values is None:
    return points
  values = np.asarray(values, np.float64).reshape(-1, 3)
  if frames is not None:
    values = values[np.clip(frames, 0, len(values) - 1)]
  middle = np.array([.5, info['height'] / info['width'] / 2])
  return (points - values[:, :2]) * values[:, 2:] + middle


def _object_fields(info: dict, index: int) -> dict:
  o = info['objects'][index]
  facts = {key: o[key] for key in ('colour', 'shape', 'size', 'material')}
  events = [e for e in info['events'] if index in e['instances']]
  hits = {
    'floor': [e for e in events if e['kind'] == 'floor'],
    'ceiling': [e for e in events if e['kind'] == 'ceiling'],
    'left': [e for e in events if e['kind'] == 'wall' and e.get('side') == 'left'],
    'right': [e for e in events if e['kind'] == 'wall' and e.get('side') == 'right'],
  }
  facts['motion'] = _motion(info, o)
  facts['direction'] = _direction(info, o)
  for key, group in hits.items():
    facts[key] = _count(group, info, neighbours=events)
  facts['rests'] = _rests(o, facts['motion'])
  return facts | _visibility_fields(info, o)


def _motion(info: dict, o: dict) -> str | None:
  """What an object is seen to do over the clip, as one verb; None in a still image."""
  positions = np.asarray(o['positions'], np.float64)
  if len(positions) < 2:
    return None
  if np.ptp(positions, axis=0).max() < .01:
    return 'still'
  if info['gravity'] == 0:
    return 'drifts'
  height = info['height'] / info['width'] - o['radius'] - positions[:, 1]
  if height.max() < .004:
    return 'rolls' if o['shape'] == 'circle' else 'slides'
  seen = height[np.asarray(o['visibility']) > WHOLE]
  if len(seen) < 3:
    return 'moves'
  # A rise from a place that it had fallen to.
  lowest = np.minimum.accumulate(seen)
  if np.max((seen - lowest)[lowest < seen[0] - .03], initial=0.) > .03:
    return 'bounces'
  return 'falls' if seen[-1] < seen[0] - .02 else 'moves'


def _direction(info: dict, o: dict) -> list[str]:
  """Named directions of the first three visible frames; vertical ones only without gravity."""
  visible = np.flatnonzero(np.asarray(o['visibility']) >= VISIBLE)[:3]
  if len(visible) < 2 or np.ptp(visible) > 2:
    return []
  positions = np.asarray(o['positions'], np.float64)
  seconds = (visible[-1] - visible[0]) / info['fps']
  world = (positions[visible[-1]] - positions[visible[0]]) / seconds
  # A camera may reverse what the screen shows; then neither reading is stated.
  seen = np.diff(screen(info, positions[visible[[0, -1]]], visible[[0, -1]]), axis=0)[0] / seconds
  names = []
  for axis, (negative, positive) in enumerate((('left', 'right'), ('up', 'down'))):
    if axis == 1 and info['gravity'] != 0:
      continue
    if min(abs(world[axis]), abs(seen[axis])) > DIRECTION_SPEED and world[axis] * seen[axis] > 0:
      names.append(positive if seen[axis] > 0 else negative)
  return names


def _last_time(info: dict) -> float:
  return (info['num_frames'] - 1) / info['fps']


def _count(events: list[dict], info: dict, neighbours: list[dict] | None = None) -> int | str:
  """The number of these events that are seen; 'some' where others are hidden or frames cannot separate neighbours."""
  inside = [e for e in events if 0 <= e['time'] < _last_time(info)]
  times = [e['time'] for e in inside if _is_seen(info, e)]
  if not times:
    return 0
  gap = 3 / info['fps'] - 1e-9
  others = sorted(e['time'] for e in (events if neighbours is None else neighbours))
  close = any(b - a < gap and (a in times or b in times) for a, b in zip(others, others[1:]))
  return 'some' if close or len(times) < len(inside) else len(times)


def _is_seen(info: dict, event: dict) -> bool:
  """All bodies of an impact are nearly whole in the frames before and after it, and the clip goes on for a frame."""
  frame = int(event['time'] * info['fps'])
  whole = all(min(info['objects'][i]['visibility'][frame:frame + 2]) > WHOLE for i in event['instances'])
  return whole and event['time'] <= _last_time(info) - 1 / info['fps']


def _rests(o: dict, motion: str | None) -> bool:
  """Comes to rest inside the clip: moved before, and the last three frames agree."""
  positions = np.asarray(o['positions'], np.float64)
  if motion in (None, 'still') or len(positions) < 4:
    return False
  return bool(np.ptp(positions[-3:], axis=0).max() < .002)


def _visibility_fields(info: dict, o: dict) -> dict:
  """enter and exit: the side of the frame that is crossed, or None; behind: hidden for a while by a pillar."""
  positions = screen(info, o['positions'])
  visible = np.asarray(o['visibility']) >= VISIBLE
  outside = [_outside(p, o['radius'], info['height'] / info['width']) for p in positions]
  seen = np.flatnonzero(visible)
  facts = {'enter': None, 'exit': None, 'behind': False}
  if not seen.size:
    return facts
  facts['enter'] = next((side for side in outside[:seen[0]][::-1] if side), None)
  facts['exit'] = next((side for side in outside[seen[-1] + 1:] if side), None)
  hidden = [k for k in range(seen[0], len(visible)) if not visible[k] and not outside[k]]
  facts['behind'] = bool(info.get('occluders')) and bool(hidden)
  return facts


def _outside(position: np.ndarray, radius: float, aspect: float) -> str | None:
  """The side past which more than three quarters of an object lie, or None."""
  x, y = position
  margin = radius / 2
  beyond = {'left': -x, 'right': x - 1, 'top': -y, 'bottom': y - aspect}
  return next((side for side, distance in beyond.items() if distance > margin), None)


def _order(info: dict) -> list[dict]:
  """The first two impacts with their actors' colours, where each is at least three frames from its neighbours."""
  events = sorted((e for e in info['events'] if 0 <= e['time'] < _last_time(info)), key=lambda e: e['time'])
  gap = 3 / info['fps']
  order = []
  for k, event in enumerate(events[:2]):
    clear = [abs(event['time'] - other['time']) >= gap for other in events[max(0, k - 1):k + 2] if other is not event]
    if not all(clear) or not _is_seen(info, event):
      break
    kind = event.get('side', 'left') if event['kind'] == 'wall' else event['kind']
    order.append({'kind': kind, 'actors': sorted(info['objects'][i]['colour'] for i in event['instances'])})
  return order if len(order) == 2 else []


def _sound(info: dict) -> dict | None:
  """What is heard: number of impacts, materials that sound, and the side when all are on one; None without a track."""
  if not info.get('sample_rate') or info['num_frames'] < 2:
    return None
  duration = info['num_frames'] / info['fps']
  events = sorted((e for e in info['events'] if 0 <= e['time'] < duration), key=lambda e: e['time'])
  rolling = any(_is_rolling(info, o) for o in info['objects'])
  times = [e['time'] for e in events]
  # Onsets closer than 100 ms, or cut off by the end, are not told apart by ear.
  clear = all(b - a >= .1 for a, b in zip(times, times[1:])) and (not times or times[-1] < duration - .1)
  bodies = {i for e in events for i in e['instances']}
  sides = set()
  for e in events:
    x = screen(info, e['position'], [round(e['time'] * info['fps'])])[0, 0]
    sides.add('left' if x < .35 else 'right' if x > .65 else None)
  return {
    'silent': not events and not rolling,
    'hits': len(events) if clear else 'some',
    'timbres': sorted({info['objects'][i]['material'] for i in bodies}),
    'side': sides.pop() if len(sides) == 1 else None,
  }


def _is_rolling(info: dict, o: dict) -> bool:
  if info['gravity'] == 0:
    return False
  floor = info['height'] / info['width'] - o['radius']
  on_floor = np.abs(np.asarray(o['positions'], np.float64)[:, 1] - floor) < .002
  rolling = on_floor & (np.abs(np.asarray(o['velocities'], np.float64)[:, 0]) > .02)
  # On the floor in a single frame is an impact.
  return bool((rolling[1:] & rolling[:-1]).any())
