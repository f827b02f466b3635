"""Drawing a scene: a pure function of (seed, config).

The format of a clip (size, frame rate, length) and its content come from two random streams, so changing one leaves the
other's draws alone. Content is drawn, solved, and drawn again until the level shows what it is for (a bounce, a
collision, a passage behind the pillar, ...) and every pair collision can be told apart; after ATTEMPTS the best so far
is kept, whose physics is exact all the same. Objects that collide are made circles, because the contact body is a disc.
Colours, which move nothing, come last: no colour twice, and in 'train' no pair of colour and shape that 'combination'
holds out, which shows no other: as many objects of one shape as there are such colours, and no more.
"""
import dataclasses
import math

import numpy as np

from veojax.data import world_view
from veojax.data.world import (
    CAMERA_MOVES, COLOURS, GRAVITY, MATERIALS, OUTER_RADII, RADII, SHAPES, SPLITS, Camera, Object, Scene, WorldConfig,
    shrinking)
from veojax.data.world_physics import SLOW, Record, UnsettledError, simulate

ATTEMPTS = 40
START_GAP = .02              # widths between objects at the start
PAIR_GAP = .1                # seconds between the collisions of a pair
SHORT = .5                   # seconds; in a shorter clip nothing can be asked to happen
PAN_SPEED = .25              # widths/s, the fastest camera


def sample(seed: int, config: WorldConfig) -> Scene:
  """The scene of this seed. Raises ValueError for a negative seed."""
  if seed < 0:
    raise ValueError(f'seed={seed}; give an integer from 0 up')
  split = SPLITS.index(config.split)
  rng = np.random.default_rng([seed, split, 0])
  height, width, num_frames = (_pick(rng, config.choices(name)) for name in ('height', 'width', 'num_frames'))
  fps = _pick(rng, config.choices('fps'))
  rng = np.random.default_rng([seed, split, 1])
  level = _pick(rng, config.levels)
  content = _pick(rng, ('L1', 'L2', 'L3', 'L4', 'L5')) if level == 'L7' and config.split != 'count' else level
  content = 'L3' if content == 'L7' else content
  if content == 'L3' and config.max_objects < 2:
    content = 'L2'
  weightless = content in ('L0', 'L1')
  fixed = (.5, height / width / 2, 1.)
  bare = Scene(
      seed=seed, split=config.split, level=level, content=content, height=int(height), width=int(width),
      num_frames=int(num_frames), fps=fps, sample_rate=config.sample_rate, gravity=0. if weightless else GRAVITY,
      rest_speed=max(.08, 1.5 * GRAVITY / config.fps_min), walls=content != 'L6', ceiling=weightless,
      objects=(), occluders=(), camera=Camera('static', ((0., *fixed), (1., *fixed))))
  return _colour(rng, _settle(rng, bare, config))


def held_out(colour: str, shape: str) -> bool:
  """Whether the pair is seen only in the split 'combination': one shape of every colour."""
  # Two of the seven colours go with the circle, which is the shape of all that collides, and red is not among them.
  return SHAPES[(list(COLOURS).index(colour) + 1) % len(SHAPES)] == shape


def _pick(rng, values):
  """One of values, as the Python value it is."""
  return values[int(rng.integers(len(values)))]


def _settle(rng, bare, config):
  """Draws content until one is good, or the best of ATTEMPTS."""
  best, best_score, cramped = None, -1, 0
  for attempt in range(ATTEMPTS):
    scene = _draw(rng, bare, config, attempt, cramped)
    if scene is None:
      cramped += 1
      continue
    try:
      scene, record = _round_colliders(scene)
    except UnsettledError:
      continue
    if config.split == 'combination' and not _all_held_out(scene):
      continue
    score = 2 * _distinct(record) + _shows(record)
    if score > best_score:
      best, best_score = scene, score
    if score == 3 or scene.duration < SHORT:
      return best
  if best is None:
    raise ValueError(
        f'no room for the objects of seed {bare.seed} in a frame of {bare.width}x{bare.height}; give a taller frame')
  return best


