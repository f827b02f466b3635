"""Distances of two sets of features: Fréchet's, of the Gaussians fitted to them (Dowson & Landau 1982; Heusel et al.
2017), and the squared maximum mean discrepancy (Gretton et al. 2012).

  d² = |μ1 - μ2|² + Tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½)

For the first a set is kept as the sums (n, Σ x, Σ x xᵀ) in float64, however many features it has. Sums of parts add up:
order, number of processes and resumption leave the distance as it is, up to float64's rounding. Σ is unbiased.
"""
import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Moments:
  """count n; total float64[D], the sum of the features; outer float64[D, D], the sum of their outer products."""
  count: int
  total: np.ndarray
  outer: np.ndarray

  @classmethod
  def none(cls, dim: int) -> 'Moments':
    """Of no features: what sums begin with."""
    return cls(0, np.zeros(dim), np.zeros((dim, dim)))

  @classmethod
  def of(cls, features_ND) -> 'Moments':
    x = _checked(features_ND)
    return cls(len(x), x.sum(0), x.T @ x)

  def __add__(self, other: 'Moments') -> 'Moments':
    return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

  @property
  def mean(self) -> np.ndarray:
    return self.total / self.count

  @property
  def covariance(self) -> np.ndarray:
    return (self.outer - np.outer(self.total, self.total) / self.count) / (self.count - 1)


def _checked(features_ND) -> np.ndarray:
  x = np.asarray(features_ND, np.float64)
  if x.ndim != 2 or not np.isfinite(x).all():
    raise ValueError(f'features of shape {list(x.shape)}, {np.isfinite(x).mean():.1%} of them finite; give finite '
                     'float[N, D]')
  return x


def distance(one: Moments, two: Moments) -> float:
  """d² above. ValueError where a set has fewer than two features."""
  if min(one.count, two.count) < 2:
    raise ValueError(f'sets of {one.count} and {two.count} features; give at least 2 each')
  cov1, cov2 = one.covariance, two.covariance
  # With Σ = R Rᵀ, Tr (Σ1 Σ2)^½ is the sum of the singular values of R1ᵀ R2: no complex root of a product that is hardly
  # regular, as it is wherever there are fewer features than dims.
  cross = np.linalg.svd(_root(cov1).T @ _root(cov2), compute_uv=False).sum()
  return float(np.sum((one.mean - two.mean) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * cross)


def _root(covariance: np.ndarray) -> np.ndarray:
  values, vectors = np.linalg.eigh(covariance)
  # The root of what is only rounding would be ten thousand times as large as it.
  noise = len(values) * np.finfo(np.float64).eps * values[-1]
  return vectors * np.sqrt(np.where(values > noise, values, 0))


def cubic(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
  """(x·y / D + 1)³, the kernel of KID and KVD (Bińkowski et al. 2018)."""
  return (x_ND @ y_MD.T / x_ND.shape[1] + 1) ** 3


def gaussian(bandwidth: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
  """exp(-|x - y|² / (2 bandwidth²))."""
  def kernel(x_ND, y_MD):
    square = np.sum(x_ND ** 2, 1)[:, None] + np.sum(y_MD ** 2, 1) - 2 * x_ND @ y_MD.T
    return np.exp(-np.maximum(square, 0) / (2 * bandwidth ** 2))
  return kernel


def mmd(features_ND, others_MD, kernel: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
  """Squared maximum mean discrepancy, unbiased (Gretton et al. 2012, eq. 3): of equal distributions 0 in the mean, so
  that it may come out below."""
  x, y = _checked(features_ND), _checked(others_MD)
  if min(len(x), len(y)) < 2:
    raise ValueError(f'sets of {len(x)} and {len(y)} features; give at least 2 each')
  within = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
  return float(within(kernel(x, x)) + within(kernel(y, y)) - 2 * kernel(x, y).mean())
