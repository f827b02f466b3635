"""What a benchmark is: clips by number → a row of values for each → a table of scores with what it takes to believe
them.

A benchmark is a frozen dataclass, a `Benchmark`. Its fields are its options (`num_clips` and `seed` among them).
Columns stand side by side in every table: what is judged ('made'), the ceiling ('truth'), what the model's codecs leave
of the truth ('codec'), and the floor ('shuffled': captions, or sounds, of other clips). Part 'made' may fill two of
them, 'made' and 'shuffled'. A value that is undefined for a clip is left out of its row: it lowers the coverage, and is
never 0.
"""
import abc
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from veojax.generation.model import Model
from veojax.generation.wanted import Wanted
from veojax.types import Clip

PARTS = ('made', 'truth', 'codec')
COLUMNS = ('made', 'truth', 'codec', 'shuffled')
MEANING = {'made': 'what is judged', 'truth': 'the ceiling: true clips',
           'codec': "true clips through the model's codecs",
           'shuffled': 'the floor: held to captions and sounds of other clips'}
INTERVALS = 'of means by bootstrap over clips, of distances between sets by random halves of the sets'
NUM_BOOTSTRAP = 1000
LEAST_CLIPS = 10  # that an interval is told of: of fewer it is too narrow, and a point where they happen to agree


class Metric(NamedTuple):
  """better: which way is better; 'zero' for signed errors, '' for what is only described. about: one sentence."""
  better: Literal['higher', 'lower', 'zero', '']
  about: str
  group: str = ''
  unit: str = ''


class Score(NamedTuple):
  """A cell of the table. low, high: 95 % interval, as INTERVALS says. num_clips: asked for. coverage: the share for
  which it is defined."""
  value: float
  low: float
  high: float
  num_clips: int
  coverage: float

  @property
  def defined(self) -> int:
    """The clips for which it is defined."""
    return round(self.num_clips * self.coverage)


@dataclasses.dataclass
class Row:
  """What is measured of clip `index`. group: the kind of clip it is (a level), for tables by group. kept: lists that
  `scores` and `plots` need beyond the values (features of a set, curves over time). All of it is plain JSON."""
  index: int
  text: str = ''
  group: str = ''
  values: dict[str, float] = dataclasses.field(default_factory=dict)
  kept: dict[str, list] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Subject:
  """What is judged. model: of `veojax.load`, or None for the truth alone. codecs: (video, audio), of the model if
  there is one; either may be None. options: for `Model.generate`, sizes of clips among them. batch: clips
  made at a time, fewer being filled up to it, so that they share a compilation. made: clips that are there already,
  which `make` gives."""
  name: str
  model: Any = None
  codecs: tuple[Any, Any] = (None, None)
  options: dict = dataclasses.field(default_factory=dict)
  batch: int = 1
  made: Sequence[Clip] = ()

  def make(self, wanted: list[Wanted]) -> list[Clip]:
    """Clips of the model, of one seed and indices in a row."""
    if self.made:
      return list(self.made)
    first, num, indices = wanted[0], len(wanted), [one.index for one in wanted]
    if indices != list(range(first.index, first.index + num)):
      raise ValueError(f'indices {indices}; clips are made in runs, one after another')
    filled = wanted + wanted[-1:] * (self.batch - num)
    return self.model.generate([one.prompt for one in filled], seed=first.seed, first_index=first.index,
                               given=[one.given for one in filled], **self.options, **first.options)[:num]

  @property
  def sampling(self):
    """The model's settings for sampling, under the options."""
    return self.model.sampling({name: value for name, value in self.options.items() if name not in self.sizes})

  @property
  def sizes(self) -> dict[str, Any]:
    """What the options ask for of a clip's sizes. Of published models these are settings for sampling."""
    settings = vars(self.model.sampling({}))
    return {name: value for name, value in self.options.items()
            if name in self.model.clip_sizes and name not in settings}

  @property
  def makes_pictures(self) -> bool:
    """False of a model of sound alone. Published models, whose codecs are told to none, all make pictures."""
    return not isinstance(self.model, Model) or self.model.video_codec is not None

  @property
  def mixes(self) -> bool:
    """Whether `together` takes subjects of this model: those of published ones have one scale for a whole batch."""
    return isinstance(self.model, Model)

  def complete(self, wanted: list[Wanted]) -> list[Wanted]:
    """With the subject's options."""
    return [dataclasses.replace(one, options=self.options | one.options) for one in wanted]


def together(work: Sequence[tuple[Subject, list[Wanted]]]) -> list[list[Clip]]:
  """The clips of each of several subjects, in one call of the sampler: all of one model and one `Model.kind`."""
  subject, every = work[0][0], [one for own, wanted in work for one in own.complete(wanted)]
  clips = iter(subject.model.make(every + every[-1:] * (subject.batch - len(every))))
  return [list(itertools.islice(clips, len(wanted))) for _, wanted in work]


Keep = Callable[[str, int, Clip], None]


