"""The motion of a scene, solved from event to event: no integrator, no step, no drift.

Between events every object moves on a parabola or a straight line. The earliest event over all objects and pairs is
found in closed form (a quartic's root where two objects accelerate differently), applied, and the next one is sought.

Floor, wall, ceiling: v' = -e v across it; impulse J = m (1 + e) |v|. A rebound slower than `rest_speed` is none:
J = m |v|, and the object rolls, slowed by mu g, until it stops.

Pair: n along the line of centres, e = min(e1, e2), J = (1 + e) |dv·n| / (1/m1 + 1/m2), momentum conserved. An approach
slower than SLOW is elastic (Luding & McNamara 1998, Granular Matter 1, the TC model), and a grounded body that it
pushes downwards is met as held by the floor, free only sideways: without this, a body that settles on another collides
infinitely often in finite time.

Simultaneous events are applied in the order floor, wall, pair, lower index first, each seeing what the former left.
"""
import dataclasses
import math

import numpy as np

from veojax.data.world import Scene

FLYING, ROLLING, RESTING = 'flying', 'rolling', 'resting'
SLOW = .1           # widths/s: a pair's approach below this loses no energy
TOUCH = 1e-9        # widths/s: an approach below this is contact, not a collision
MAX_EVENTS = 5000


class UnsettledError(RuntimeError):
  """The scene has more events than can be told apart."""


@dataclasses.dataclass(frozen=True)
class Event:
  """A contact. kind: 'floor', 'wall', 'ceiling' or 'pair'; side: 'left' or 'right' for a wall, else ''.

  impulse: J in mass·widths/s. speed: the approach along the normal, widths/s. position: the point of contact.
  normal: unit vector of the impulse on instances[0].
  """
  time: float
  kind: str
  instances: tuple[int, ...]
  impulse: float
  speed: float
  position: tuple[float, float]
  normal: tuple[float, float]
  side: str = ''


@dataclasses.dataclass(frozen=True)
class Record:
  """A scene with its exact motion.

  segments: per object float64[S, 7]: time t, and from it on position (x, y), velocity (vx, vy), acceleration (ax, ay).
  modes: per object S names: 'flying', 'rolling' or 'resting'.
  events: in order of time, all in [0, duration).
  """
  scene: Scene
  segments: tuple[np.ndarray, ...]
  modes: tuple[tuple[str, ...], ...]
  events: tuple[Event, ...]

  def states(self, times) -> tuple[np.ndarray, np.ndarray]:
    """times float[T] in [0, duration] → positions, velocities: float64[T, objects, 2]. At a contact: those after it."""
    times = np.asarray(times, np.float64)
    positions, velocities = [], []
    for segment in self.segments:
      s = segment[np.maximum(np.searchsorted(segment[:, 0], times, side='right') - 1, 0)]
      dt = (times - s[:, 0])[:, None]
      positions.append(s[:, 1:3] + s[:, 3:5] * dt + .5 * s[:, 5:7] * dt * dt)
      velocities.append(s[:, 3:5] + s[:, 5:7] * dt)
    return np.stack(positions, 1), np.stack(velocities, 1)


class _Body:
  """The running state of one object: its latest segment, and all of them."""

  def __init__(self, index, thing, scene):
    self.index, self.r, self.half_width = index, thing.radius, thing.half_width
    self.m, self.e = thing.mass, thing.restitution
    self.gravity, self.drag = scene.gravity, thing.friction * scene.gravity
    self.floor = scene.aspect - thing.radius
    self.segments, self.modes = [], []
    x, y = thing.position
    vx, vy = thing.velocity
    self.start(0., x, y, vx, vy, grounded=scene.gravity > 0 and vy == 0 and abs(y - self.floor) < 1e-12)

  def start(self, t, x, y, vx, vy, *, grounded):
    """Begins a segment; a grounded object rolls or rests, any other flies."""
    ax, ay, mode = 0., self.gravity, FLYING
    if grounded:
      y, vy, ay = self.floor, 0., 0.
      ax, mode = (-math.copysign(self.drag, vx), ROLLING) if vx else (0., RESTING)
    self.mode, self.segment = mode, (t, x, y, vx, vy, ax, ay)
    if self.segments and self.segments[-1][0] == t:  # a second event of the same moment replaces what the first left
      self.segments.pop(), self.modes.pop()
    self.segments.append(self.segment)
    self.modes.append(mode)

  def at(self, t):
    """(x, y, vx, vy, ax, ay) at time t of the latest segment."""
    t0, x, y, vx, vy, ax, ay = self.segment
    d = t - t0
    return x + vx * d + .5 * ax * d * d, y + vy * d + .5 * ay * d * d, vx + ax * d, vy + ay * d, ax, ay


