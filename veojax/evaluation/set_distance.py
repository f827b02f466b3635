"""The score of a whole set: how far the features of its clips are from the truth's, with the floor beside it.

Two numbers are told. The usual one is the Fréchet distance of all clips from all true ones. Its bias goes as the
inverse of the number of clips, so no floor of fewer clips stands beside it. The other is of halves: of a random half of
the set from the other half of the truth. There the truth's own entry is its half-split floor, what a perfect model
would get of as many clips. Intervals are the spread over such halves: halves without repetition vary around the whole as
much as the whole does around what it is drawn from.

Features are summed clip by clip as they are read, in blocks of clips of which the halves are made, so that memory does
not grow with the set, and no feature is kept.
"""
import dataclasses
from collections.abc import Iterable

from veojax.evaluation import benchmark
from veojax.evaluation.benchmark import Metric, Row, Score
from veojax.evaluation.frechet import Moments, distance

NUM_BLOCKS = 32
NUM_HALVES = 20


class SetBenchmark(benchmark.Benchmark):
  """What benchmarks share whose one score is the distance of features that rows keep under FEATURES, a list of them for
  each clip. METRICS: of `metrics`."""
  FEATURES = ''
  MEANING = benchmark.MEANING | {'truth': 'the half-split floor: what a perfect model would get of as many clips'}
  NOTE = ('A set is the same in whatever order, so captions of other clips change nothing, and no column is shuffled. '
          'The floor is of half of the clips, and so is what stands beside it.')

  @property
  def KEY(self) -> tuple[str, ...]:
    return tuple(self.METRICS)

  def read(self, parts: Iterable[dict[str, list[Row]]]) -> tuple[dict[str, list[Row]], dict[str, dict[str, Score]]]:
    """As every benchmark; the rows come without their features."""
    sums = {}

    def summed():
      for part in parts:
        for column, rows in part.items():
          own = sums.setdefault(column, Sums())
          for row in rows:
            own.add(row.index, row.kept.get(self.FEATURES, ()))
        yield {column: [dataclasses.replace(row, kept={}) for row in rows] for column, rows in part.items()}
    columns = benchmark.gathered(summed())
    return columns, {name: scores for name, scores in zip(self.METRICS, compared(sums), strict=True) if scores}

  def scores(self, rows: dict[str, list[Row]]) -> dict[str, dict[str, Score]]:
    return self.read([rows])[1]


def metrics(name: str, about: str = '') -> dict[str, Metric]:
  about = f'{about}; ' if about else ''
  return {name: Metric('lower', f'{about}of all clips', 'distribution'),
          f'{name}/halves': Metric('lower', f'{about}of halves, as many clips as the floor has', 'distribution')}


class Sums:
  """The moments of a set's features, in blocks of its clips. asked: how many clips there are; found: how many have
  features."""

  def __init__(self):
    self.asked, self.found, self.blocks = 0, 0, {}

  def add(self, index: int, features_ND):
    self.asked += 1
    if not len(features_ND):
      return
    self.found += 1
    moments = Moments.of(features_ND)
    # Turned by one in every round, so that no block has only clips of one level.
    block = (index + index // NUM_BLOCKS) % NUM_BLOCKS
    self.blocks[block] = self.blocks[block] + moments if block in self.blocks else moments

  def of(self, blocks: Iterable[int]) -> Moments:
    first, *others = blocks
    return sum((self.blocks[n] for n in others), self.blocks[first])


def compared(sums: dict[str, Sums]) -> tuple[dict[str, Score], dict[str, Score]]:
  """{column: Score} of all clips, and of halves. Without what has features in fewer than four blocks that the truth has
  too."""
  whole, halves, truth = {}, {}, sums.get('truth', Sums())
  for column, own in sums.items():
    shared = sorted(own.blocks.keys() & truth.blocks.keys())
    if len(shared) < 4:
      continue
    of_half = lambda a, b: distance(own.of(shared[i] for i in a), truth.of(shared[i] for i in b))
    value, low, high = benchmark.over_halves(of_half, len(shared), NUM_HALVES)
    coverage = own.found / own.asked
    halves[column] = Score(value, low, high, own.asked // 2, coverage)
    if column != 'truth':
      near = distance(own.of(own.blocks), truth.of(truth.blocks))
      whole[column] = Score(near, max(0., near + low - value), near + high - value, own.asked, coverage)
  return whole, halves
