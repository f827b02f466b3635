"""Pixels → the path of the camera, without a network: what the background does from frame to frame.

Convention of `world.Camera`: screen = (p - centre) zoom + (1/2, aspect/2), y down, in widths; so between two frames the
background moves by s' = m + ρ (s - m) - d, with ρ the ratio of the zooms, d = the move of the centre times the new
zoom, and m the middle of the frame. ρ and d are found by least squares on the pixels that no object covers (Lucas &
Kanade 1981, by Gauss-Newton).
"""
import numpy as np

from veojax.data import world
from veojax.evaluation import world_parser

BLUR = 1.5           # pixels, so that a dot smaller than a pixel has a slope
CLIP = .12           # RGB distance from the background beyond which lines would outweigh the dots
ROUNDS = 8
STILL = .02          # widths/s and 1/s below which a camera stands
TEXTURE = 1e-6       # least mean squared slope, of RGB in [0, 1] per pixel, that shows a motion


def path(video: np.ndarray) -> np.ndarray:
  """uint8[T, H, W, 3] → float64[T, 3]: centre x and y and zoom of every frame, from (0, 0, 1) on. A camera that begins
  with another zoom moves less in the world by that factor: the picture does not tell."""
  T, H, W, _ = video.shape
  light, weight = _background(video)
  steps = [_step(light[k], light[k + 1], weight[k] * weight[k + 1]) for k in range(T - 1)]
  out = np.zeros((T, 3))
  out[0] = 0., 0., 1.
  for k, (rho, dx, dy) in enumerate(steps):
    zoom = out[k, 2] * rho
    out[k + 1] = out[k, 0] + dx / W / zoom, out[k, 1] + dy / W / zoom, zoom
  return out


def speeds(values: np.ndarray, fps: float) -> tuple[np.ndarray, float]:
  """(mean velocity of the centre float[2] in widths/s, mean rate of log zoom in 1/s) of a path float[T, 3]."""
  seconds = (len(values) - 1) / fps
  return (values[-1, :2] - values[0, :2]) / seconds, float(np.log(values[-1, 2] / values[0, 2]) / seconds)


def move(values: np.ndarray, fps: float) -> str:
  """The one of `world.CAMERA_MOVES` that a path is most of."""
  (vx, vy), rate = speeds(values, fps)
  candidates = {'pan left': -vx, 'pan right': vx, 'pan up': -vy, 'pan down': vy, 'zoom in': rate, 'zoom out': -rate}
  best = max(candidates, key=candidates.get)
  return best if candidates[best] > STILL else 'static'


def _background(video: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Blurred brightness above the background float[T, H, W], and 1 where no object is near, else 0."""
  offset = video.astype(np.float32) / 255 - world_parser.background(video).astype(np.float32)
  size = np.linalg.norm(offset, axis=-1)
  rays = np.array(list(world.COLOURS.values()), np.float32) - np.float32(world.BACKGROUND)
  rays /= np.linalg.norm(rays, axis=1, keepdims=True)
  brown = np.float32(world.BROWN) - np.float32(world.BACKGROUND)
  likeness = np.einsum('thwc,kc->thwk', offset, rays).max(-1) / np.maximum(size, 1e-6)
  is_brown = offset @ (brown / np.linalg.norm(brown)) / np.maximum(size, 1e-6) > likeness
  objects = (size > CLIP) & ~is_brown
  covered = _smooth(objects.astype(np.float32), 2 * BLUR) > .01
  return _smooth(np.minimum(size, CLIP), BLUR), (~covered).astype(np.float32)


def _smooth(x: np.ndarray, sigma: float) -> np.ndarray:
  """Gaussian blur of float32[T, H, W] within each frame, edges repeated."""
  reach = int(np.ceil(3 * sigma))
  kernel = np.exp(-np.arange(-reach, reach + 1)**2 / (2 * sigma**2)).astype(np.float32)
  kernel /= kernel.sum()
  for axis in (1, 2):
    size = x.shape[axis]
    wide = np.pad(x, [(reach, reach) if a == axis else (0, 0) for a in range(3)], 'edge')
    x = sum(k * np.take(wide, range(n, n + size), axis) for n, k in enumerate(kernel))
  return x


def _step(before: np.ndarray, after: np.ndarray, weight: np.ndarray) -> tuple[float, float, float]:
  """(ρ, dx, dy) in pixels; (1, 0, 0) where the background shows nothing."""
  H, W = before.shape
  y, x = np.meshgrid(np.arange(H) + .5 - H / 2, np.arange(W) + .5 - W / 2, indexing='ij')
  down, right = np.gradient(before)
  if (weight * (down**2 + right**2)).mean() < TEXTURE:
    return 1., 0., 0.
  # How the sampled brightness changes with ρ, dx and dy.
  slopes = np.stack([right * x + down * y, -right, -down], -1) * weight[..., None]
  inverse = np.linalg.pinv(np.einsum('hwi,hwj->ij', slopes, slopes), rcond=1e-6)
  rho, dx, dy = 1., 0., 0.
  for _ in range(ROUNDS):
    i, j = rho * y - dy + H / 2 - .5, rho * x - dx + W / 2 - .5
    inside = (i >= 0) & (i <= H - 1) & (j >= 0) & (j <= W - 1)
    error = np.where(inside, _sample(after, i, j) - before, 0.)
    step = -inverse @ np.einsum('hwi,hw->i', slopes, error)
    rho, dx, dy = rho + step[0], dx + step[1], dy + step[2]
    if np.abs(step * (W / 2, 1, 1)).max() < 1e-3:
      break
  limit = W / 8
  return (float(rho), float(dx), float(dy)) if abs(rho - 1) < .2 and max(abs(dx), abs(dy)) < limit else (1., 0., 0.)


def _sample(image: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
  """Bilinear, at rows i and columns j; clipped to the image."""
  H, W = image.shape
  i, j = np.clip(i, 0, H - 1.001), np.clip(j, 0, W - 1.001)
  a, b = i.astype(int), j.astype(int)
  v, u = i - a, j - b
  top = image[a, b] * (1 - u) + image[a, b + 1] * u
  return top * (1 - v) + (image[a + 1, b] * (1 - u) + image[a + 1, b + 1] * u) * v
