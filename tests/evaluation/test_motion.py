"""Flow of shifts that are known, and what the measures of motion make of still, smooth and jerky clips."""
import numpy as np
import pytest

from veojax.evaluation import flow, motion


def texture(height, width, dx=0., dy=0.):
  y, x = np.mgrid[:height, :width]
  x, y = x - dx, y - dy
  return 127 + 40 * np.sin(.31 * x + .11 * y) + 35 * np.cos(.27 * y - .17 * x) + 20 * np.sin(.5 * x) * np.cos(.43 * y)


def moving(path, height=64, width=64):
  frames = np.stack([texture(height, width, 2 * dx, dx) for dx in path])
  return np.repeat(np.clip(frames, 0, 255).round().astype(np.uint8)[..., None], 3, -1)


@pytest.mark.parametrize('height, width, dx, dy', [
  (64, 64, 1.5, -1), (96, 128, 3, 2), (160, 130, -6, 4), (48, 36, .5, 0)])
def test_a_shift_is_found(height, width, dx, dy):
  found = flow.flow(texture(height, width), texture(height, width, dx, dy))
  inner = found[10:-10, 10:-10]
  assert found.shape == (height, width, 2)
  assert np.abs(inner.mean((0, 1)) - (dx, dy)).max() < .02 and np.abs(inner - (dx, dy)).mean() < .1


def test_still_and_flat_frames_do_not_flow():
  assert np.abs(flow.flow(texture(40, 50), texture(40, 50))).max() < 1e-9
  assert np.abs(flow.flow(np.full((40, 50), 9.), np.full((40, 50), 200.))).max() < 1e-9


def test_the_expansion_of_a_parabola_is_itself():
  y, x = np.mgrid[:30, :40].astype(float)
  image = .5 * x ** 2 - .25 * y ** 2 + .75 * x * y + 2 * x - 3 * y + 5
  a, b = (array[15, 20] for array in flow.expansion(image))
  np.testing.assert_allclose(a, [[.5, .375], [.375, -.25]], atol=1e-9)
  np.testing.assert_allclose(b, [x[15, 20] + .75 * y[15, 20] + 2, .75 * x[15, 20] - .5 * y[15, 20] - 3], atol=1e-9)


def test_still_smooth_and_jerky():
  still, smooth, jerky = moving(np.zeros(9)), moving(np.arange(9) * .5), moving(np.array([0, 2, 0, 2, 0, 2, 0, 2, 0]))
  assert motion.steadiness(still) == motion.smoothness(still) == 1
  assert 1 > motion.smoothness(smooth) > .99 > .9 > motion.smoothness(jerky)
  assert motion.steadiness(smooth) < 1
  flicker = still + np.array([0, 10] * 4 + [0], np.uint8)[:, None, None, None]
  assert motion.steadiness(np.clip(flicker, 0, 255)) == pytest.approx(1 - 10 / 255, abs=1e-3)


def test_speed_does_not_depend_on_rate_or_size():
  slow, fast = (motion.speeds(moving(np.arange(n) * .5 * 8 / fps), fps) for n, fps in ((5, 8), (9, 16)))
  want = .5 * np.sqrt(5) * 256 / 64
  assert len(slow) == len(fast) == 4
  assert slow.mean() == pytest.approx(want, rel=.05) and fast.mean() == pytest.approx(want, rel=.05)
  assert motion.is_dynamic(motion.speeds(moving(np.arange(5) * 2.), 8)) == 1
  assert motion.is_dynamic(motion.speeds(moving(np.zeros(5)), 8)) == 0


def test_what_is_too_short_is_undefined():
  one = moving([0])
  assert np.isnan([motion.steadiness(one), motion.smoothness(one), motion.is_dynamic(motion.speeds(one, 8))]).all()