def keep_nothing(column: str, index: int, clip: Clip):
  """A `keep` for where no clip is wanted."""


class Benchmark(abc.ABC):
  """METRICS: {name: Metric}. KEY: the metrics that a first look needs. WORST: the metric by which a report shows its
  worst clips first; '' where none belongs to single clips. MEANING: what the columns are, as a report says it. NOTE:
  what else it must say."""
  num_clips: int
  seed: int
  METRICS: dict[str, Metric] = {}
  KEY: tuple[str, ...] = ()
  WORST = ''
  MEANING = MEANING
  NOTE = ''

  @abc.abstractmethod
  def fitted(self, subject: Subject) -> 'Benchmark':
    """The benchmark with all that it takes from the subject written into its fields (sizes of clips): what is equal
    then gives equal rows."""

  @abc.abstractmethod
  def parts(self, subject: Subject) -> tuple[str, ...]:
    """The pieces of work that the subject allows, of PARTS."""

  def wanted(self, indices: Sequence[int]) -> list[Wanted]:
    """What part 'made' asks of the model; nothing of a benchmark that judges no clips made from captions."""
    return []

  @abc.abstractmethod
  def rows(self, subject: Subject, part: str, indices: Sequence[int], keep: Keep) -> dict[str, list[Row]]:
    """{column: a row for every index}; pure, and row i is the same whatever else is asked for. keep(column, index,
    clip) may be called with clips that a report could show."""

  def read(self, parts: Iterable[dict[str, list[Row]]]) -> tuple[dict[str, list[Row]], dict[str, dict[str, Score]]]:
    """(rows, `scores` of them) of what `rows` gave for some indices at a time."""
    columns = gathered(parts)
    return columns, self.scores(columns)

  def scores(self, rows: dict[str, list[Row]]) -> dict[str, dict[str, Score]]:
    """{metric: {column: Score}} from rows alone, so that what is on disk is enough."""
    return table(self.METRICS, rows)

  def plots(self, rows: dict[str, list[Row]]) -> dict[str, Any]:
    """{title: matplotlib figure}."""
    return {}


def gathered(parts: Iterable[dict[str, list[Row]]]) -> dict[str, list[Row]]:
  """{column: rows in order of their index}, in the order of COLUMNS."""
  columns = {}
  for part in parts:
    for column, rows in part.items():
      columns.setdefault(column, []).extend(rows)
  return {c: sorted(columns[c], key=lambda row: row.index) for c in COLUMNS if c in columns}


def values(rows: Sequence[Row], metric: str) -> np.ndarray:
  """float[n], NaN where undefined, in the order of the rows."""
  return np.array([row.values.get(metric, np.nan) for row in rows], np.float64)


def score(each: np.ndarray) -> Score:
  """The mean of the defined values, its 95 % bootstrap interval over clips, and the coverage."""
  defined = each[np.isfinite(each)]
  if not len(defined):
    return Score(float('nan'), float('nan'), float('nan'), len(each), 0.0)
  return Score(float(defined.mean()), *interval(defined), len(each), len(defined) / len(each))


def interval(values: np.ndarray, num: int = NUM_BOOTSTRAP) -> tuple[float, float]:
  """95 % bootstrap interval of the mean; the same for the same values in any order."""
  low, high = np.percentile(means(np.sort(values), num), (2.5, 97.5))
  return float(low), float(high)


def means(values: np.ndarray, num: int = NUM_BOOTSTRAP) -> np.ndarray:
  """Means of float[n, ...] over bootstrap draws of its rows, the same draws for all of a row: float64[num, ...]."""
  rng = np.random.default_rng(0)
  # Counts instead of indices: one product for all draws.
  return rng.multinomial(len(values), np.full(len(values), 1 / len(values)), num) @ values / len(values)


def table(metrics: dict[str, Metric], rows: dict[str, list[Row]]) -> dict[str, dict[str, Score]]:
  """{metric: {column: Score}} of the metrics that some clip defines: means over clips."""
  scores = {name: {column: score(values(part, name)) for column, part in rows.items()} for name in metrics}
  return {name: {c: s for c, s in by_column.items() if s.coverage > 0} for name, by_column in scores.items()
          if any(s.coverage > 0 for s in by_column.values())}


def over_halves(distance: Callable[[np.ndarray, np.ndarray], float], count: int,
                num: int = 100) -> tuple[float, float, float]:
  """(mean, low, high) of a distance between two sets of `count` members, over random halves of the one against the
  other half of the other: distance(a, b) of the members' numbers. low, high: the 95 % range over the halves. A set's
  distance from itself is then not 0 but the floor of any, of as many members."""
  rng = np.random.default_rng(0)
  found = []
  for _ in range(num):
    order = rng.permutation(count)
    found.append(distance(np.sort(order[:count // 2]), np.sort(order[count // 2:])))
  return float(np.mean(found)), *map(float, np.percentile(found, (2.5, 97.5)))
