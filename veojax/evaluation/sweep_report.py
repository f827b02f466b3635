"""The report of a sweep: a line a cell, quality against cost, and which differences are beyond noise.

Two cells are compared on the clips that both have (same number, same caption), by bootstrap over these: a difference is
beyond noise where its 95 % interval excludes 0. Where there are none, and of distances between sets, which belong to no
clip, it is beyond noise where the 95 % intervals of the two do not overlap. Of signed errors the sizes of the means are
compared. Of fewer than LEAST_CLIPS clips the intervals are too narrow to tell. Cost is network evaluations for a clip,
which no machine changes.
"""
import csv
import io
import json
import math
import pathlib

import numpy as np

from veojax import config as door
from veojax.evaluation import benchmark, page, report, units
from veojax.evaluation.benchmark import Row
from veojax.generation import export

BESTS = {'higher': max, 'lower': min, 'zero': lambda values, key: min(values, key=lambda v: abs(key(v)))}
PLOTS = 6  # of quality against cost
LEAST_CLIPS = 10  # that define a metric; from 5 a bootstrap finds one of six equal cells worse


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


def paired(a: list[Row], b: list[Row], metric: str) -> np.ndarray:
  """float64[n, 2]: the values of the clips that both have and that define the metric in both."""
  there = {(row.index, row.text): row.values.get(metric, math.nan) for row in b}
  pairs = [(row.values.get(metric, math.nan), there.get((row.index, row.text), math.nan)) for row in a]
  return np.array([pair for pair in pairs if np.isfinite(pair).all()]).reshape(-1, 2)


def difference(pairs_N2: np.ndarray, better: str) -> tuple[float, float]:
  """95 % interval of the mean of the one less the mean of the other; of signed errors, of their sizes."""
  means = benchmark.means(pairs_N2)
  one, two = (np.abs(means) if better == 'zero' else means).T
  low, high = np.percentile(one - two, (2.5, 97.5))
  return float(low), float(high)


def compared(outcomes: list, metric: str, better: str) -> dict[str, str]:
  """{cell's name: 'best', 'worse' (than the best, beyond noise) or ''}."""
  there = [o for o in outcomes if metric in o.scores and judged(o) in o.scores[metric]]
  if not there or better not in BESTS:
    return {}
  value = lambda o: o.scores[metric][judged(o)].value
  best = BESTS[better](there, key=value)
  marks = {}
  for o in there:
    marks[o.cell.name] = 'best' if o is best else 'worse' if differ(o, best, metric, better) else ''
  return marks


def differ(one, two, metric: str, better: str) -> bool:
  """Whether two cells that have a metric differ in it beyond noise."""
  pairs = paired(one.columns[judged(one)], two.columns[judged(two)], metric)
  scores = [o.scores[metric][judged(o)] for o in (one, two)]
  if (len(pairs) or min(round(s.num_clips * s.coverage) for s in scores)) < LEAST_CLIPS:
    return False
  if len(pairs):
    low, high = difference(pairs, better)
    return low > 0 or high < 0
  (low, high), (other_low, other_high) = (sizes(s) if better == 'zero' else (s.low, s.high) for s in scores)
  return low > other_high or other_low > high


def sizes(score: benchmark.Score) -> tuple[float, float]:
  """Of the values in a score's interval the least and the largest size."""
  low, high = sorted((abs(score.low), abs(score.high)))
  return (0. if score.low < 0 < score.high else low), high


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
                  f'intervals, {benchmark.INTERVALS}; bold is the best of a column, faint what is worse than it beyond '
                  'noise: paired by clip, or by intervals that do not overlap; of signed errors the sizes count. '
                  f'Nothing is faint by fewer than {LEAST_CLIPS} clips that define a metric.')
  sets = [f'{o.benchmark.data} ({o.benchmark.data_hash})' for o in whole if getattr(o.benchmark, 'data_hash', '')]
  if sets:
    out.text(f'Measured on {", ".join(dict.fromkeys(sets))}.')
  if len(whole) < len(outcomes):
    out.section('Failed')
    out.table(['cell', 'error'], [[o.cell.name, o.error] for o in outcomes if o.error])
  if not whole:
    return out
  metrics = {name: metric for o in whole for name, metric in o.benchmark.METRICS.items()}
  first = {m: next(o for o in whole if m in o.scores) for m in metrics if any(m in o.scores for o in whole)}
  key = [m for m in dict.fromkeys(m for o in whole for m in o.benchmark.KEY) if m in first]
  out.section('Scores')
  out.sortable(['cell', 'network calls', 's a clip', *key], _lines(whole, key, metrics))
  bench = whole[0].benchmark
  reference = [[column, *((report.told(s), s.value) if (s := first[m].scores[m].get(column)) else ('', None)
                          for m in key)]
               for column in benchmark.COLUMNS if any(column in o.columns and column != judged(o) for o in whole)]
  out.text('What to read them against, of the first cell that has each: ' + '; '.join(
      f'{row[0]}, {bench.MEANING[row[0]]}' for row in reference) + '.')
  if bench.NOTE:
    out.text(bench.NOTE)
  out.sortable(['column', *key], reference)
  if key:
    out.section('Quality against cost')
    out.plot(plots(whole, key[:PLOTS], metrics))
  if rest := [m for m in first if m not in key]:
    out.section('All metrics')
    out.sortable(['cell', *rest], [[line[0], *line[3:]] for line in _lines(whole, rest, metrics)])
  shown = [(o, path) for o in whole for unit in o.units
           if unit.part == 'made' and (path := store.clip(unit.key, 'made', 0)).exists() and unit.first == 0]
  if shown:
    out.section('The same clip from every cell')
    out.clips([export.read(path) for _, path in shown],
              [f'{o.cell.name}: {o.columns["made"][0].text}' for o, _ in shown])
  return out


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
    for title in dict.fromkeys(o.cell.title for o in outcomes):
      there = [(o.calls, s) for o in outcomes
               if o.cell.title == title and (s := o.scores.get(name, {}).get(judged(o)))]
      if there:
        value = np.array([s.value for _, s in there])
        ends = np.abs(np.array([(s.low, s.high) for _, s in there]).T - value)
        ax.errorbar([c for c, _ in there], value, yerr=ends, fmt='o', alpha=.7, label=title)
    points = [(o.calls, s.value) for o in outcomes if (s := o.scores.get(name, {}).get(judged(o)))]
    if metrics[name].better and points:
      best = [points[i] for i in front(points, metrics[name].better)]
      ax.step(*zip(*best), where='post', color='black', lw=1, label='Pareto front')
    ax.set(title=f'{name} ({metrics[name].better or "described"})', xlabel='network evaluations for a clip')
    ax.grid(alpha=.3)
  axes.flat[0].legend(fontsize=8)
  for ax in list(axes.flat)[len(names):]:
    ax.set_visible(False)
  figure.tight_layout()
  return figure
