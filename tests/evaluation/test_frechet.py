"""The Fréchet distance against closed forms and scipy's matrix root, and sums that may be taken in any parts."""
import numpy as np
import pytest
import scipy.linalg

from veojax.evaluation.frechet import Moments, cubic, distance, gaussian, mmd


def moments(mean, covariance, count=50) -> Moments:
  """Sums whose mean and unbiased covariance are exactly these."""
  mean, covariance = np.asarray(mean, float), np.asarray(covariance, float)
  return Moments(count, count * mean, (count - 1) * covariance + count * np.outer(mean, mean))


def by_scipy(x, y):
  a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
  root = scipy.linalg.sqrtm(a @ b)
  return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2 * root.real)


def test_gaussians_with_a_closed_form():
  # Of one dim: (m1 - m2)² + (s1 - s2)².
  assert distance(moments([1.], [[4.]]), moments([-2.], [[25.]])) == pytest.approx(9 + 9, rel=1e-12)
  # Covariances that commute: |m1 - m2|² + Σ (s1 - s2)² over the common axes.
  turn = scipy.linalg.expm(np.array([[0, 1, 2], [-1, 0, .5], [-2, -.5, 0]]))
  s1, s2 = np.array([1., 2., 3.]), np.array([.5, 2., 0.])
  one = moments([0, 0, 0], turn @ np.diag(s1 ** 2) @ turn.T)
  two = moments([1, 2, 2], turn @ np.diag(s2 ** 2) @ turn.T)
  assert distance(one, two) == pytest.approx(9 + np.sum((s1 - s2) ** 2), rel=1e-12)


def test_equals_scipys_root():
  rng = np.random.default_rng(0)
  x, y = (rng.normal(size=(n, 12)) @ rng.normal(size=(12, 12)) + mean for n, mean in ((90, 0), (70, 3)))
  assert distance(Moments.of(x), Moments.of(y)) == pytest.approx(by_scipy(x, y), rel=1e-9)


def test_fewer_features_than_dims():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, 5, 40))
  got = distance(Moments.of(x), Moments.of(y))
  assert np.isfinite(got) and got == pytest.approx(by_scipy(x, y), rel=1e-4)  # scipy's root is rough here
  assert distance(Moments.of(x), Moments.of(x)) == pytest.approx(0, abs=1e-10)


def test_a_metric_on_distributions():
  rng = np.random.default_rng(1)
  x, y = rng.normal(size=(2, 60, 6))
  one, two = Moments.of(x), Moments.of(1.5 * y + 1)
  assert distance(one, two) == pytest.approx(distance(two, one), rel=1e-10)
  turn = scipy.linalg.qr(rng.normal(size=(6, 6)))[0]
  turned = distance(Moments.of(x @ turn + 7), Moments.of((1.5 * y + 1) @ turn + 7))
  assert turned == pytest.approx(distance(one, two), rel=1e-9)


def test_parts_in_any_order_give_the_distance_of_the_whole():
  rng = np.random.default_rng(2)
  x, y = rng.normal(5, 2, size=(2, 64, 8))
  want = distance(Moments.of(x), Moments.of(y))
  for processes in (1, 2, 4):
    parts = [sum((Moments.of(x[i:i + 1]) for i in range(p, 64, processes)), Moments.none(8)) for p in range(processes)]
    merged = sum((parts[p] for p in rng.permutation(processes)), Moments.none(8))
    assert merged.count == 64 and distance(merged, Moments.of(y)) == pytest.approx(want, rel=1e-12)


def test_the_discrepancy_is_its_definition_and_unbiased():
  rng = np.random.default_rng(4)
  x, y = rng.normal(size=(9, 3)), rng.normal(1, 1, size=(7, 3))
  for kernel, plain in ((cubic, lambda a, b: (np.dot(a, b) / 3 + 1) ** 3),
                        (gaussian(1.5), lambda a, b: np.exp(-np.sum((a - b) ** 2) / 4.5))):
    pairs = lambda a, b, same: np.mean([plain(u, v) for i, u in enumerate(a) for j, v in enumerate(b)
                                        if not same or i != j])
    want = pairs(x, x, True) + pairs(y, y, True) - 2 * pairs(x, y, False)
    assert mmd(x, y, kernel) == pytest.approx(want, rel=1e-10)
  same = [mmd(*rng.normal(size=(2, 20, 3)), gaussian(1.)) for _ in range(200)]
  assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(200) and min(same) < 0 < max(same)


def test_what_has_no_distance_is_refused():
  with pytest.raises(ValueError, match='at least 2'):
    distance(moments([0.], [[1.]]), Moments.of([[1.]]))
  with pytest.raises(ValueError, match='finite'):
    Moments.of([[np.nan]])
