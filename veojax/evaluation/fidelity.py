"""How near a clip comes to another, in pixels. Clips are uint8[T, H, W, 3] of the same shape.

PSNR is of the mean squared error of the whole clip, with the peak 255; what is exact has 120 dB. SSIM is Wang et al.
2004: Gaussian windows of 11 × 11 with standard deviation 1.5 that lie wholly inside, per channel, mean of all.
"""
import numpy as np

LEAST = 1e-12  # of a mean square, in units of the peak's: 120 dB
TAPS = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5 ** 2))
TAPS /= TAPS.sum()
C1, C2 = .01 ** 2, .03 ** 2  # of pixels in [0, 1]


def psnr(made: np.ndarray, true: np.ndarray) -> float:
  """In dB."""
  return _decibels(_unit(made) - _unit(true))


def temporal_psnr(made: np.ndarray, true: np.ndarray) -> float:
  """PSNR in dB of the differences from frame to frame: still errors cost nothing, flickering ones twice."""
  return _decibels(np.diff(_unit(made) - _unit(true), axis=0))


def ssim(made: np.ndarray, true: np.ndarray) -> float:
  """Structural similarity, at most 1. ValueError for frames smaller than its window."""
  if min(true.shape[1:3]) < len(TAPS):
    raise ValueError(f'frames of {true.shape[1]}×{true.shape[2]}; SSIM needs at least {len(TAPS)}×{len(TAPS)}')
  return float(np.mean([_ssim(_unit(x), _unit(y)) for x, y in zip(made, true, strict=True)]))


def _unit(x: np.ndarray) -> np.ndarray:
  return np.asarray(x, np.float64) / 255


def _decibels(error: np.ndarray) -> float:
  return float(-10 * np.log10(max(np.mean(np.square(error)), LEAST)))


def _ssim(x: np.ndarray, y: np.ndarray) -> float:
  mean_x, mean_y = _blurred(x), _blurred(y)
  var_x, var_y = _blurred(x * x) - mean_x ** 2, _blurred(y * y) - mean_y ** 2
  covariance = _blurred(x * y) - mean_x * mean_y
  return np.mean((2 * mean_x * mean_y + C1) * (2 * covariance + C2)
                 / ((mean_x ** 2 + mean_y ** 2 + C1) * (var_x + var_y + C2)))


def _blurred(x_HWC: np.ndarray) -> np.ndarray:
  h, w = (size - len(TAPS) + 1 for size in x_HWC.shape[:2])
  rows = sum(tap * x_HWC[i:i + h] for i, tap in enumerate(TAPS))
  return sum(tap * rows[:, i:i + w] for i, tap in enumerate(TAPS))
