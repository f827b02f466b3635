"""Dense optical flow by polynomial expansion (Farnebäck 2003), without a network.

Every neighbourhood is fitted by f(x) ~ xᵀ A x + bᵀ x + c under a Gaussian weight. A shift by d turns b into b - 2 A d,
so d solves  Σ AᵀA d = Σ AᵀΔb,  A the mean of both frames' and Δb = (b1 - b2)/2 + A d0 at the shift d0 known so far,
summed over a window; coarse to fine. The constants are those with which OpenCV's function is usually called (pyramid
1/2, 3 levels, window 15, 3 iterations, neighbourhood 5, deviation 1.2), as AV-Align and others do.

Images are float[H, W]; flow is float[H, W, 2], (x, y) in pixels from a frame to the next.
"""
import numpy as np

RADIUS, DEVIATION = 5, 1.2
WINDOW, ITERATIONS, LEVELS, SMALLEST = 15, 3, 3, 32
EDGE = np.array([.14, .14, .4472, .4472, .4472])  # what neighbourhoods that reach over the frame's edge weigh


def flow(before_HW: np.ndarray, after_HW: np.ndarray) -> np.ndarray:
  """float32[H, W, 2]."""
  height, width = before_HW.shape
  levels = 1
  while levels <= LEVELS and min(height, width) * .5 ** levels >= SMALLEST:
    levels += 1
  found = None
  for level in range(levels - 1, -1, -1):
    scale = .5 ** level
    size = max(1, round(height * scale)), max(1, round(width * scale))
    one, two = (expansion(_smaller(image, size, level)) for image in (before_HW, after_HW))
    found = np.zeros((*size, 2)) if found is None else _resize(found, size) * 2
    for _ in range(ITERATIONS):
      found = _improved(one, two, found)
  return found.astype(np.float32)


def grey(video_THWC: np.ndarray) -> np.ndarray:
  """float64[T, H, W]: luma (BT.601) of uint8 RGB, 0 to 255."""
  return video_THWC @ np.array([.299, .587, .114])


def expansion(image_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(A float[H, W, 2, 2], b float[H, W, 2]) of every neighbourhood, coordinates (x, y)."""
  at = np.arange(-RADIUS, RADIUS + 1)
  weight = np.exp(-at ** 2 / (2 * DEVIATION ** 2))
  weight /= weight.sum()
  basis = [(0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (1, 1)]  # powers of x and y
  moment = [np.sum(weight * at ** k) for k in range(5)]
  gram = np.array([[moment[a + c] * moment[b + d] for c, d in basis] for a, b in basis])
  padded = np.pad(image_HW.astype(np.float64), RADIUS, mode='edge')
  rows = [_correlate(padded, weight * at ** k, 1) for k in range(3)]
  measured = np.stack([_correlate(rows[a], weight * at ** b, 0) for a, b in basis], -1)
  _, x, y, xx, yy, xy = np.moveaxis(measured @ np.linalg.inv(gram), -1, 0)
  return np.stack([np.stack([xx, xy / 2], -1), np.stack([xy / 2, yy], -1)], -1), np.stack([x, y], -1)


def _improved(one, two, flow_HWC):
  """The shift of every pixel, from the shift that is known so far."""
  (a1, b1), (a2, b2) = one, two
  h, w, _ = flow_HWC.shape
  y, x = np.mgrid[:h, :w]
  to_x, to_y = x + flow_HWC[..., 0], y + flow_HWC[..., 1]
  inside = (to_x >= 0) & (to_x <= w - 1) & (to_y >= 0) & (to_y <= h - 1)
  matrix = np.where(inside[..., None, None], (a1 + _sampled(a2, to_x, to_y)) / 2, a1)
  delta = np.where(inside[..., None], (b1 - _sampled(b2, to_x, to_y)) / 2, b1 / 2)
  delta = delta + np.einsum('hwij,hwj->hwi', matrix, flow_HWC)
  weight = _edge_weight(h)[:, None] * _edge_weight(w)
  gram = np.einsum('hwki,hwkj->hwij', matrix, matrix) * weight[..., None, None]
  right = np.einsum('hwki,hwk->hwi', matrix, delta) * weight[..., None]
  g, r = (_box(array.reshape(h, w, -1)) for array in (gram, right))
  determinant = g[..., 0] * g[..., 3] - g[..., 1] ** 2 + 1e-3
  return np.stack([g[..., 3] * r[..., 0] - g[..., 1] * r[..., 1],
                   g[..., 0] * r[..., 1] - g[..., 1] * r[..., 0]], -1) / determinant[..., None]


def _edge_weight(size: int) -> np.ndarray:
  weight = np.ones(size)
  reach = min(len(EDGE), size)
  weight[:reach] *= EDGE[:reach]
  weight[::-1][:reach] *= EDGE[:reach]
  return weight


def _sampled(array: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Values at real coordinates, linear between pixels, held at the edges."""
  h, w = array.shape[:2]
  x, y = np.clip(x, 0, w - 1), np.clip(y, 0, h - 1)
  left, top = np.minimum(x.astype(int), max(0, w - 2)), np.minimum(y.astype(int), max(0, h - 2))
  right, bottom = np.minimum(left + 1, w - 1), np.minimum(top + 1, h - 1)
  shape = (*x.shape, *(1,) * (array.ndim - 2))
  u, v = (x - left).reshape(shape), (y - top).reshape(shape)
  return ((1 - v) * ((1 - u) * array[top, left] + u * array[top, right])
          + v * ((1 - u) * array[bottom, left] + u * array[bottom, right]))


def _box(array: np.ndarray) -> np.ndarray:
  """Means over WINDOW × WINDOW, edges repeated."""
  for axis in (0, 1):
    pad = [(0, 0)] * array.ndim
    pad[axis] = (WINDOW // 2 + 1, WINDOW // 2)
    total = np.cumsum(np.pad(array, pad, mode='edge'), axis)
    size = array.shape[axis]
    array = (np.take(total, range(WINDOW, WINDOW + size), axis) - np.take(total, range(size), axis)) / WINDOW
  return array


def _correlate(array: np.ndarray, taps: np.ndarray, axis: int) -> np.ndarray:
  size = array.shape[axis] - len(taps) + 1
  return sum(tap * np.take(array, range(i, i + size), axis) for i, tap in enumerate(taps))


def _smaller(image: np.ndarray, size: tuple[int, int], level: int) -> np.ndarray:
  """Blurred as far as halving `level` times needs, and resized."""
  sigma = (2 ** level - 1) * .5
  radius = max(3, round(sigma * 5) | 1) // 2
  taps = np.exp(-np.arange(-radius, radius + 1) ** 2 / (2 * max(sigma, 1e-6) ** 2))
  taps /= taps.sum()
  mode = 'reflect' if min(image.shape) > radius else 'edge'
  for axis in (0, 1):
    pad = [(0, 0), (0, 0)]
    pad[axis] = (radius, radius)
    image = _correlate(np.pad(image, pad, mode=mode), taps, axis)
  return _resize(image, size)


def _resize(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Linear between pixel centres."""
  y, x = (np.arange(new) * (old / new) + (old / new - 1) / 2 for new, old in zip(size, array.shape[:2]))
  return _sampled(array, *np.broadcast_arrays(x[None], y[:, None]))
