"""Pixels → tracks of the world's objects, without a network.

Conventions: the frame is 1 wide, y points down, pixel (i, j) has its centre at ((i + .5)/W, (j + .5)/W); frame k is at
k/fps. An object's position is its box centre, which is the physical centre of the world's record. Missing frames are
NaN.

Method. A pixel's offset from the background is assigned to the nearest of the colour rays (brown, of pillars and
lines, is an eighth that yields no object) when it lies in that ray's cone; its coverage alpha is its length along the
ray over the full colour's. Per colour the densest blob is kept, so speckle does not move it; position and area are
alpha's moments. The shape is the one whose rendering, at some scale and blur, is most like the blob (cosine), summed
over the frames.

`STRICT` is for measuring laws on sharp clips: its cones never touch. `LOOSE` is for clips of blurry decoders and young
models: nearest ray in wide cones, and coverage rescaled by the blob's own peak.
"""
import dataclasses
import functools

import numpy as np

from veojax.data import world

COLOURS = tuple(world.COLOURS)
SHAPES = world.SHAPES
# Area = AREA[shape] r²; the triangle's centroid lies r/3 below its box centre.
AREA = {'circle': np.pi, 'square': 4., 'triangle': 4 / np.sqrt(3)}
COMPACT = .55  # noise scattered over a disc has less of itself near the middle; half a disc has .8
GRID, REACH = 24, 2.2  # samples across a shape's patch; half its side in radii of the disc of equal area


@dataclasses.dataclass(frozen=True)
class ParserConfig:
  """cone: least cosine to a ray. threshold: least offset from the background, RGB in [0, 1]. min_area: least area of an
  object, in squared widths (times `world.shrinking`² in flat frames). rescale: divide coverage by the blob's peak."""
  cone: float = .97
  threshold: float = .12
  min_area: float = .006
  rescale: bool = False


STRICT = ParserConfig()
LOOSE = ParserConfig(cone=.90, threshold=.25, rescale=True)


@dataclasses.dataclass(frozen=True)
class Track:
  """One colour over time. positions float[T, 2], areas float[T] (squared widths), likeness float[T, 3]: cosine with the
  best rendering of each of SHAPES; all NaN (areas 0) where the object is missing. doubled bool[T]: there is another
  object of its colour."""
  colour: str
  positions: np.ndarray
  areas: np.ndarray
  likeness: np.ndarray
  doubled: np.ndarray

  @property
  def present(self) -> np.ndarray:
    """bool[T]"""
    return self.areas > 0

  @property
  def whole(self) -> np.ndarray:
    """bool[T]: present with nearly its full area, so not cut by a pillar, the frame or another object."""
    return self.areas >= .85 * np.quantile(self.areas[self.present], .9)

  @property
  def shape(self) -> str:
    """The shape most alike over the frames in which the object is whole."""
    return SHAPES[int(self.likeness[self.whole].mean(0).argmax())]

  @property
  def radii(self) -> np.ndarray:
    """float[T], by area under the track's shape; NaN where missing."""
    return np.where(self.present, np.sqrt(self.areas / AREA[self.shape]), np.nan)

  @property
  def radius(self) -> float:
    """Median in widths, over the frames in which the object is whole."""
    return float(np.median(self.radii[self.whole]))


@dataclasses.dataclass(frozen=True)
class Parse:
  """What a clip's picture shows. pillar: (x0, x1) of a brown pillar or None. counts: int[T], objects per frame, at most
  one of a colour."""
  fps: float
  height: int
  width: int
  tracks: dict[str, Track]
  pillar: tuple[float, float] | None
  counts: np.ndarray

  @property
  def num_frames(self) -> int:
    return len(self.counts)

  @property
  def aspect(self) -> float:
    return self.height / self.width


def size(radius: float) -> str:
  """The one of `world.RADII` that a radius is nearest to."""
  return min(world.RADII, key=lambda name: abs(world.RADII[name] - radius))


