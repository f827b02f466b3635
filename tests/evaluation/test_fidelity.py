"""PSNR and SSIM against scipy's filters, and what they see."""
import numpy as np
import pytest
import scipy.ndimage

from veojax.evaluation import fidelity


def pair(spread=20, seed=0):
  rng = np.random.default_rng(seed)
  x = scipy.ndimage.gaussian_filter(rng.normal(0, 1, (5, 24, 30, 3)), (1, 2, 2, 0))
  x = np.clip(128 + 400 * x, 0, 255).astype(np.uint8)
  return np.clip(x + rng.normal(0, spread, x.shape), 0, 255).astype(np.uint8), x


def test_psnr_is_its_definition():
  made, true = pair()
  error = np.mean((made.astype(float) - true) ** 2)
  assert fidelity.psnr(made, true) == pytest.approx(10 * np.log10(255 ** 2 / error))
  assert fidelity.psnr(true, true) == pytest.approx(120)
  assert fidelity.psnr(np.full((1, 2, 2, 3), 255, np.uint8), np.zeros((1, 2, 2, 3), np.uint8)) == pytest.approx(0)


def test_ssim_by_scipys_gaussian_filter():
  made, true = pair()
  # truncate: the filter then has 5 taps on each side; what its own border touches is cut off.
  blurred = lambda z: scipy.ndimage.gaussian_filter(z, (1.5, 1.5, 0), truncate=3.34)[5:-5, 5:-5]
  scores = []
  for x, y in zip(made.astype(float), true.astype(float)):
    mx, my = blurred(x), blurred(y)
    vx, vy, cov = blurred(x * x) - mx ** 2, blurred(y * y) - my ** 2, blurred(x * y) - mx * my
    c1, c2 = (.01 * 255) ** 2, (.03 * 255) ** 2
    scores.append(np.mean((2 * mx * my + c1) * (2 * cov + c2) / ((mx ** 2 + my ** 2 + c1) * (vx + vy + c2))))
  assert fidelity.ssim(made, true) == pytest.approx(np.mean(scores), rel=1e-9)
  assert fidelity.ssim(true, true) == pytest.approx(1)
  assert fidelity.ssim(made, true) == pytest.approx(fidelity.ssim(true, made))


def test_worse_copies_score_worse():
  scores = [(fidelity.psnr(*p), fidelity.ssim(*p), fidelity.temporal_psnr(*p)) for p in map(pair, (5, 20, 60))]
  assert all(a > b > c for a, b, c in zip(*scores))


def test_only_flicker_costs_temporal_psnr():
  _, true = pair()
  true = np.clip(true, 10, 200)
  assert fidelity.temporal_psnr(true + 10, true) == pytest.approx(120)
  flicker = true + np.array([0, 10, 0, 10, 0], np.uint8)[:, None, None, None]
  assert fidelity.temporal_psnr(flicker, true) == pytest.approx(20 * np.log10(255 / 10))
  assert fidelity.psnr(flicker, true) > fidelity.psnr(true + 10, true)


def test_frames_smaller_than_the_window_are_refused():
  small = np.zeros((1, 10, 30, 3), np.uint8)
  with pytest.raises(ValueError, match='10×30'):
    fidelity.ssim(small, small)
