"""The score of a whole set: how far the features of its clips are from the truth's, with the floor beside it.

The truth's own entry is its half-split floor, the distance of its clips of even number from those of odd number: what a
perfect model would get with half as many. Intervals are of the spread over random halves of the set against halves of
the truth: halves without repetition vary around the whole as much as the whole does around what it is drawn from.
"""
import numpy as np

from veojax.evaluation.benchmark import Row, Score
from veojax.evaluation.frechet import Moments, distance

NUM_HALVES = 20


class SetBenchmark:
  """What benchmarks share whose one score is the distance of features that rows keep under FEATURES."""
  FEATURES = ''
  KEY, WORST = (), ''  # it belongs to no clip

  def scores(self, rows: dict[str, list[Row]]) -> dict[str, dict[str, Score]]:
    by_column = score(rows, self.FEATURES)
    return {name: by_column for name in self.METRICS} if by_column else {}

  def plots(self, rows: dict[str, list[Row]]) -> dict:
    return {}


def score(rows: dict[str, list[Row]], name: str) -> dict[str, Score]:
  """{column: Score} of the Fréchet distance of the features kept under `name`, a list of them for each clip. Clips
  without any are left out. Empty where the truth has fewer than four clips."""
  sets = {column: [np.asarray(row.kept[name], np.float64) for row in part if row.kept.get(name)]
          for column, part in rows.items()}
  sets = {column: features for column, features in sets.items() if len(features) >= 4}
  if 'truth' not in sets:
    return {}
  truth, scores = sets['truth'], {}
  for column, features in sets.items():
    floor = column == 'truth'
    pair = (features[::2], features[1::2]) if floor else (features, truth)
    value = between(*pair)
    low, high = spread(*pair, value)
    asked = len(rows[column])
    scores[column] = Score(value, low, high, asked // 2 if floor else asked, len(features) / asked)
  return scores


def between(one: list[np.ndarray], two: list[np.ndarray]) -> float:
  return distance(Moments.of(np.concatenate(one)), Moments.of(np.concatenate(two)))


def spread(one: list[np.ndarray], two: list[np.ndarray], value: float) -> tuple[float, float]:
  """95 % interval around the value."""
  rng, found = np.random.default_rng(0), []
  for _ in range(NUM_HALVES):
    halves = [[x[i] for i in rng.permutation(len(x))[:max(2, len(x) // 2)]] for x in (one, two)]
    found.append(between(*halves))
  deviation = np.percentile(found, (2.5, 97.5)) - np.mean(found)
  return float(max(0., value + deviation[0])), float(value + deviation[1])
