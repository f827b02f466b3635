"""The score of a whole set: how far the features of its clips are from the truth's, with the floor beside it.

Two numbers are told of a distance. The usual one is of all clips from all true ones. The bias of Fréchet's goes as the
inverse of the number of clips, so no floor of fewer clips stands beside it. The other is of halves: of a random half of
the set from the other half of the truth. There the truth's own entry is its half-split floor, what a perfect model
would get of as many clips. Intervals are the spread over such halves: halves without repetition vary around the whole as
much as the whole does around what it is drawn from.

Rows are read clip by clip, and what a distance needs of them is kept in blocks of clips of which the halves are made.
For Fréchet's that is sums, and memory does not grow with the set; a kernel's needs the features themselves, as arrays.
"""
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from veojax.evaluation import benchmark, frechet
from veojax.evaluation.benchmark import Metric, Row, Score

NUM_BLOCKS = 32
NUM_HALVES = 20
LEAST = 4  # clips that features are needed of: two a half


class Distance(NamedTuple):
  """of: features float[N, D] → what is kept of them, whose parts add up. between: the distance of two sets, of what is
  kept of each. least: no such distance is below it."""
  of: Callable[[Any], Any]
  between: Callable[[Any, Any], float]
  least: float


FRECHET = Distance(frechet.Moments.of, frechet.distance, 0.)
CUBIC = Distance(lambda x_ND: [np.asarray(x_ND)],
                 lambda x, y: frechet.mmd(np.concatenate(x), np.concatenate(y), frechet.cubic), -math.inf)


class SetBenchmark(benchmark.Benchmark):
  """What benchmarks share whose scores are DISTANCES of features that rows keep under FEATURES, a list of them for each
  clip. METRICS: of `metrics`, for one distance after another."""
  FEATURES = ''
  DISTANCES = (FRECHET,)
  MEANING = benchmark.MEANING | {'truth': 'the half-split floor: what a perfect model would get of as many clips'}
  NOTE = ('A set is the same in whatever order, so captions of other clips change nothing, and no column is shuffled. '
          'The floor is of half of the clips, and so is what stands beside it.')

  @property
  def KEY(self) -> tuple[str, ...]:
    return tuple(self.METRICS)

  def check_count(self):
    """ValueError for so few clips that no distance would be told."""
    if self.num_clips < LEAST:
      raise ValueError(f'num_clips={self.num_clips}; halves of a set are compared, give at least {LEAST}')

  def read(self, parts: Iterable[dict[str, list[Row]]]) -> tuple[dict[str, list[Row]], dict[str, dict[str, Score]]]:
    """As every benchmark; the rows come without their features."""
    sets = [{} for _ in self.DISTANCES]

    def added():
      for part in parts:
        for column, rows in part.items():
          for distance, of_columns in zip(self.DISTANCES, sets):
            own = of_columns.setdefault(column, Blocks(distance.of))
            for row in rows:
              own.add(row.index, row.kept.get(self.FEATURES, ()))
        yield {column: [dataclasses.replace(row, kept={}) for row in rows] for column, rows in part.items()}
    columns = benchmark.gathered(added())
    told = [scores for pair in zip(sets, self.DISTANCES) for scores in compared(*pair)]
    return columns, {name: scores for name, scores in zip(self.METRICS, told, strict=True) if scores}

  def scores(self, rows: dict[str, list[Row]]) -> dict[str, dict[str, Score]]:
    return self.read([rows])[1]


def metrics(name: str, about: str = '') -> dict[str, Metric]:
  about = f'{about}; ' if about else ''
  return {name: Metric('lower', f'{about}of all clips', 'distribution'),
          f'{name}/halves': Metric('lower', f'{about}of halves, as many clips as the floor has', 'distribution')}


class Blocks:
  """What is kept of a set's features, in blocks of its clips; of: a Distance's. asked: how many clips there are; found:
  how many have features."""

  def __init__(self, of: Callable[[Any], Any]):
    self.of, self.asked, self.found, self.blocks = of, 0, 0, {}

  def add(self, index: int, features_ND):
    self.asked += 1
    if not len(features_ND):
      return
    self.found += 1
    kept = self.of(features_ND)
    # Turned by one in every round, so that no block has only clips of one level.
    block = (index + index // NUM_BLOCKS) % NUM_BLOCKS
    self.blocks[block] = self.blocks[block] + kept if block in self.blocks else kept

  def joined(self, blocks: Iterable[int]):
    first, *others = blocks
    return sum((self.blocks[n] for n in others), self.blocks[first])


def compared(sets: dict[str, Blocks], distance: Distance) -> tuple[dict[str, Score], dict[str, Score]]:
  """{column: Score} of all clips, and of halves. Without what has features in fewer than four blocks that the truth has
  too."""
  whole, halves, truth = {}, {}, sets.get('truth', Blocks(distance.of))
  for column, own in sets.items():
    shared = sorted(own.blocks.keys() & truth.blocks.keys())
    if len(shared) < LEAST:
      continue
    of_half = lambda a, b: distance.between(own.joined(shared[i] for i in a), truth.joined(shared[i] for i in b))
    value, low, high = benchmark.over_halves(of_half, len(shared), NUM_HALVES)
    coverage = own.found / own.asked
    halves[column] = Score(value, low, high, own.asked // 2, coverage)
    if column != 'truth':
      near = distance.between(own.joined(own.blocks), truth.joined(truth.blocks))
      whole[column] = Score(near, max(distance.least, near + low - value), near + high - value, own.asked, coverage)
  return whole, halves