def parse(video: np.ndarray, fps: float, config: ParserConfig = STRICT) -> Parse:
  """video uint8[T, H, W, 3] → Parse. Any size from about 32 pixels of width on."""
  video = np.asarray(video)
  if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8:
    raise ValueError(f'video is {video.dtype}{list(video.shape)}; give uint8[T, H, W, 3]')
  T, H, W, _ = video.shape
  config = dataclasses.replace(config, min_area=config.min_area * world.shrinking(H / W)**2)
  base = background(video).astype(np.float32)
  offset = video.astype(np.float32) / 255 - base
  rays = np.array([*world.COLOURS.values(), world.BROWN], np.float32) - base
  where, label, alpha = _label(offset, rays, config)
  num_colours = len(COLOURS)
  frame = where // (H * W)
  areas = np.bincount(frame * (num_colours + 1) + label, alpha, T * (num_colours + 1)).reshape(T, -1) / W**2
  tracks = {}
  for c in np.flatnonzero((areas[:, :num_colours] >= config.min_area).any(0)):
    of_colour = label == c
    maps = np.zeros((T, H, W), np.float32)
    maps.reshape(-1)[where[of_colour]] = alpha[of_colour]
    # The shape is told from the unthresholded coverage, in which a blurred edge is still whole.
    soft = np.clip(np.einsum('thwc,c->thw', offset, rays[c] / np.square(rays[c]).sum()), 0, 1.2)
    soft.reshape(-1)[where[~of_colour]] = 0
    track = _track(COLOURS[c], maps, soft, config)
    if track is not None:
      tracks[COLOURS[c]] = track
  counts = sum((t.present.astype(int) for t in tracks.values()), np.zeros(T, int))
  pillar = _pillar(where[label == num_colours], T, H, W)
  return Parse(float(fps), H, W, tracks, pillar, counts)


def background(video: np.ndarray) -> np.ndarray:
  """RGB float[3] in [0, 1]: the median colour, unless that is too far from the world's to be its background."""
  nominal = np.array(world.BACKGROUND)
  # Every 7th pixel is enough for a median, and sorting all would cost more than the rest of the parser.
  median = np.median(video.reshape(-1, 3)[::7], axis=0) / 255
  return median if np.abs(median - nominal).max() < .12 else nominal


def _label(offset: np.ndarray, rays: np.ndarray, config: ParserConfig):
  """Flat indices of labelled pixels, their label (7 is brown), and their coverage."""
  bright = np.flatnonzero(np.einsum('thwc,thwc->thw', offset, offset) > config.threshold**2)
  d = offset.reshape(-1, 3)[bright]
  lengths = np.linalg.norm(rays, axis=1)
  # einsum and not @: on products this small a threaded BLAS mostly waits for its threads.
  along = np.einsum('nc,kc->nk', d, rays / lengths[:, None])
  label = along.argmax(1)
  along = np.take_along_axis(along, label[:, None], 1)[:, 0]
  keep = along > config.cone * np.linalg.norm(d, axis=1)
  alpha = np.clip(along / lengths[label], 0, 1)
  return bright[keep], label[keep], alpha[keep]


def _track(colour: str, maps: np.ndarray, soft: np.ndarray, config: ParserConfig) -> Track | None:
  """The densest blob of one colour's coverage float[T, H, W] (soft: without threshold); None if nowhere large."""
  T, H, W = maps.shape
  frames = np.flatnonzero(maps.sum((1, 2)) / W**2 >= config.min_area)
  maps = maps[frames]
  own = _blob(maps)
  maps -= own
  found, keep = _objects(own, config)
  doubled = np.zeros(T, bool)
  more = np.flatnonzero(keep & (maps.sum((1, 2)) / W**2 >= config.min_area))
  if more.size:
    others, second = _objects(_blob(maps[more]), config)
    doubled[frames[more[second]]] = True
    _follow(found, keep, more[second], others[second])
  if not keep.any():
    return None
  frames, (area, x, y) = frames[keep], found[keep].T
  likeness = _match_shapes(soft[frames], x, y, area)
  best = likeness.argmax(1)
  y = y - np.where(best == SHAPES.index('triangle'), np.sqrt(area / AREA['triangle']) / 3, 0)
  positions, areas, all_likeness = np.full((T, 2), np.nan), np.zeros(T), np.full((T, 3), np.nan)
  positions[frames] = np.stack([x, y], 1)
  areas[frames], all_likeness[frames] = area, likeness
  return Track(colour, positions, areas, all_likeness, doubled)


