"""How Stable Video Diffusion's published pipeline makes its inputs of a picture; every step changes what comes out.

The autoencoder sees the picture resized by Lanczos' kernel of three lobes, in bytes, first along rows and then along
columns. CLIP sees it blurred by a Gaussian as wide as it is to shrink, and taken at the places of a grid whose corners
are the picture's, by cubic convolution (Keys 1981, a = -.75).
"""
import numpy as np
from jaxtyping import Float, UInt8

CUBIC = -0.75
LOBES = 3
CLIP_BLUR = 2  # the kernel ends at so many deviations


def middle(picture_HWC: UInt8[np.ndarray, 'h w 3'], height: int, width: int) -> UInt8[np.ndarray, 'h2 w2 3']:
  """The largest part of the middle that has the form of height × width."""
  H, W, _ = picture_HWC.shape
  scale = min(H / height, W / width)
  h, w = min(H, max(1, round(height * scale))), min(W, max(1, round(width * scale)))
  y, x = (H - h) // 2, (W - w) // 2
  return picture_HWC[y:y + h, x:x + w]


def resized(picture_HWC: UInt8[np.ndarray, 'h w 3'], height: int, width: int) -> UInt8[np.ndarray, 'h2 w2 3']:
  """By Lanczos' kernel, as wide as the picture shrinks."""
  H, W, _ = picture_HWC.shape
  rows = _bytes(np.einsum('xw,hwc->hxc', lanczos(W, width), picture_HWC)) if W != width else picture_HWC
  return _bytes(np.einsum('yh,hxc->yxc', lanczos(H, height), rows)) if H != height else rows


def _bytes(x):
  return np.clip(np.floor(x + 0.5), 0, 255).astype(np.uint8)


def lanczos(size: int, new_size: int) -> Float[np.ndarray, 'new old']:
  """Weights of the old cells in each new one."""
  scale = size / new_size
  wide = max(scale, 1.0)
  weights = np.zeros((new_size, size))
  for i in range(new_size):
    centre = (i + 0.5) * scale
    first, end = max(0, int(centre - LOBES * wide + 0.5)), min(size, int(centre + LOBES * wide + 0.5))
    x = (np.arange(first, end) - centre + 0.5) / wide
    row = np.where(np.abs(x) < LOBES, np.sinc(x) * np.sinc(x / LOBES), 0)
    weights[i, first:end] = row / row.sum()
  return weights


def antialiased(x_HWC: Float[np.ndarray, 'h w c'], side: int) -> Float[np.ndarray, 'side side c']:
  """To side × side, whatever the form."""
  for dim in range(2):
    x_HWC = _along(blur(x_HWC.shape[dim], side), x_HWC, dim)
  for dim in range(2):
    x_HWC = _along(cubic(x_HWC.shape[dim], side), x_HWC, dim)
  return x_HWC.astype(np.float32)


def _along(weights, x, dim):
  return np.moveaxis(np.tensordot(weights, x, (1, dim)), 0, dim)


def blur(size: int, new_size: int) -> Float[np.ndarray, 'size size']:
  """Weights of a Gaussian blur before so many cells become fewer; the picture is mirrored about its outermost cells.
  ValueError where it is too small for that."""
  sigma = max((size / new_size - 1) / 2, 0.001)
  taps = int(max(2 * CLIP_BLUR * sigma, 3))
  reach = (taps + (taps % 2 == 0)) // 2
  if reach >= size:
    raise ValueError(f'the picture has a side of {size} pixels; give one of {reach + 1} or more')
  kernel = np.exp(-np.square(np.arange(-reach, reach + 1)) / (2 * sigma ** 2))
  weights = np.zeros((size, size))
  for offset, weight in zip(range(-reach, reach + 1), kernel / kernel.sum()):
    at = np.abs(np.arange(size) + offset)
    weights[np.arange(size), np.where(at >= size, 2 * (size - 1) - at, at)] += weight
  return weights


def cubic(size: int, new_size: int) -> Float[np.ndarray, 'new old']:
  """Weights of the cells at new places, the outermost of which are the outermost cells; beyond them they repeat."""
  weights = np.zeros((new_size, size))
  place = np.arange(new_size) * ((size - 1) / max(new_size - 1, 1))
  first = np.floor(place).astype(int)
  for offset in range(-1, 3):
    distance = np.abs(place - first - offset)
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance ** 2 + 1
    far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    np.add.at(weights, (np.arange(new_size), np.clip(first + offset, 0, size - 1)), np.where(distance <= 1, near, far))
  return weights
