"""The world's vocabulary: objects, materials, camera, scene, and the configuration scenes are drawn with.

A scene is a handful of coloured shapes of named materials, whose motion, picture, sound and caption are all known
exactly. Conventions of every `world_*` module:

  - Length: the frame is 1 wide and `aspect = height / width` high; x to the right, y DOWN, origin at the frame's
    top-left corner (with a moving camera: at the corner of the static frame). Pixel (i, j) has its centre at
    ((i + .5)/W, (j + .5)/W).
  - Time in seconds; frame k shows the state at k / fps, sample n of the sound is at n / sample_rate.
  - Speeds in widths/s, gravity in widths/s², pointing down. Nothing physical depends on fps, on pixels or on the sample
    rate, so one seed drawn at two frame rates is the same motion.
"""
import dataclasses
import math

import numpy as np

BACKGROUND = (.06, .06, .09)
BROWN = (.50, .22, .26)  # pillar, floor and wall lines: 25 degrees or more from the direction of every object's colour
COLOURS = {
    'red': (.90, .10, .10), 'green': (.10, .75, .15), 'blue': (.15, .25, .95), 'yellow': (.95, .85, .10),
    'magenta': (.85, .10, .85), 'cyan': (.10, .80, .85), 'white': (.97, .97, .97),
}
SHAPES = ('circle', 'square', 'triangle')
RADII = {'small': .085, 'large': .125}
OUTER_RADII = {'small': .065, 'large': .145}  # of the splits whose sizes lie outside the training range
LEVELS = ('L0', 'L1', 'L2', 'L3', 'L4', 'L5', 'L6', 'L7')
SPLITS = ('train', 'test', 'combination', 'r_out', 'v_out', 'rv_out', 'v_zero', 'count')
CAMERA_MOVES = ('static', 'pan left', 'pan right', 'pan up', 'pan down', 'zoom in', 'zoom out')
GRAVITY = 2.0


def shrinking(aspect: float) -> float:
  """What the radii are multiplied by in frames of an aspect, height over width: below 1 in those flatter than 9:16, so
  that objects have room to move."""
  return min(1., 16 / 9 * aspect)


@dataclasses.dataclass(frozen=True)
class Material:
  """restitution and friction are dimensionless; frequency in Hz of a body of radius .1; decay in seconds."""
  restitution: float
  friction: float
  frequency: float
  decay: float
  partials: tuple[float, ...]


MATERIALS = {
    'rubber': Material(.85, .05, 160., .05, (1., 1.9)),
    'wood': Material(.60, .08, 420., .07, (1., 2.57, 4.1)),
    'metal': Material(.75, .03, 900., .35, (1., 2.76, 5.40)),  # the modes of a free bar
}


@dataclasses.dataclass(frozen=True)
class Object:
  """One object at t = 0. Its contact body is a disc of `radius`, whatever its drawn shape (half-height `radius`)."""
  shape: str
  colour: str
  size: str
  material: str
  radius: float
  position: tuple[float, float]
  velocity: tuple[float, float]

  @property
  def mass(self) -> float:
    return 100. * self.radius**2

  @property
  def restitution(self) -> float:
    return MATERIALS[self.material].restitution

  @property
  def friction(self) -> float:
    return MATERIALS[self.material].friction

  @property
  def half_width(self) -> float:
    """Half the drawn width, which is what touches a side wall: a triangle's base reaches further than its disc."""
    return self.radius * 2 / math.sqrt(3) if self.shape == 'triangle' else self.radius


@dataclasses.dataclass(frozen=True)
class Camera:
  """A path between two keys (time, centre x, centre y, zoom): screen = (p - centre) zoom + (1/2, aspect/2).

  The centre moves linearly, or by smoothstep where `ease` is 'smoothstep'; the zoom moves geometrically.
  """
  move: str
  keys: tuple[tuple[float, float, float, float], tuple[float, float, float, float]]
  ease: str = 'linear'

  def path(self, times) -> np.ndarray:
    """times float[T] → float64[T, 3]: centre x, centre y, zoom."""
    (t0, x0, y0, z0), (t1, x1, y1, z1) = self.keys
    u = np.clip((np.asarray(times, np.float64) - t0) / (t1 - t0), 0., 1.)
    if self.ease == 'smoothstep':
      u = u * u * (3 - 2 * u)
    return np.stack([x0 + (x1 - x0) * u, y0 + (y1 - y0) * u, z0 * (z1 / z0)**u], -1)


