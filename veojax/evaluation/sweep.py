"""A grid of evaluations: models × settings of the sampler × options of the benchmark.

    veojax sweep --models A B --grid guidance_scale=1,3,5 num_inference_steps=4,16,50 --output REPORT

Work is cut into units (`units`), which processes take in turn, by number; all they share is the folder. The first of
one run's processes, or of others whoever finds everything settled, writes the report. Cells that differ in scales,
shifts, seeds or captions share their compiled programs, and units of them that are less than a batch are made in one
call of the sampler (`batches`). Each clip's key is fold_in(seed, i), so a table is the same from any number of
processes, and after any number of kills.
"""
import ast
import collections
import copy
import dataclasses
import itertools
import pathlib

import jax
from rich import progress

from veojax import arguments, processes
from veojax.evaluation import evaluate, loaded, sweep_report, units
from veojax.evaluation.batches import Batches
from veojax.evaluation.benchmark import Benchmark, Row, Score, Subject
from veojax.evaluation.units import Store, Unit
from veojax.models import run_checkpoint


@dataclasses.dataclass(frozen=True)
class Cell:
  """One line of the table: a model, and what of the grid it has. title: of the model, which no other model has."""
  model: str
  settings: tuple[tuple[str, object], ...]
  title: str

  @property
  def name(self) -> str:
    return ' '.join([self.title, *(f'{k}={v}' for k, v in self.settings)])


@dataclasses.dataclass
class Outcome:
  """A cell with what became of it. calls: network evaluations for a clip. front: its model and what of the grid changes
  the clips that it is to make: among cells of one front the calls are the cost. error: why there are no scores, or
  ''. seconds: of its model's own clips, to make and to judge them; 0 without a model."""
  cell: Cell
  benchmark: Benchmark | None = None
  units: list[Unit] = dataclasses.field(default_factory=list)
  calls: int = 0
  front: str = ''
  error: str = ''
  columns: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
  scores: dict[str, dict[str, Score]] = dataclasses.field(default_factory=dict)
  seconds: float = 0.


def parse_grid(words: list[str]) -> dict[str, list]:
  """['a=1,2', 'b=x,y'] → {'a': [1, 2], 'b': ['x', 'y']}."""
  grid = {}
  for word in words:
    name, given, values = word.partition('=')
    if not given or not values:
      raise ValueError(f'grid {word!r}; give name=value,value,...')
    name = name.replace('-', '_')
    if name in grid:
      raise ValueError(f'grid {word!r}, and {name} has values already; give all at once: {name}=value,value,...')
    try:
      grid[name] = list(ast.literal_eval(f'[{values}]'))
    except (ValueError, SyntaxError):
      grid[name] = values.split(',')
  return grid


def cells(models: list[str], grid: dict[str, list]) -> list[Cell]:
  """All combinations. What stands first in the grid varies slowest. Models whose titles are equal have their whole names
  for titles."""
  titles = {model: run_checkpoint.title(model) for model in models}
  counts = collections.Counter(titles.values())
  return [Cell(model, tuple(zip(grid, values)), title if counts[title] == 1 else model)
          for model, title in titles.items() for values in itertools.product(*grid.values())]


def planned(cell: Cell, name: str, options: dict, batch: int) -> tuple[Outcome, Subject | None]:
  """The work of a cell. What cannot be (a model that is not there, a setting that is refused) ends the cell here."""
  options = copy.deepcopy(options)
  try:
    for option, value in cell.settings:
      arguments.put(options, option, value)
    subject, bench = evaluate.judged(cell.model, name, options, batch)
    calls = subject.model.network_calls(subject.sampling) if subject.model is not None else 0
    return Outcome(cell, bench, units.split(name, bench, subject), calls, front(cell, subject)), subject
  except Exception as error:  # it stands in the report, and the other cells do not suffer
    return Outcome(cell, error=units.told(error)), None


def front(cell: Cell, subject: Subject) -> str:
  """The cell's name without its seed and what it samples with, sizes of its clips excepted."""
  sizes = subject.model.clip_sizes if subject.model is not None else {}
  sampling = {'seed', *subject.options} - set(sizes)
  return dataclasses.replace(cell, settings=tuple(s for s in cell.settings if s[0] not in sampling)).name


def sweep(models: list[str], grid: dict[str, list], output, *, benchmark: str = 'world', options: dict | None = None,
          batch: int = evaluate.BATCH, process_index: int | None = None, process_count: int | None = None,
          show: bool = True) -> list[Outcome] | None:
  """Does what is left of this process's part. Returns the outcomes, the report being written, or None while other
  processes may not have done theirs: those of one run (`processes`) await each other, and what is missing then is told;
  others know nothing of each other, and the last one writes. options: of the benchmark and of `Model.generate`, for all
  cells. Raises ValueError where there is no such benchmark."""
  index = jax.process_index() if process_index is None else process_index
  count = jax.process_count() if process_count is None else process_count
  if not 0 <= index < count:
    raise ValueError(f'process_index={index} of process_count={count}; give 0 to {count - 1}')
  store, outcomes, seen = Store(output), [], set()
  batches = Batches(store)
  loaded.forget()
  # Before the bar: importing TFDS, which bends Python's own import for a while, would break the bar's thread.
  evaluate.fields(benchmark)
  with evaluate.local_mesh():
    shown = progress.track(cells(models, grid), f'process {index} of {count}', disable=not show)
    for place, cell in enumerate(shown):
      if outcomes and outcomes[-1].cell.model != cell.model:
        batches.finish()  # before another model is loaded
      outcome, subject = planned(cell, benchmark, options or {}, batch)
      outcomes.append(outcome)
      for unit in mine(outcome.units, place, index, count):
        if unit.file not in seen and unit.key not in batches.failed and not store.done(unit):
          batches.run(unit, subject)
        seen.add(unit.file)  # cells share the truth, and what their codecs leave of it
    batches.finish()
  elsewhere = [processes.agree(outcome.error) for outcome in outcomes]  # awaits the others, of one run
  for outcome, planning in zip(outcomes, elsewhere):
    failures = store.failures(outcome.units)
    outcome.error = outcome.error or (failures[0] if failures else '')
    missing = [unit.file for unit in outcome.units if not store.done(unit)]
    if missing and not outcome.error:
      if jax.process_count() < count:  # nobody knows of the others
        return None
      outcome.error = planning or (
          f'{len(missing)} of {len(outcome.units)} units, such as {missing[0]}, are not in {output}; give an --output '
          'that the hosts of all processes share, and start again')
  for outcome in outcomes:
    if not outcome.error:
      try:
        outcome.columns, outcome.scores = outcome.benchmark.read(store.rows(outcome.units))
      except Exception as error:
        outcome.error = units.told(error)
      outcome.seconds = store.seconds([unit for unit in outcome.units if unit.part == 'made'])
  if processes.is_first():
    sweep_report.write(pathlib.Path(output), benchmark, outcomes, store)
  return outcomes


def mine(work: list[Unit], place: int, index: int, count: int) -> list[Unit]:
  """Those of a cell's units that are process index's, of `count`. place: of the cell in the grid. Clips of its own
  model are shared out by that, and what other cells may have too by its key, never by what was planned before: a cell
  that one process alone cannot plan moves no unit of the others."""
  parts = {}
  for unit in work:
    parts.setdefault(unit.part, []).append(unit)
  first = {part: place * len(own) if part == 'made' else int(own[0].key, 16) for part, own in parts.items()}
  return [unit for part, own in parts.items() for i, unit in enumerate(own, first[part]) if i % count == index]