def _objects(maps: np.ndarray, config: ParserConfig) -> tuple[np.ndarray, np.ndarray]:
  """Area, x and y float[T, 3] of one blob in each frame, coverage float[T, H, W]; bool[T]: whether it is an object."""
  if config.rescale:
    # This ratio of moments is a blob's plateau, little lowered by its edge.
    square = maps * maps
    peak = (square * maps).sum((1, 2)) / np.maximum(square.sum((1, 2)), 1e-6) / .98
    maps = np.minimum(1, maps / np.clip(peak, .3, 1)[:, None, None])
  area = maps.sum((1, 2)) / maps.shape[-1]**2
  x, y = _centroids(maps)
  return np.stack([area, x, y], 1), (area >= config.min_area) & (_compactness(maps, x, y, area) > COMPACT)


def _follow(found: np.ndarray, keep: np.ndarray, frames: np.ndarray, others: np.ndarray):
  """Puts the other of two objects float[len(frames), 3] into `found` where it is nearer to where the object was last:
  which of two equals is the denser is chance."""
  for k, other in zip(frames, others):
    last = found[:k][keep[:k]][-1:]
    if len(last) and np.hypot(*(other - last[0])[1:]) < np.hypot(*(found[k] - last[0])[1:]):
      found[k] = other


def _centroids(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """x, y float[T] in widths."""
  T, H, W = maps.shape
  mass = np.maximum(maps.sum((1, 2)), 1e-6)
  return (maps.sum(1) @ (np.arange(W) + .5)) / mass / W, (maps.sum(2) @ (np.arange(H) + .5)) / mass / W


def _compactness(maps: np.ndarray, x: np.ndarray, y: np.ndarray, area: np.ndarray) -> np.ndarray:
  """float[T]: the share of the coverage that lies in the disc of equal area around the centroid; 1 for a disc."""
  T, H, W = maps.shape
  rows, columns = np.arange(H)[:, None] + .5, np.arange(W) + .5
  square = (rows - y[:, None, None] * W)**2 + (columns - x[:, None, None] * W)**2
  return (maps * (square <= (area * W**2 / np.pi)[:, None, None])).sum((1, 2)) / np.maximum(maps.sum((1, 2)), 1e-6)


def _blob(maps: np.ndarray) -> np.ndarray:
  """float[T, H, W]: the coverage in a disc around the densest place, grown by mean shifts until it just holds an object
  of the area that is in it: two objects of one colour are not one."""
  T, H, W = maps.shape
  k = max(1, round(.06 * W))
  sums = np.zeros((T, H + 2 * k + 1, W + 2 * k + 1), np.float32)
  sums[:, 1 + k:1 + k + H, 1 + k:1 + k + W] = maps
  sums = sums.cumsum(1).cumsum(2)
  sums[:, :, 1 + k + W:] = sums[:, :, k + W:k + W + 1]
  sums[:, 1 + k + H:] = sums[:, k + H:k + H + 1]
  box = sums[:, 2 * k + 1:, 2 * k + 1:] - sums[:, :-2 * k - 1, 2 * k + 1:]
  box = box - sums[:, 2 * k + 1:, :-2 * k - 1] + sums[:, :-2 * k - 1, :-2 * k - 1]
  y, x = np.divmod(box.reshape(T, -1).argmax(1), W)
  mass = box.reshape(T, -1).max(1)
  rows, columns = np.arange(H), np.arange(W)
  for _ in range(4):
    # A triangle's corners are 1.56 equal-area radii from its centroid, the farthest of the three shapes.
    reach = 1.75 * np.sqrt(mass / np.pi) + 2
    inside = (rows[:, None] - y[:, None, None])**2 + (columns - x[:, None, None])**2 <= (reach**2)[:, None, None]
    kept = maps * inside
    mass = np.maximum(kept.sum((1, 2)), 1e-6)
    y, x = (kept.sum(2) @ rows) / mass, (kept.sum(1) @ columns) / mass
  return kept


@functools.cache
def _templates() -> tuple[np.ndarray, np.ndarray]:
  """Unit-norm renderings float32[N, GRID²] of all shapes at several scales and blurs, and the shape int[N] of each.

  The unit of length is the radius of the disc of equal area; the centroid is in the middle.
  """
  x = np.linspace(-REACH, REACH, GRID)
  dx, dy = np.abs(x)[None, :], x[:, None]
  drawn, which = [], []
  for s, shape in enumerate(SHAPES):
    for scale in (.8, .9, 1., 1.1, 1.2):
      r = scale * np.sqrt(np.pi / AREA[shape])
      if shape == 'circle':
        distance = np.sqrt(dx * dx + dy * dy) - r
      elif shape == 'square':
        distance = np.maximum(dx, np.abs(dy)) - r
      else:
        below = dy + r / 3  # offset from the box centre
        distance = np.maximum(below - r, (np.sqrt(3) * dx - below - r) / 2)
      coverage = np.clip(.5 - distance / .15, 0, 1)
      for sigma in (.05, .2, .35, .5, .65):
        blur = np.exp(-(x[:, None] - x)**2 / (2 * sigma**2))
        blur /= blur.sum(1, keepdims=True)
        image = (blur @ coverage @ blur.T).ravel()
        drawn.append(image / np.linalg.norm(image))
        which.append(s)
  return np.array(drawn, np.float32), np.array(which)


def _match_shapes(maps: np.ndarray, x: np.ndarray, y: np.ndarray, area: np.ndarray) -> np.ndarray:
  """Cosine float[T, 3] between coverage float[T, H, W] around its centroid and the best rendering of each shape."""
  T, H, W = maps.shape
  offsets = np.linspace(-REACH, REACH, GRID) * np.sqrt(area / np.pi)[:, None] * W
  columns, rows = x[:, None] * W - .5 + offsets, y[:, None] * W - .5 + offsets
  # Only what lies inside the frame is compared, so that half an object is not a shape of its own.
  inside = ((rows > -.5) & (rows < H - .5))[:, :, None] & ((columns > -.5) & (columns < W - .5))[:, None, :]
  inside = inside.reshape(T, -1).astype(np.float32)
  columns, rows = np.clip(columns, 0, W - 1.001), np.clip(rows, 0, H - 1.001)
  i, j = rows.astype(int), columns.astype(int)
  v, u = (rows - i)[:, :, None], (columns - j)[:, None, :]
  flat, index = maps.reshape(T, -1), (i[:, :, None] * W + j[:, None, :]).reshape(T, -1)
  corner = lambda step: np.take_along_axis(flat, index + step, 1).reshape(T, GRID, GRID)
  patch = (corner(0) * (1 - u) + corner(1) * u) * (1 - v) + (corner(W) * (1 - u) + corner(W + 1) * u) * v
  patch = patch.reshape(T, -1).astype(np.float32) * inside
  templates, which = _templates()
  norms = np.linalg.norm(patch, axis=1)[:, None] * np.sqrt(np.einsum('tp,np->tn', inside, np.square(templates)))
  cosine = np.einsum('tp,np->tn', patch, templates) / np.maximum(norms, 1e-6)
  return np.stack([cosine[:, which == s].max(1) for s in range(len(SHAPES))], 1)


def _pillar(where: np.ndarray, T: int, H: int, W: int) -> tuple[float, float] | None:
  """(x0, x1) of the widest run of columns that are brown over most of their height, if wider than a line."""
  columns = np.bincount(where % W, minlength=W) / (T * H) > .5
  edges = np.flatnonzero(np.diff(np.concatenate([[0], columns.astype(int), [0]])))
  runs = [(a / W, b / W) for a, b in zip(edges[::2], edges[1::2]) if (b - a) / W > .06]
  return max(runs, key=lambda run: run[1] - run[0], default=None)
