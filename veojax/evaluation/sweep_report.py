"""The report of a sweep: a line a cell, quality against cost, and which differences are beyond noise (`comparison`).

Cost is network evaluations for a clip, which no machine changes, but a network's size and a clip's length do what one
costs. So a front is of one model and one kind of clip (`Outcome.front`).
"""
import csv
import io
import json
import math
import pathlib

from veojax import config as door
from veojax.evaluation import benchmark, comparison, page, report, units
from veojax.evaluation.benchmark import LEAST_CLIPS
from veojax.generation import export

PLOTS = 6  # of quality against cost


def write(folder: pathlib.Path, name: str, outcomes: list, store: units.Store):
  units.write(folder / 'report.json', json.dumps(as_json(name, outcomes), indent=2, allow_nan=False))
  units.write(folder / 'report.csv', as_csv(outcomes))
  as_page(name, outcomes, store).write(folder / 'report.html')


def judged(outcome) -> str:
  return next(c for c in ('made', 'codec', 'truth') if c in outcome.columns)


def as_json(name: str, outcomes: list) -> dict:
  lines = []
  for o in outcomes:
    lines.append({'cell': o.cell.name, 'model': o.cell.model, 'settings': dict(o.cell.settings)})
    lines[-1] |= {'error': o.error} if o.error else {
        'benchmark': door.to_tree(o.benchmark), 'network_calls': o.calls,
        'scores': {metric: {c: s._asdict() for c, s in row.items()} for metric, row in o.scores.items()}}
  return {'benchmark': name, 'cells': lines}


def as_csv(outcomes: list) -> str:
  out = io.StringIO()
  lines = csv.writer(out)
  settings = list(dict.fromkeys(key for o in outcomes for key, _ in o.cell.settings))
  lines.writerow(['model', *settings, 'network_calls', 'metric', 'column', *benchmark.Score._fields, 'error'])
  for o in outcomes:
    own = [o.cell.model, *(dict(o.cell.settings).get(key, '') for key in settings), o.calls]
    lines.writerows([*own, metric, column, *score, ''] for metric, row in o.scores.items()
                    for column, score in row.items())
    if o.error:
      lines.writerow([*own, *[''] * (2 + len(benchmark.Score._fields)), o.error])
  return out.getvalue()


def compared(outcomes: list, metric: str, better: str) -> dict[str, str]:
  """{cell's name: 'best', 'worse' or ''} of the cells that have the metric, as of `comparison.marks`."""
  return comparison.marks({o.cell.name: (o.columns[judged(o)], o.scores[metric][judged(o)]) for o in outcomes
                           if judged(o) in o.scores.get(metric, {})}, metric, better)


def front(points: list[tuple[float, float]], better: str) -> list[int]:
  """Numbers of the points (cost, value) that nothing beats in both, cheapest first."""
  sign = -1 if better == 'higher' else 1
  size = (lambda v: abs(v)) if better == 'zero' else (lambda v: sign * v)
  chosen, least = [], math.inf
  for i in sorted(range(len(points)), key=lambda i: (points[i][0], size(points[i][1]))):
    if size(points[i][1]) < least:
      chosen, least = [*chosen, i], size(points[i][1])
  return chosen


