"""Units of work, each with one file: a run of clips of one part of a benchmark of one subject.

A file appears whole (by rename) or not at all, and its name is a hash of all that determines what is in it, the code
that measures included. So a run that was killed goes on where it stopped, nothing is computed twice, processes share
nothing but the folder, and a grid that grows keeps what it has. What failed is kept beside the results and tried again
by the next run.
"""
import dataclasses
import functools
import hashlib
import json
import pathlib
import time
import traceback
from collections.abc import Iterator

from veojax import config as door
from veojax import files
from veojax.evaluation.benchmark import Benchmark, Row, Subject, keep_nothing
from veojax.generation.export import Sample
from veojax.types import Clip

# What measures, under the package's folder: benchmarks and judges, the truth that they hold clips to, and networks.
MEASURING = ('evaluation/*.py', 'data/world*.py', 'data/caption*.py', 'data/impossible.py', 'zoo/i3d.py',
             'zoo/vggish.py', 'models/perceptual.py')


@dataclasses.dataclass(frozen=True)
class Unit:
  """Clips [first, end) of one part of a benchmark. key: of that part of the subject, from `key`."""
  benchmark: Benchmark
  part: str
  key: str
  first: int
  end: int

  @property
  def file(self) -> str:
    return f'{self.key}/{self.first:06d}-{self.end:06d}'


def key(name: str, benchmark: Benchmark, subject: Subject, part: str) -> str:
  """Sixteen hex digits that change with anything that the rows of this part depend on."""
  told = {'code': code(), 'benchmark': name, 'fields': door.to_tree(benchmark), 'part': part,
          'alone': subject.model is None}
  if part != 'truth':
    told['codecs'] = [codec and codec.whole_hash() for codec in subject.codecs]
  if part == 'made':
    told |= {'model': subject.model.fingerprint, 'options': settings(subject)}
  return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


@functools.cache
def code(package: pathlib.Path = pathlib.Path(__file__).parent.parent) -> str:
  """sha256 of the sources of MEASURING: rows of another judge are no rows of this one."""
  digest = hashlib.sha256()
  for path in sorted({path for pattern in MEASURING for path in package.glob(pattern)}):
    digest.update(path.relative_to(package).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
  return digest.hexdigest()


def settings(subject: Subject) -> dict:
  """What the model samples with: its own settings under the subject's options, and the sizes that these ask for."""
  return dataclasses.asdict(subject.sampling) | subject.sizes


def split(name: str, benchmark: Benchmark, subject: Subject) -> list[Unit]:
  """All units of a subject under a benchmark that is fitted to it, of a batch each. ValueError where there are none, or
  the seed is negative."""
  num, size = benchmark.num_clips, subject.batch
  for told, value, least in (('num_clips', num, 1), ('batch', size, 1), ('seed', benchmark.seed, 0)):
    if value < least:
      raise ValueError(f'{told}={value}; give at least {least}')
  return [Unit(benchmark, part, key(name, benchmark, subject, part), first, min(first + size, num))
          for part in benchmark.parts(subject) for first in range(0, num, size)]


class Store:
  """A folder of results. Every method may be called by several processes at once."""

  def __init__(self, folder):
    self.folder = files.on_disk(folder, 'a report')
    if self.folder.exists() and not self.folder.is_dir():
      raise ValueError(f'{self.folder} is a file; give a folder for the report')

  def done(self, unit: Unit) -> bool:
    return self._path(unit).exists()

  def run(self, unit: Unit, subject: Subject, *, clips: bool = False, seconds: float = 0.):
    """Computes a unit and writes its rows; with `clips`, also what is to be seen and heard of them. seconds: what went
    before, into what the subject has already. Exceptions are kept beside the results, and raised."""
    self._failure(unit).unlink(missing_ok=True)
    started = time.perf_counter() - seconds
    try:
      rows = unit.benchmark.rows(subject, unit.part, range(unit.first, unit.end),
                                 functools.partial(self._keep, unit) if clips else keep_nothing)
      text = json.dumps({'seconds': time.perf_counter() - started, 'rows': {
          column: [dataclasses.asdict(row) for row in part] for column, part in rows.items()}}, allow_nan=False)
    except Exception as error:
      write(self._failure(unit), told(error))
      raise
    write(self._path(unit), text)

  def rows(self, units: list[Unit]) -> Iterator[dict[str, list[Row]]]:
    """{column: rows} of one unit that is done after another, for `Benchmark.read`."""
    for unit in units:
      if self.done(unit):
        columns = json.loads(self._path(unit).read_text())['rows']
        yield {column: [Row(**row) for row in part] for column, part in columns.items()}

  def seconds(self, units: list[Unit]) -> float:
    return sum(json.loads(self._path(unit).read_text())['seconds'] for unit in units if self.done(unit))

  def failures(self, units: list[Unit]) -> list[str]:
    return [path.read_text() for unit in units if not self.done(unit) and (path := self._failure(unit)).exists()]

  def clip(self, key: str, column: str, index: int) -> pathlib.Path:
    return self.folder / 'clips' / key / f'{column}_{index:06d}.mp4'

  def _path(self, unit: Unit) -> pathlib.Path:
    return self.folder / 'units' / f'{unit.file}.json'

  def _failure(self, unit: Unit) -> pathlib.Path:
    return self.folder / 'failed' / f'{unit.file}.txt'

  def _keep(self, unit: Unit, column: str, index: int, clip: Clip):
    if clip.video is not None:
      path = self.clip(unit.key, column, index)
      path.parent.mkdir(parents=True, exist_ok=True)
      Sample(**{f.name: getattr(clip, f.name) for f in dataclasses.fields(Clip)}).save(path)


def told(error: Exception) -> str:
  """In one line, with where it was raised."""
  last = traceback.extract_tb(error.__traceback__)[-1]
  return f'{type(error).__name__}: {error} ({pathlib.Path(last.filename).name}:{last.lineno})'


def write(path: pathlib.Path, text: str):
  """A whole file or none; a second process that writes the same one at once does no harm."""
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write(path, text.encode())
