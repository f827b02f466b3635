"""Laws that need no record: restitution, friction, momentum, energy, and steps that nothing could have moved.

Conventions: widths, seconds, y down; masses 100 r², of the radii that are seen. Speeds before and after an impact are
those of the free flights on either side of it (`world_laws.impacts`), so nothing is asked of impacts that frames cannot
separate. What is undefined for a clip is left out.
"""
import numpy as np

from veojax.evaluation import world_laws
from veojax.evaluation.world_laws import Impact
from veojax.evaluation.world_parser import Parse, Track

TOGETHER = .6    # frames within which the impacts of two objects that touch are one collision
TOUCH = .03      # widths between the surfaces of two objects that collide
NEAR = .08       # and between an object and the side that it hits
FAST = .3        # widths/s: slower approaches say little about restitution
REACH = 1.2      # of a shape to the side, in radii, at most
LOW = .01        # widths off the floor, at most, of what rolls on it
ROLLING = .1     # widths/s: what is slower may stop within the frame
LONG = .5        # seconds of rolling: a shorter run says little about friction


def measure(parse: Parse, impacts: list[Impact], gravity: float, known: dict[str, dict], *, rest_speed: float,
            fastest: float) -> dict[str, float]:
  """known: the restitution and friction of the colours whose material is asked for. rest_speed: a slower rebound is
  none. fastest: widths/s that nothing in the scene reaches."""
  result = {'gravity_error': world_laws.gravity_error(parse, gravity), 'teleports': teleports(parse, fastest)}
  pairs = collisions(parse, impacts)
  alone = [i for i in impacts if not any(i is p for pair in pairs for p in pair)]
  bounces = [e for i in alone if i.colour in known
             for e in _restitution_error(i, parse, known[i.colour]['restitution'], rest_speed)]
  rolls = [e for colour, own in known.items() if gravity and colour in parse.tracks
           for e in _friction_errors(parse.tracks[colour], parse, own['friction'] * gravity)]
  losses = [_momentum_error(one, two, parse) for one, two in pairs]
  result |= {'restitution_error': _mean(bounces), 'friction_error': _mean(rolls), 'momentum_error': _mean(losses),
             'energy_gain': energy_gain(parse, gravity)}
  return {name: value for name, value in result.items() if np.isfinite(value)}


def collisions(parse: Parse, impacts: list[Impact]) -> list[tuple[Impact, Impact]]:
  """Impacts of two objects in flight at one time that drive the two apart, where they touch."""
  def meet(one, two):
    reach = parse.tracks[one.colour].radius + parse.tracks[two.colour].radius
    return (one.colour != two.colour and not (one.held or two.held) and abs(one.time - two.time) * parse.fps < TOGETHER
            and abs(np.hypot(*(one.place - two.place)) - reach) < TOUCH
            and (one.after - one.before) @ (two.after - two.before) < 0)
  return [(one, two) for i, one in enumerate(impacts) for two in impacts[i + 1:] if meet(one, two)]


def _mean(values) -> float:
  return float(np.mean(values)) if len(values) else float('nan')


def _restitution_error(impact: Impact, parse: Parse, e: float, rest_speed: float) -> list[float]:
  """Of an impact with a side: | |v after / v before| - e | across it; none for slow ones and those elsewhere."""
  x, y = impact.place
  reach = REACH * parse.tracks[impact.colour].radius + NEAR
  change = impact.after - impact.before
  axis = int(abs(change[1]) > abs(change[0]))
  near = (min(x, 1 - x), min(y, parse.aspect - y))[axis] < reach
  before = abs(impact.before[axis])
  if not near or before < FAST or e * before < 1.2 * rest_speed:
    return []
  return [abs(abs(impact.after[axis]) / before - e)]


def _friction_errors(track: Track, parse: Parse, slowing: float) -> list[float]:
  """|deceleration / (mu g) - 1| of each run of steps on the floor without an impact, by the parabola through its x;
  slowing: mu g, widths/s²."""
  x, y = track.positions.T
  low = track.whole & (np.abs(parse.aspect - track.radius - y) < LOW)
  speed = np.diff(x) * parse.fps
  steps = np.flatnonzero(low[1:] & low[:-1] & (np.abs(speed) > ROLLING))
  jolts = (np.diff(steps) > 1) | (np.abs(np.diff(speed[steps])) > world_laws.FLAG)
  errors = []
  for run in np.split(steps, np.flatnonzero(jolts) + 1):
    frames = run[1:]  # without those at both ends: an impact may lie in the steps beside them
    if len(frames) > max(3, LONG * parse.fps):
      bend = 2 * np.polyfit(frames / parse.fps, x[frames], 2)[0]
      errors.append(abs(-np.sign(speed[run[0]]) * bend / slowing - 1))
  return errors


def _momentum_error(one: Impact, two: Impact, parse: Parse) -> float:
  """|Σ m v after - Σ m v before| / Σ m |v before|."""
  masses = [parse.tracks[i.colour].radius**2 for i in (one, two)]
  change = sum(m * (i.after - i.before) for m, i in zip(masses, (one, two)))
  return float(np.hypot(*change) / max(sum(m * np.hypot(*i.before) for m, i in zip(masses, (one, two))), 1e-6))


def energy_gain(parse: Parse, gravity: float) -> float:
  """The largest rise of the energy of all objects over what it had fallen to, relative to what it was at first; over
  steps between frames in which all are whole and none has an impact."""
  tracks = [t for t in parse.tracks.values() if t.whole.mean() > .5]
  if not tracks or parse.num_frames < 4:
    return float('nan')
  energy = sum(_energy(track, parse, gravity) for track in tracks)
  energy = energy[np.isfinite(energy)]
  if len(energy) < 2 or energy[0] <= 0:
    return float('nan')
  return float(max(0., np.max(energy - np.minimum.accumulate(energy))) / energy[0])


def _energy(track: Track, parse: Parse, gravity: float) -> np.ndarray:
  """float[T - 1], of each step between frames: ½ v² + g h in the middle of it, times r²; NaN where it is no free
  flight."""
  p = np.where(track.whole[:, None], track.positions, np.nan)
  velocity = np.diff(p, axis=0) * parse.fps
  bend = np.hypot(*(np.diff(velocity, axis=0) * parse.fps - (0, gravity)).T)
  free = bend <= world_laws.FLAG * parse.fps
  # A step is free where both bends beside it are; at the ends only one is known.
  beside = np.concatenate([[True], free]) & np.concatenate([free, [True]])
  middle = (p[1:, 1] + p[:-1, 1]) / 2 - gravity / (8 * parse.fps**2)
  height = parse.aspect - track.radius - middle
  energy = (.5 * (velocity**2).sum(1) + gravity * height) * track.radius**2
  return np.where(beside, energy, np.nan)


def teleports(parse: Parse, fastest: float) -> float:
  """The share of the steps between frames that show an object, in which it is faster than anything could be."""
  steps, fast = 0, 0
  for track in parse.tracks.values():
    frames = np.flatnonzero(track.present)
    speed = np.hypot(*np.diff(track.positions[frames], axis=0).T) * parse.fps / np.diff(frames)
    steps, fast = steps + len(speed), fast + int((speed > fastest).sum())
  return fast / steps if steps else float('nan')