def _draw(rng, bare, config, attempt, cramped):
  """A scene with objects placed, or None where they found no room; the more often that was so, the less they take."""
  count = _count(rng, bare.content, config)
  if config.split != 'count':
    count = min(count, max(2 if bare.content == 'L3' else 1, 4 - cramped // 8))
  if config.split == 'combination' and attempt >= ATTEMPTS // 2:  # for two there are colours whatever their shape
    count = min(count, 2)
  sizes = ('small', 'large') if cramped < 8 else ('small',)
  things = [_new_object(rng, bare, config.split, sizes) for _ in range(count)]
  if bare.content == 'L5':  # of one size, they meet level and stay on the floor
    things = [dataclasses.replace(thing, size=things[0].size, radius=things[0].radius) for thing in things]
  camera = _camera(rng, bare) if bare.level == 'L7' else bare.camera
  occluders = ()
  if bare.content == 'L4':
    pillar = _pillar(rng, things)
    if pillar is None:
      return None
    occluders = (pillar,)
  # Drawn corners stay apart where there is room for it, discs always.
  spacious = cramped < 4
  placed = []
  for i, thing in enumerate(things):
    thing = _place(rng, bare, thing, i, placed, occluders, spacious)
    if thing is None:
      return None
    placed.append(thing)
  if bare.content == 'L3' and attempt % 2 == 0 and config.split in ('train', 'test', 'combination', 'count', 'r_out'):
    placed[:2] = _aim(rng, placed[0], placed[1], bare.duration)
  return dataclasses.replace(bare, objects=tuple(placed), occluders=occluders, camera=camera)


def _count(rng, content, config):
  if config.split == 'count':
    return 4
  if content == 'L2':
    return 1
  return int(rng.integers(max(config.min_objects, 2 if content == 'L3' else 1), config.max_objects + 1))


def _new_object(rng, bare, split, sizes):
  """A shape of a size and material, colourless and nowhere yet. In frames flatter than 9:16 all objects are smaller."""
  size = _pick(rng, sizes)
  radius = (OUTER_RADII if split in ('r_out', 'rv_out') else RADII)[size] * shrinking(bare.aspect)
  return Object(_pick(rng, SHAPES), 'white', size, _pick(rng, tuple(MATERIALS)), radius, (0., 0.), (0., 0.))


def _place(rng, bare, thing, index, placed, occluders, spacious):
  """The object with a start and velocity that suit the level, clear of those placed before, or None after 60 tries."""
  for _ in range(60):
    thing = _start(rng, bare, thing, index, occluders)
    x, w = thing.position[0], thing.half_width
    if any(x0 < x + w and x - w < x1 for x0, x1 in occluders):
      continue
    if all(math.dist(thing.position, other.position) > _reach(thing, spacious) + _reach(other, spacious) + START_GAP
           for other in placed):
      return thing
  return None


def _reach(thing, spacious):
  """The radius of the disc, or of the circle around the drawn shape."""
  around = {'circle': 1., 'square': math.sqrt(2), 'triangle': math.sqrt(7 / 3)}
  return thing.radius * (around[thing.shape] if spacious else 1.)


def _start(rng, bare, thing, index, occluders):
  r, w, level = thing.radius, thing.half_width, bare.content
  gap = .01 * shrinking(bare.aspect)
  x = rng.uniform(w + gap, 1 - w - gap)
  depth = bare.aspect - r - gap if level in ('L0', 'L1') else max(.55 * bare.aspect, r + 2 * gap)
  y = rng.uniform(r + gap, depth)
  vx, vy = _velocity(rng, bare.split, floating=level == 'L1')
  if level == 'L0':
    vx = vy = 0.
  elif level == 'L4' and index == 0:
    x, vx = _towards_pillar(rng, bare, thing, occluders[0])
  elif level == 'L5':
    y, vy = bare.aspect - r, 0.
    vx = _signed(rng, .3, .9) if index == 0 else _pick(rng, (0., _signed(rng, .3, .9)))
    vx = vx if bare.split != 'v_zero' else 0.
  elif level == 'L6' and bare.duration >= SHORT and (index == 0 or rng.random() < .5):
    speed = rng.uniform(.4, .9)
    outside = -w - .005 - speed * rng.uniform(0., .4) * bare.duration
    x, vx = (outside, speed) if rng.random() < .5 else (1 - outside, -speed)
  if bare.gravity and vy < 0:
    vy = max(vy, -math.sqrt(2 * bare.gravity * (y - r)))  # what is thrown up turns before the upper edge
  return dataclasses.replace(thing, position=(x, y), velocity=(vx, vy))


def _signed(rng, low, high):
  return float(rng.uniform(low, high) * (1 if rng.random() < .5 else -1))


def _velocity(rng, split, *, floating):
  if split == 'v_zero':
    return 0., 0.
  if split in ('v_out', 'rv_out'):
    return _signed(rng, .7, 1.1), _signed(rng, .35, .55)
  if floating:  # without gravity, what is not thrown never moves
    speed, angle = rng.uniform(.25, .6), rng.uniform(0, 2 * math.pi)
    return speed * math.cos(angle), speed * math.sin(angle)
  return float(rng.uniform(-.6, .6)), float(rng.uniform(-.3, .3))


def _aim(rng, one, two, duration):
  """Two objects on their way to each other, as far as the training range of velocities lets them."""
  time = rng.uniform(.15, .6) * min(duration, 2.)
  drift = rng.uniform(-.2, .2)
  thrown = []
  for a, b in ((one, two), (two, one)):
    vx = drift + (b.position[0] - a.position[0]) / (2 * time)
    vy = (b.position[1] - a.position[1]) / (2 * time)
    vy = max(-.3, vy, -math.sqrt(2 * GRAVITY * (a.position[1] - a.radius)))
    thrown.append(dataclasses.replace(a, velocity=(float(np.clip(vx, -.6, .6)), float(min(vy, .3)))))
  return thrown


def _pillar(rng, things):
  """(x0, x1) of a pillar that hides the widest object and leaves room for it on both sides, or None."""
  w = max(thing.half_width for thing in things)
  side = 2 * w + .03
  if 2.2 * w > 1 - 2 * side:
    return None
  width = rng.uniform(2.2 * w, min(.45, 1 - 2 * side))
  x0 = rng.uniform(side, 1 - side - width)
  return float(x0), float(x0 + width)


def _towards_pillar(rng, bare, thing, pillar):
  """A start on one side of the pillar and a speed at which the object comes out on the other before the clip ends."""
  w, (x0, x1) = thing.half_width, pillar
  from_left = rng.random() < .5
  x = rng.uniform(w + .01, x0 - w - .005) if from_left else rng.uniform(x1 + w + .005, 1 - w - .01)
  way = x1 + .5 * w - x if from_left else x - x0 + .5 * w
  speed = float(np.clip(way / (rng.uniform(.6, .85) * bare.duration), .25, 1.2))
  return x, speed if from_left else -speed


def _camera(rng, bare):
  move = _pick(rng, CAMERA_MOVES[1:])
  kind, towards = move.split()
  x, y, end = .5, bare.aspect / 2, bare.duration
  if kind == 'zoom':
    far, near = rng.uniform(.75, .95), rng.uniform(1.1, 1.35)
    z0, z1 = (far, near) if towards == 'in' else (near, far)
    return Camera(move, ((0., x, y, z0), (end, x, y, z1)))
  ease = _pick(rng, ('linear', 'smoothstep'))
  peak = 1.5 if ease == 'smoothstep' else 1.  # of the speed, over its mean
  way = .5 * min(rng.uniform(.4, 1.) * PAN_SPEED * end / peak, .4)
  dx, dy = {'left': (-way, 0.), 'right': (way, 0.), 'up': (0., -way), 'down': (0., way)}[towards]
  zoom = rng.uniform(.75, 1.)
  return Camera(move, ((0., x - dx, y - dy, zoom), (end, x + dx, y + dy, zoom)), ease)


def _round_colliders(scene):
  """The scene in which everything that collides is a circle, with its record."""
  for _ in range(len(scene.objects) + 1):
    record = simulate(scene)
    touched = {i for event in record.events if event.kind == 'pair' for i in event.instances}
    edged = [i for i in touched if scene.objects[i].shape != 'circle']
    if not edged:
      return scene, record
    scene = dataclasses.replace(scene, objects=tuple(
        dataclasses.replace(thing, shape='circle') if i in edged else thing for i, thing in enumerate(scene.objects)))
  raise AssertionError('each round makes at least one circle')


def _all_held_out(scene):
  """Whether there are colours of their own for all objects among those held out for their shapes, two or three."""
  shapes = [thing.shape for thing in scene.objects]
  return all(shapes.count(shape) <= sum(held_out(colour, shape) for colour in COLOURS) for shape in shapes)


def _distinct(record: Record) -> bool:
  """Whether every pair collision is hard enough, and far enough from the last of the same pair, to be told apart."""
  last = {}
  for event in record.events:
    if event.kind == 'pair':
      if event.speed < SLOW or event.time - last.get(event.instances, -1.) < PAIR_GAP:
        return False
      last[event.instances] = event.time
  return True


def _shows(record: Record) -> bool:
  """Whether the level's own subject happens well inside the clip, and all is to be seen that should be."""
  scene = record.scene
  level, end = scene.content, scene.duration
  def happens(kind):
    return any(event.kind == kind and .03 * end < event.time < .93 * end for event in record.events)
  if level == 'L2' and scene.split != 'v_zero' and not happens('floor'):
    return False
  if level == 'L3' and scene.split not in ('v_zero', 'v_out', 'rv_out') and not happens('pair'):
    return False
  if level not in ('L4', 'L6') and scene.level != 'L7':
    return True
  seen = world_view.visibility(record, np.linspace(0., end, 61))
  if level == 'L6':
    return bool((seen[:31, 0] > .25).any() and seen[0, 0] == 0)
  if scene.level == 'L7' and not ((seen[0] > .25).all() and ((seen > .25).mean(0) > .5).all()):
    return False
  if level == 'L4':
    gone = seen < 1e-9
    first = int(np.argmax(gone[:, 0]))
    return bool(gone[:, 0].any() and (seen[first:, 0] > .25).any() and (gone.sum(1) <= 1).all())
  return True


def _colour(rng, scene):
  """Gives every object a colour of its own that the split allows together with its shape."""
  wanted = scene.split == 'combination'
  free, things = [str(name) for name in rng.permutation(list(COLOURS))], []
  for thing in scene.objects:
    colour = next(c for c in free if held_out(c, thing.shape) == wanted)
    free.remove(colour)
    things.append(dataclasses.replace(thing, colour=colour))
  return dataclasses.replace(scene, objects=tuple(things))
