"""A grid of evaluations: models × settings of the sampler × options of the benchmark.

    veojax sweep --models A B --grid guidance_scale=1,3,5 num_inference_steps=4,16,50 --output REPORT

Work is cut into units (`units`), which processes take in turn, by number; all they share is the folder, and whoever
finds everything settled writes the report. Cells that differ in scales, shifts, seeds or captions share their compiled
programs, and units of them that are less than a batch are made in one call of the sampler (`batches`). Each clip's key
is fold_in(seed, i), so a table is the same from any number of processes, and after any number of kills.
"""
import ast
import collections
import copy
import dataclasses
import itertools
import pathlib

import jax
from rich import progress

from veojax import arguments
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
  """A cell with what became of it. calls: network evaluations for a clip. error: why there are no scores, or ''.
  seconds: of its model's own clips, to make and to judge them; 0 without a model."""
  cell: Cell
  benchmark: Benchmark | None = None
  units: list[Unit] = dataclasses.field(default_factory=list)
  calls: int = 0
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
    return Outcome(cell, bench, units.split(name, bench, subject), calls), subject
  except Exception as error:  # it stands in the report, and the other cells do not suffer
    return Outcome(cell, error=units.told(error)), None


def sweep(models: list[str], grid: dict[str, list], output, *, benchmark: str = 'world', options: dict | None = None,
          batch: int = evaluate.BATCH, process_index: int | None = None, process_count: int | None = None,
          show: bool = True) -> list[Outcome] | None:
  """Does what is left of this process's part. Returns the outcomes, the report being written, or None while other
  processes have not done theirs. options: of the benchmark and of `Model.generate`, for all cells. Raises ValueError
  where there is no such benchmark."""
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
    for cell in progress.track(cells(models, grid), f'process {index} of {count}', disable=not show):
      if outcomes and outcomes[-1].cell.model != cell.model:
        batches.finish()  # before another model is loaded
      outcome, subject = planned(cell, benchmark, options or {}, batch)
      outcomes.append(outcome)
      for unit in outcome.units:
        if unit.file in seen:  # cells share the truth, and what their codecs leave of it
          continue
        seen.add(unit.file)  # every process numbers all units alike, whatever fails
        if (len(seen) - 1) % count == index and unit.key not in batches.failed and not store.done(unit):
          batches.run(unit, subject)
    batches.finish()
  for outcome in outcomes:
    failures = store.failures(outcome.units)
    outcome.error = outcome.error or (failures[0] if failures else '')
    if not outcome.error and not all(map(store.done, outcome.units)):
      return None
  for outcome in outcomes:
    if not outcome.error:
      try:
        outcome.columns, outcome.scores = outcome.benchmark.read(store.rows(outcome.units))
      except Exception as error:
        outcome.error = units.told(error)
      outcome.seconds = store.seconds([unit for unit in outcome.units if unit.part == 'made'])
  sweep_report.write(pathlib.Path(output), benchmark, outcomes, store)
  return outcomes