def simulate(scene: Scene) -> Record:
  """Solves the scene over [0, duration). Raises UnsettledError beyond MAX_EVENTS events."""
  bodies = [_Body(i, thing, scene) for i, thing in enumerate(scene.objects)]
  events, t = [], 0.
  for _ in range(MAX_EVENTS):
    states = [body.at(t) for body in bodies]
    found = _next_event(scene, bodies, states, scene.duration - t)
    if found is None:
      segments, modes = (np.array(body.segments) for body in bodies), (tuple(body.modes) for body in bodies)
      return Record(scene, tuple(segments), tuple(modes), tuple(events))
    dt, kind, i, j = found
    t += dt
    if kind == 'pair':
      events.append(_collide(bodies[i], bodies[j], t))
    elif kind == 'stop':
      x, y, *_ = bodies[i].at(t)
      bodies[i].start(t, x, y, 0., 0., grounded=True)
    else:
      events.append(_bounce(scene, bodies[i], t, kind))
  raise UnsettledError(f'seed {scene.seed}: more than {MAX_EVENTS} events in {scene.duration} s')


def _next_event(scene, bodies, states, horizon):
  """(time from now, kind, i, j) of the earliest event before `horizon`, or None. Ties go to the first in order."""
  best = None
  for kind, seek in (('floor', _floor_time), ('wall', _wall_time), ('ceiling', _ceiling_time), ('stop', _stop_time)):
    if (kind == 'wall' and not scene.walls) or (kind == 'ceiling' and not scene.ceiling):
      continue
    for body, state in zip(bodies, states):
      dt = seek(body, state)
      if dt < horizon:
        best, horizon = (dt, kind, body.index, -1), dt
  for i, first in enumerate(bodies):
    for j in range(i + 1, len(bodies)):
      dt = _pair_time(states[i], states[j], first.r + bodies[j].r, horizon)
      if dt < horizon:
        best, horizon = (dt, 'pair', i, j), dt
  return best


def _floor_time(body, state):
  _, y, _, vy, _, ay = state
  h = max(0., body.floor - y)
  if body.mode != FLYING:
    return math.inf
  if ay == 0:
    return h / vy if vy > 0 else math.inf
  root = math.sqrt(vy * vy + 2 * ay * h)
  return 2 * h / (vy + root) if vy > 0 else (root - vy) / ay


def _wall_time(body, state):
  x, _, vx, _, ax, _ = state
  if vx == 0:
    return math.inf
  d = max(0., x - body.half_width if vx < 0 else 1 - body.half_width - x)
  left = vx * vx - 2 * abs(ax) * d  # the square of the speed that friction leaves at the wall
  return 2 * d / (abs(vx) + math.sqrt(left)) if left > 0 else math.inf


def _ceiling_time(body, state):
  _, y, _, vy, _, _ = state
  return max(0., y - body.r) / -vy if vy < 0 else math.inf  # ceilings exist only where there is no gravity


def _stop_time(body, state):
  return abs(state[2] / state[4]) if body.mode == ROLLING else math.inf


