"""One model under one benchmark: everything measured once, kept by units, and told in one report."""
import contextlib
import dataclasses
import functools
import importlib
import pathlib

import jax
from rich import console, progress, table

from veojax import config as door
from veojax import processes, sharding
from veojax.evaluation import page, report, units
from veojax.evaluation.benchmark import Benchmark, Row, Score, Subject
from veojax.generation import codecs, model as models

BENCHMARKS = {  # what `--benchmark` names
    'world': 'veojax.evaluation.world_benchmark:World',
    'reconstruction': 'veojax.evaluation.reconstruction:Reconstruction',
    'fvd': 'veojax.evaluation.fvd:FVD',
    'fad': 'veojax.evaluation.fad:FAD',
    'basic': 'veojax.evaluation.basic:Basic',
    'surprise': 'veojax.evaluation.surprise:Surprise',
}
BATCH = 8  # clips made at a time, and kept in one file


@dataclasses.dataclass(frozen=True)
class Result:
  """All that a report tells; in a notebook it shows the report. columns: {column: rows}. scores: {metric: {column:
  Score}}. path: of report.html."""
  name: str
  benchmark: Benchmark
  subject: Subject
  columns: dict[str, list[Row]]
  scores: dict[str, dict[str, Score]]
  seconds: float
  path: pathlib.Path

  @property
  def judged(self) -> str:
    """The column that is judged; the others are what it is measured by."""
    return next(c for c in ('made', 'codec', 'truth') if c in self.columns)

  def _repr_html_(self):
    return page.Report(self.path)._repr_html_()


def benchmark(name: str, options: dict) -> Benchmark:
  """The benchmark of a name with its options. ValueError for unknown ones."""
  if name not in BENCHMARKS:
    raise ValueError(f'no benchmark {name!r}; {door.nearest(name, BENCHMARKS)}')
  module, kind = BENCHMARKS[name].split(':')
  return door.build(getattr(importlib.import_module(module), kind), options, name)


def fields(name: str) -> set[str]:
  return {f.name for f in dataclasses.fields(benchmark(name, {}))}


@functools.lru_cache(maxsize=1)  # cells of one model follow each other
def _loaded(name: str):
  return models.load(name)


def subject(name: str, options: dict, batch: int = BATCH) -> Subject:
  """A model by its name; 'truth' is none, 'roundtrip' the world's codecs alone. ValueError for what it cannot do."""
  if name in ('truth', 'roundtrip'):
    if options:
      raise ValueError(f'{", ".join(options)} with the model {name!r}, which makes nothing; leave it out')
    both = tuple(codecs.load('world', kind) for kind in codecs.KINDS) if name == 'roundtrip' else (None, None)
    return Subject(name, codecs=both, batch=batch)
  model = _loaded(name)
  model.sampling(options)  # refuses what it does not know
  return Subject(name, model, (model.video_codec, model.audio_codec), options, batch)


def local_mesh():
  """A context with a mesh of this process's own devices, unless one is in force: processes share nothing but files."""
  in_force = not jax.sharding.get_abstract_mesh().empty
  return contextlib.nullcontext() if in_force else jax.set_mesh(sharding.make_mesh(devices=jax.local_devices()))


def evaluate(model: str, benchmark_name: str, output, options: dict | None = None, *, batch: int = BATCH,
             show: bool = True) -> Result:
  """Writes OUTPUT/report.html, .json and .csv, going on with what OUTPUT holds. options: fields of the benchmark, and
  options of `Model.generate`. Several processes share out the units, and the first writes the report.

  Raises ValueError for what cannot be, and where OUTPUT does not hold the units of all processes."""
  known, options = fields(benchmark_name), dict(options or {})
  asked = {name: options.pop(name) for name in list(options) if name in known}
  store = units.Store(output)
  with local_mesh():
    judged = subject(model, options, batch)
    bench = benchmark(benchmark_name, asked).fitted(judged)
    work = units.split(benchmark_name, bench, judged)
    keep = next(p for p in ('made', 'codec', 'truth') if p in bench.parts(judged))
    own = work[jax.process_index()::jax.process_count()]
    for unit in progress.track(own, model, disable=not show or not processes.is_first()):
      if not store.done(unit):
        store.run(unit, judged, clips=unit.part == keep)
  processes.wait()
  if missing := [unit.file for unit in work if not store.done(unit)]:
    raise ValueError(f'{len(missing)} of {len(work)} units, such as {missing[0]}, are not in {output}; give an '
                     '--output that the hosts of all processes share, and start again')
  result = Result(benchmark_name, bench, judged, *bench.read(store.rows(work)), store.seconds(work),
                  pathlib.Path(output) / 'report.html')
  key = next(unit.key for unit in work if unit.part == keep)
  if not processes.is_first():
    return result
  report.write(pathlib.Path(output), result, lambda column, index: store.clip(key, column, index))
  if show:
    console.Console(width=140).print(shown(result))
  return result


def shown(result: Result) -> table.Table:
  bench = result.benchmark
  out = table.Table(title=f'{result.subject.name} under {result.name}: {bench.num_clips} clips, 95 % intervals',
                    title_justify='left', caption=bench.NOTE or None, caption_justify='left')
  for column in ('metric', *result.columns, 'coverage', 'better'):
    out.add_column(column)
  for name, row in result.scores.items():
    told = [report.told(row[c]) if c in row else '' for c in result.columns]
    judged = row.get(result.judged)
    out.add_row(name, *told, f'{judged.coverage:.2f}' if judged else '', bench.METRICS[name].better)
  return out