@dataclasses.dataclass(frozen=True)
class Scene:
  """Everything that determines a clip except the wording of its caption."""
  seed: int
  split: str
  level: str
  content: str  # the level whose content is shown: differs from `level` in L7, which is a camera over another level
  height: int
  width: int
  num_frames: int
  fps: float
  sample_rate: int
  gravity: float
  rest_speed: float
  walls: bool
  ceiling: bool
  objects: tuple[Object, ...]
  occluders: tuple[tuple[float, float], ...]
  camera: Camera

  @property
  def aspect(self) -> float:
    return self.height / self.width

  @property
  def duration(self) -> float:
    return self.num_frames / self.fps

  @property
  def frame_times(self) -> np.ndarray:
    return np.arange(self.num_frames) / self.fps


@dataclasses.dataclass(frozen=True)
class WorldConfig:
  """What clips to draw. `height`, `width`, `num_frames` and `fps` may be tuples, drawn from independently for a clip.

  levels: L0 still · L1 drifting without gravity, walls on four sides · L2 one falling object · L3 several, which
    collide · L4 a pillar to pass behind · L5 rolling · L6 entering and leaving · L7 a moving camera over one of L1-L5.
  split: 'train' and 'test' share a distribution but no scene; 'combination' shows only the colour × shape pairs that
    these two never show, of which a shape has two or three, so seldom many objects; 'r_out', 'v_out', 'rv_out',
    'v_zero' have sizes or initial speeds outside the training range; 'count' has 4 objects.
  max_objects, min_objects: L2 always has one object, L3 at least two.
  fps_min: the slowest frame rate at which every bounce must be resolvable: a rebound slower than
    max(.08, 1.5 g/fps_min) comes to rest, so the bounces of one object are at least 3 frames of fps_min apart.
  sample_rate: Hz; 0 draws no sound. Sound is stereo.
  """
  levels: tuple[str, ...] = ('L2', 'L3')
  split: str = 'train'
  min_objects: int = 1
  max_objects: int = 3
  num_frames: int | tuple[int, ...] = 33
  fps: float | int | tuple[float | int, ...] = 16.
  fps_min: float | int = 16.
  height: int | tuple[int, ...] = 64
  width: int | tuple[int, ...] = 64
  sample_rate: int = 16000

  def __post_init__(self):
    unknown = [level for level in self.levels if level not in LEVELS]
    if unknown or not self.levels:
      raise ValueError(f'levels={self.levels!r}; give one or more of {", ".join(LEVELS)}')
    if self.split not in SPLITS:
      raise ValueError(f'split={self.split!r}; give one of {", ".join(SPLITS)}')
    if not 1 <= self.min_objects <= self.max_objects <= 4:
      raise ValueError(f'min_objects={self.min_objects}, max_objects={self.max_objects}; give 1 <= min <= max <= 4')
    if 'L3' in self.levels and self.max_objects < 2:
      raise ValueError(f'level L3 needs two objects and max_objects={self.max_objects}; raise it or leave L3 out')
    if self.split == 'count' and 'L2' in self.levels:
      raise ValueError("split 'count' shows four objects and level L2 one; leave L2 out of levels")
    for name in ('num_frames', 'fps', 'height', 'width'):
      if not self.choices(name) or not all(value > 0 for value in self.choices(name)):
        raise ValueError(f'{name}={getattr(self, name)!r}; give a positive number or a tuple of them')
    if not self.fps_min > 0:
      raise ValueError(f'fps_min={self.fps_min}; give a positive number')
    if self.sample_rate != 0 and self.sample_rate < 4000:
      raise ValueError(f'sample_rate={self.sample_rate}; give at least 4000 Hz, or 0 for no sound')

  def choices(self, name: str) -> tuple:
    """The values that `name` may take."""
    value = getattr(self, name)
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
