"""Which cells of a sweep are worse than the best of a metric, beyond noise.

The best is picked from the cells for its value, so any two of them may be the ones that are compared, and the more
there are, the further the best of equal ones lies above the others. Each comparison is therefore held to 5 % divided by
the number of pairs of cells (Dunn, "Multiple comparisons among means", 1961): of cells that are all equal, about one
metric in twenty marks any, or fewer, however many cells there are. That there are several metrics is not allowed for.

Two cells that have nearly all their clips in common (same number, same caption) are compared by the differences of
these, others by all their clips (Welch, "The generalization of Student's problem", 1947), both by Student's t: no
bootstrap of 1000 draws reaches levels that low. Of distances between sets, which belong to no clip, the spread over
halves is the standard error. Of signed errors the sizes of the means are compared.
"""
import math

import numpy as np
from jax.scipy import special

from veojax.evaluation import benchmark
from veojax.evaluation.benchmark import LEAST_CLIPS, Row, Score

LEVEL = 0.05  # for all cells of a metric together
NEARLY_ALL = 0.9  # of the clips of the cell that has fewer
BESTS = {'higher': max, 'lower': min, 'zero': lambda values, key: min(values, key=lambda v: abs(key(v)))}

Judged = tuple[list[Row], Score]


def marks(cells: dict[str, Judged], metric: str, better: str) -> dict[str, str]:
  """{cell's name: 'best', 'worse' (than the best, beyond noise) or ''} of what is judged of each cell: its rows, and
  its score of the metric. Empty of metrics of which neither way is better."""
  if not cells or better not in BESTS:
    return {}
  best = BESTS[better](cells, key=lambda name: cells[name][1].value)
  level = LEVEL / max(1, math.comb(len(cells), 2))
  return {name: 'best' if name == best else 'worse' if chance(own, cells[best], metric, better) < level else ''
          for name, own in cells.items()}


def chance(one: Judged, best: Judged, metric: str, better: str) -> float:
  """How likely two equal cells, of which neither is picked, differ as much as one does from a better one (two-sided): 1
  where it is not worse, or where fewer than LEAST_CLIPS clips tell."""
  if min(one[1].defined, best[1].defined) < LEAST_CLIPS:
    return 1.
  pairs_N2 = paired(one[0], best[0], metric)
  each = [(values := benchmark.values(rows, metric))[np.isfinite(values)] for rows, _ in (one, best)]
  if not all(map(len, each)):  # a distance between sets
    (value, error), (least, least_error) = (_of_set(score, better) for _, score in (one, best))
    return _tail(value - least, math.hypot(error, least_error), math.inf)
  if len(pairs_N2) >= max(LEAST_CLIPS, NEARLY_ALL * min(map(len, each))):
    a, b = (losses(values, better) for values in pairs_N2.T)
    return _tail(float(np.mean(a - b)), _error(a - b), len(a) - 1)
  a, b = (losses(values, better) for values in each)
  errors = _error(a), _error(b)
  error = math.hypot(*errors)
  parts = sum(e ** 4 / (len(x) - 1) for e, x in zip(errors, (a, b)))
  return _tail(float(a.mean() - b.mean()), error, error ** 4 / parts if parts else math.inf)


def paired(a: list[Row], b: list[Row], metric: str) -> np.ndarray:
  """float64[n, 2]: the values of the clips that both have and that define the metric in both."""
  there = {(row.index, row.text): row.values.get(metric, math.nan) for row in b}
  pairs = [(row.values.get(metric, math.nan), there.get((row.index, row.text), math.nan)) for row in a]
  return np.array([pair for pair in pairs if np.isfinite(pair).all()]).reshape(-1, 2)


def losses(values: np.ndarray, better: str) -> np.ndarray:
  """The values with the sign by which a lower mean is better; of signed errors, that of their mean."""
  return {'higher': -1., 'lower': 1., 'zero': math.copysign(1., values.mean())}[better] * values


def _of_set(score: Score, better: str) -> tuple[float, float]:
  """(value, of which less is better, its standard error): the 95 % interval is 2 * 1.96 of these."""
  return float(losses(np.float64(score.value), better)), (score.high - score.low) / (2 * 1.96)


def _error(values: np.ndarray) -> float:
  """The standard error of the mean."""
  return float(values.std(ddof=1)) / math.sqrt(len(values))


def _tail(difference: float, error: float, freedom: float) -> float:
  """Student's probability of a difference at least as large, either way; 1 where it is none or negative. freedom: the
  degrees of it, infinite for the normal distribution."""
  if difference <= 0:
    return 1.
  if error == 0:
    return 0.
  t = difference / error
  if math.isinf(freedom):
    return math.erfc(t / math.sqrt(2))
  return float(special.betainc(freedom / 2, .5, freedom / (freedom + t * t)))