def as_page(name: str, outcomes: list, store: units.Store) -> page.Page:
  whole = [o for o in outcomes if not o.error]
  out = page.Page(f'Sweep · {name}', f'{len(outcomes)} cells, of which {len(outcomes) - len(whole)} failed. 95 % '
                  f'intervals, {benchmark.INTERVALS}; of fewer than {LEAST_CLIPS} clips, how many they are instead. '
                  'Bold is the best of a column, faint what is worse than it beyond noise, which allows for the best '
                  f'being picked from {len(whole)} cells: were all equal, about one column in twenty would have '
                  'anything faint. Two cells are compared by the clips they share, or by all where they share few; '
                  f'of signed errors the sizes count. Nothing is faint by fewer than {LEAST_CLIPS} clips.')
  sets = [f'{o.benchmark.data} ({o.benchmark.data_hash})' for o in whole if getattr(o.benchmark, 'data_hash', '')]
  if sets:
    out.text(f'Measured on {", ".join(dict.fromkeys(sets))}.')
  if len(whole) < len(outcomes):
    out.section('Failed')
    out.table(['cell', 'error'], [[o.cell.name, o.error] for o in outcomes if o.error])
  if not whole:
    return out
  metrics = {name: metric for o in whole for name, metric in o.benchmark.METRICS.items()}
  there = {m for o in whole for m in o.scores}
  key = [m for m in dict.fromkeys(m for o in whole for m in o.benchmark.KEY) if m in there]
  out.section('Scores')
  out.sortable(['cell', 'network calls', 's a clip', *key], _lines(whole, key, metrics))
  bench = whole[0].benchmark
  lines = [(column, *line) for column in benchmark.COLUMNS for line in references(whole, column)]
  if lines:
    out.text('What to read them against, of all cells or of those that have the settings: ' + '; '.join(
        f'{column}, {bench.MEANING[column]}' for column in dict.fromkeys(line[0] for line in lines)) + '.')
  if bench.NOTE:
    out.text(bench.NOTE)
  out.sortable(['column', *key], [[f'{column} {told}'.strip(), *(
      (report.told(s), s.value) if (s := o.scores.get(m, {}).get(column)) else ('', None) for m in key)]
      for column, told, o in lines])
  if key:
    out.section('Quality against cost')
    out.text('The cost is network evaluations for a clip. One costs more of a larger network and of a longer or larger '
             'clip, so each model, and each kind of clip that the grid asks for, has a line of its own, its Pareto '
             'front: what no cell of the same colour beats in both.')
    out.plot(plots(whole, key[:PLOTS], metrics))
  if rest := [m for m in metrics if m in there and m not in key]:
    out.section('All metrics')
    out.sortable(['cell', *rest], [[line[0], *line[3:]] for line in _lines(whole, rest, metrics)])
  shown = [(o, path) for o in whole for unit in o.units
           if unit.part == 'made' and (path := store.clip(unit.key, 'made', 0)).exists() and unit.first == 0]
  if shown:
    out.section('The same clip from every cell')
    out.clips([export.read(path) for _, path in shown],
              [f'{o.cell.name}: {o.columns["made"][0].text}' for o, _ in shown])
  return out


def references(outcomes: list, column: str) -> list[tuple[str, object]]:
  """[(settings, a cell that has them)] of what cells are read against in a column: one for all that share the units it
  is measured in, told by the settings in which it differs from others; '' where there is one for all."""
  groups = {}
  for o in outcomes:
    if column in o.columns and column != judged(o):
      # The floor is measured on what is judged.
      own = (column,) if column in benchmark.PARTS else {unit.part for unit in o.units}
      groups.setdefault(tuple(unit.file for unit in o.units if unit.part in own), []).append(o)
  every = [_settings(cells) for cells in groups.values()]
  differ = [name for name in every[0] if any(own[name] != every[0][name] for own in every)] if every else []
  return [(' '.join(own[name] for name in differ), cells[0]) for own, cells in zip(every, groups.values())]


def _settings(outcomes: list) -> dict[str, str]:
  """{name: 'name=value', with all values that cells have} of their models and what of the grid they have."""
  values = {'': [o.cell.title for o in outcomes]}
  for o in outcomes:
    for name, value in o.cell.settings:
      values.setdefault(name, []).append(f'{name}={value}')
  return {name: '|'.join(dict.fromkeys(own)) for name, own in values.items()}


def _lines(outcomes: list, names: list[str], metrics: dict) -> list[list]:
  marks = {m: compared(outcomes, m, metrics[m].better) for m in names}
  lines = []
  for o in outcomes:
    cells = [(report.told(s), s.value, marks[m].get(o.cell.name, ''))
             if (s := o.scores.get(m, {}).get(judged(o))) else ('', None) for m in names]
    each = o.seconds / o.benchmark.num_clips
    lines.append([o.cell.name, (str(o.calls), o.calls), (f'{each:.2f}', each) if each else ('', None), *cells])
  return lines


def plots(outcomes: list, names: list[str], metrics: dict):
  import matplotlib
  matplotlib.use('agg')
  import matplotlib.pyplot as plt
  columns = min(3, max(1, len(names)))
  rows = -(-max(1, len(names)) // columns)
  figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.2 * rows), squeeze=False)
  for ax, name in zip(axes.flat, names):
    for number, title in enumerate(dict.fromkeys(o.front for o in outcomes)):
      there = [(o.calls, s) for o in outcomes if o.front == title and (s := o.scores.get(name, {}).get(judged(o)))]
      if not there:
        continue
      points, colour = [(calls, s.value) for calls, s in there], f'C{number % 10}'
      ax.errorbar(*zip(*points), yerr=report.bars([s for _, s in there]), fmt='o', alpha=.7, color=colour, label=title)
      if metrics[name].better:
        ax.step(*zip(*(points[i] for i in front(points, metrics[name].better))), where='post', lw=1, color=colour)
    ax.set(title=f'{name} ({metrics[name].better or "described"})', xlabel='network evaluations for a clip')
    ax.grid(alpha=.3)
  axes.flat[0].legend(fontsize=8)
  for ax in list(axes.flat)[len(names):]:
    ax.set_visible(False)
  figure.tight_layout()
  return figure
