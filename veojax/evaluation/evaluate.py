"""One model under one benchmark: everything measured once, kept by units, and told in one report."""
import contextlib
import dataclasses
import importlib
import pathlib
from collections.abc import Collection

import jax
from rich import console, progress, table

from veojax import config as door
from veojax import processes, sharding
from veojax.evaluation import clips, loaded, page, report, units
from veojax.evaluation.benchmark import Benchmark, Row, Score, Subject
from veojax.generation import codecs, model as models, tasks

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


@loaded.kept(1)  # cells of one model follow each other
def _loaded(name: str):
  return models.load(name)


def subject(name: str, options: dict, batch: int = BATCH, known: Collection[str] = ()) -> Subject:
  """A model by its name; 'truth' is none, 'roundtrip' the world's codecs alone. known: options of the benchmark, among
  which an error looks for the nearest too; where 'clip.num_frames' and the like are there, options may ask for these.
  ValueError for what the model cannot do."""
  if name in ('truth', 'roundtrip'):
    if options:
      hint = f', or give an option of the benchmark ({door.nearest(next(iter(options)), known)})' if known else ''
      raise ValueError(f'{", ".join(options)} with the model {name!r}, which makes nothing; leave it out{hint}')
    both = tuple(codecs.load('world', kind) for kind in codecs.KINDS) if name == 'roundtrip' else (None, None)
    return Subject(name, codecs=both, batch=batch)
  model = _loaded(name)
  settings = {name for name in vars(model.sampling({})) if not {f'scenes.{name}', f'clip.{name}'}.intersection(known)}
  sizes = {f'clip.{name}': name for name in model.clip_sizes if f'clip.{name}' in known}
  for option, value in options.items():
    if option not in settings.union(sizes):
      raise ValueError(f'unknown option {option}={value!r}; {door.nearest(option, settings.union(known))}')
  options = {sizes.get(option, option): value for option, value in options.items()}
  one = Subject(name, model, (model.video_codec, model.audio_codec), options, batch)
  tasks.check(one.sizes)
  one.sampling  # refuses values
  return one


def judged(model: str, name: str, options: dict, batch: int = BATCH) -> tuple[Subject, Benchmark]:
  """A model, and the benchmark of a name fitted to it. options: of either. ValueError for what cannot be."""
  known, options = fields(name), dict(options)
  if isinstance(options.get('clip'), dict):
    options |= {f'clip.{size}': value for size, value in options.pop('clip').items()}
  asked = {option: options.pop(option) for option in list(options) if option in known}
  if 'scenes' in known:  # which have the sizes of the clips that are made of them; those of a data set have their own
    sizes = 'scenes' if asked.get('data', clips.WORLD) == clips.WORLD else 'clip'
    known |= {f'{sizes}.{size.name}' for size in dataclasses.fields(models.ClipConfig)}
  one, bench = subject(model, options, batch, known), benchmark(name, asked)
  if 'made' not in bench.parts(one) and (unused := [option for option in options if option.startswith('clip.')]):
    raise ValueError(f'{", ".join(unused)} with the benchmark {name!r}, which has nothing made; leave it out')
  return one, bench.fitted(one)


def local_mesh():
  """A context with a mesh of this process's own devices, unless one is in force: processes share nothing but files."""
  in_force = not jax.sharding.get_abstract_mesh().empty
  return contextlib.nullcontext() if in_force else jax.set_mesh(sharding.make_mesh(devices=jax.local_devices()))


def evaluate(model: str, benchmark_name: str, output, options: dict | None = None, *, batch: int = BATCH,
             show: bool = True) -> Result:
  """Writes OUTPUT/report.html, .json and .csv, going on with what OUTPUT holds. options: fields of the benchmark, and
  options of `Model.generate`. Several processes share out the units, and the first writes the report.

  Raises ValueError for what cannot be, and where OUTPUT does not hold the units of all processes."""
  store = units.Store(output)
  loaded.forget()
  with local_mesh():
    one, bench = judged(model, benchmark_name, options or {}, batch)
    work = units.split(benchmark_name, bench, one)
    keep = next(p for p in ('made', 'codec', 'truth') if p in bench.parts(one))
    own = work[jax.process_index()::jax.process_count()]
    for unit in progress.track(own, model, disable=not show or not processes.is_first()):
      if not store.done(unit):
        store.run(unit, one, clips=unit.part == keep)
  processes.wait()
  if missing := [unit.file for unit in work if not store.done(unit)]:
    raise ValueError(f'{len(missing)} of {len(work)} units, such as {missing[0]}, are not in {output}; give an '
                     '--output that the hosts of all processes share, and start again')
  result = Result(benchmark_name, bench, one, *bench.read(store.rows(work)), store.seconds(work),
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