def _pair_time(one, two, reach, horizon):
  """Time until two discs touch while approaching, or inf; sought before `horizon`."""
  px, py, vx, vy, ax, ay = (p - q for p, q in zip(one, two))
  a, b, c = vx * vx + vy * vy, px * vx + py * vy, px * px + py * py - reach * reach
  if c <= 1e-12 and b < -TOUCH * reach:
    return 0.
  if ax == 0 and ay == 0:
    d = b * b - a * c
    return c / (-b + math.sqrt(d)) if b < 0 and d > 0 and c > 0 else math.inf
  h = min(horizon, 1e6)
  if math.sqrt(px * px + py * py) > reach + math.sqrt(a) * h + .5 * math.hypot(ax, ay) * h * h:
    return math.inf
  quartic = (.25 * (ax * ax + ay * ay), vx * ax + vy * ay, a + px * ax + py * ay, 2 * b, c)
  times = [_polish(quartic, float(z.real)) for z in np.roots(quartic) if abs(z.imag) < 1e-6 and z.real > 1e-9]
  return min((t for t in times if t > 1e-9 and _slope(quartic, t) < -2 * TOUCH * reach), default=math.inf)


def _slope(q, t):
  return ((4 * q[0] * t + 3 * q[1]) * t + 2 * q[2]) * t + q[3]


def _polish(q, t):
  """Newton steps towards a root: the companion matrix's eigenvalues alone miss the contact by up to 1e-8."""
  for _ in range(3):
    slope = _slope(q, t)
    if slope == 0:
      break
    t -= ((((q[0] * t + q[1]) * t + q[2]) * t + q[3]) * t + q[4]) / slope
  return t


def _bounce(scene, body, t, kind):
  x, y, vx, vy, *_ = body.at(t)
  if kind == 'wall':
    side, speed = ('left', -vx) if vx < 0 else ('right', vx)
    x = body.half_width if vx < 0 else 1 - body.half_width
    normal, place = ((1., 0.), (0., y)) if vx < 0 else ((-1., 0.), (1., y))
    body.start(t, x, y, -body.e * vx, vy, grounded=body.mode != FLYING)
    return Event(t, kind, (body.index,), body.m * (1 + body.e) * speed, speed, place, normal, side)
  speed = abs(vy)
  if kind == 'ceiling':
    body.start(t, x, body.r, vx, -body.e * vy, grounded=False)
    return Event(t, kind, (body.index,), body.m * (1 + body.e) * speed, speed, (x, 0.), (0., 1.))
  rests = scene.gravity > 0 and body.e * vy < scene.rest_speed
  body.start(t, x, body.floor, vx, -body.e * vy, grounded=rests)
  impulse = body.m * speed * (1 if rests else 1 + body.e)
  return Event(t, kind, (body.index,), impulse, speed, (x, scene.aspect), (0., -1.))


def _collide(one, two, t):
  x1, y1, vx1, vy1, *_ = one.at(t)
  x2, y2, vx2, vy2, *_ = two.at(t)
  gap = math.hypot(x1 - x2, y1 - y2)
  nx, ny = (x1 - x2) / gap, (y1 - y2) / gap
  speed = -((vx1 - vx2) * nx + (vy1 - vy2) * ny)
  slow = speed < SLOW
  e = 1. if slow else min(one.e, two.e)
  held = [slow and body.mode != FLYING and sign * ny > 0 for body, sign in ((one, 1), (two, -1))]
  impulse = (1 + e) * speed / sum((nx * nx if h else 1.) / body.m for body, h in zip((one, two), held))
  for body, x, y, vx, vy, sign, h in ((one, x1, y1, vx1, vy1, 1, held[0]), (two, x2, y2, vx2, vy2, -1, held[1])):
    vx, vy = vx + sign * impulse * nx / body.m, 0. if h else vy + sign * impulse * ny / body.m
    # Pushed up, a grounded object flies again; pushed down, it flies for no time and the floor answers at this moment.
    body.start(t, x, y, vx, vy, grounded=body.mode != FLYING and abs(vy) < 1e-12)
  place = (x2 + nx * two.r, y2 + ny * two.r)
  return Event(t, 'pair', (one.index, two.index), impulse, speed, place, (nx, ny))
