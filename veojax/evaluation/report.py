"""The report of one evaluation: report.json, report.csv (one score a line), clips.csv (one clip a line) and
report.html, which holds all it shows."""
import csv
import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Callable

import numpy as np

from veojax import config as door
from veojax.evaluation import benchmark, page, units
from veojax.evaluation.benchmark import LEAST_CLIPS, Score
from veojax.generation import export
from veojax.models import run_checkpoint

SHOWN = 12        # clips on the page


def write(folder: pathlib.Path, result, clip_path: Callable[[str, int], pathlib.Path]):
  units.write(folder / 'report.json', json.dumps(as_json(result), indent=2, allow_nan=False))
  units.write(folder / 'report.csv', scores_csv(result))
  units.write(folder / 'clips.csv', clips_csv(result))
  as_page(result, clip_path).write(folder / 'report.html')


def told(score: Score) -> str:
  """'0.912 [0.890, 0.931]' with as many digits as the interval is worth; '0.912 (3 clips)' of fewer than LEAST_CLIPS
  that define it."""
  if score.defined < LEAST_CLIPS:
    return f'{score.value:.3f} ({score.defined} clip{"s" if score.defined > 1 else ""})'
  width = score.high - score.low
  digits = 3 if not width > 0 else max(0, min(4, 1 - math.floor(math.log10(width))))
  return f'{score.value:.{digits}f} [{score.low:.{digits}f}, {score.high:.{digits}f}]'


def bars(scores: list[Score]) -> np.ndarray:
  """float64[2, n]: how far the intervals reach below and above the values, for a plot; NaN where none is told."""
  ends = [(s.value - s.low, s.high - s.value) if s.defined >= LEAST_CLIPS else (np.nan, np.nan) for s in scores]
  return np.abs(np.array(ends).T)


def as_json(result) -> dict:
  made = {'options': units.settings(result.subject)} if result.subject.model is not None else {}
  return {'benchmark': result.name, 'setting': door.to_tree(result.benchmark), 'model': result.subject.name, **made,
          'judged': result.judged, 'seconds': result.seconds,
          'scores': {name: {c: s._asdict() for c, s in row.items()} for name, row in result.scores.items()},
          'clips': {c: [_told_of(row) for row in rows] for c, rows in result.columns.items()}}


def _told_of(row) -> dict:
  """Without what is kept for scores and plots: that lies in the files of the units."""
  return {name: value for name, value in dataclasses.asdict(row).items() if name != 'kept'}


def scores_csv(result) -> str:
  out = io.StringIO()
  lines = csv.writer(out)
  lines.writerow(['metric', 'column', *Score._fields, 'unit', 'better', 'about'])
  for name, row in result.scores.items():
    metric = result.benchmark.METRICS[name]
    lines.writerows([name, column, *score, metric.unit, metric.better, metric.about] for column, score in row.items())
  return out.getvalue()


def clips_csv(result) -> str:
  out = io.StringIO()
  names = list(result.benchmark.METRICS)
  lines = csv.writer(out)
  lines.writerow(['column', 'index', 'group', 'text', *names])
  for column, rows in result.columns.items():
    lines.writerows([column, row.index, row.group, row.text, *(row.values.get(n, '') for n in names)] for row in rows)
  return out.getvalue()


def as_page(result, clip_path) -> page.Page:
  bench, judged = result.benchmark, result.judged
  out = page.Page(f'{run_checkpoint.title(result.subject.name)} · {result.name}',
                  f'{bench.num_clips} clips, seed {bench.seed}. Means over the clips for which a metric is defined '
                  f'(its coverage). 95 % intervals, {benchmark.INTERVALS}; of fewer than '
                  f'{LEAST_CLIPS} clips, how many they are instead.')
  out.section('Scores')
  out.text('; '.join(f'{column}: {bench.MEANING[column]}' for column in result.columns) + '.')
  if bench.NOTE:
    out.text(bench.NOTE)
  out.sortable(['metric', 'of', *result.columns, 'coverage', 'better', 'what it says'], [
      [name, bench.METRICS[name].group, *((told(row[c]), row[c].value) if c in row else ('', None)
                                          for c in result.columns),
       (f'{row[judged].coverage:.2f}', row[judged].coverage) if judged in row else ('', None),
       bench.METRICS[name].better, told_about(bench.METRICS[name])] for name, row in result.scores.items()])
  out.plot(intervals(result))
  groups = sorted({row.group for row in result.columns[judged]})
  if len(groups) > 1:
    out.section('By kind of clip')
    out.sortable(['metric', *groups], by_group(result, groups))
  for title, figure in bench.plots(result.columns).items():
    out.section(title)
    out.plot(figure)
  _clips(out, result, clip_path)
  out.section('Setting')
  out.commands(json.dumps({key: value for key, value in as_json(result).items() if key not in ('scores', 'clips')},
                          indent=2))
  return out


def told_about(metric) -> str:
  return metric.about + (f' ({metric.unit})' if metric.unit else '')


def by_group(result, groups: list[str]) -> list[list]:
  """A line for each metric of KEY: its score among the judged clips of each group."""
  rows = []
  for name in result.benchmark.KEY:
    scores = [benchmark.score(benchmark.values([r for r in result.columns[result.judged] if r.group == g], name))
              for g in groups]
    if any(s.coverage for s in scores):
      rows.append([name, *((told(s), s.value) if s.coverage else ('', None) for s in scores)])
  return rows


def intervals(result):
  """Every share in [0, 1], all columns of a metric on one line: where the judged clips stand between floor and
  ceiling."""
  import matplotlib
  matplotlib.use('agg')
  import matplotlib.pyplot as plt
  names = [n for n, row in result.scores.items() if result.benchmark.METRICS[n].better == 'higher' and all(
      0 <= s.low and s.high <= 1 for s in row.values())]
  figure, axes = plt.subplots(figsize=(8, .8 + .3 * max(1, len(names))))
  for column, marker, colour in (('shuffled', 'x', 'grey'), ('truth', '|', 'black'), ('codec', 'd', 'tab:orange'),
                                 ('made', 'o', 'tab:blue')):
    points = [(result.scores[n][column], len(names) - 1 - i) for i, n in enumerate(names) if column in result.scores[n]]
    if points:
      x = np.array([s.value for s, _ in points])
      axes.errorbar(x, [y for _, y in points], xerr=bars([s for s, _ in points]), fmt=marker, color=colour,
                    label=column, capsize=2)
  axes.set_yticks(range(len(names)), names[::-1])
  axes.set_xlim(-.03, 1.03)
  axes.grid(axis='x', alpha=.3)
  if names:
    axes.legend(loc='upper left', bbox_to_anchor=(1.01, 1))
  return figure


def _clips(out: page.Page, result, clip_path):
  metric = result.benchmark.WORST
  rows = [row for row in result.columns[result.judged] if clip_path(result.judged, row.index).exists()]
  better = result.benchmark.METRICS[metric].better if metric else ''
  rows = sorted(rows, key=lambda row: row.values.get(metric, -math.inf) * (-1 if better == 'lower' else 1))
  if not rows:
    return
  out.section(f'Clips, the worst by {metric} first' if metric else 'Clips')
  chosen = rows if len(rows) <= SHOWN else rows[:SHOWN * 2 // 3] + rows[-SHOWN // 3:]
  captions = [f'{row.index}: {row.text} ({_reasons(row, result.benchmark)})' for row in chosen]
  out.clips([export.read(clip_path(result.judged, row.index)) for row in chosen], captions)


def _reasons(row, bench) -> str:
  """The key values of a clip."""
  names = [bench.WORST, *(n for n in bench.KEY if n != bench.WORST)]
  return ', '.join(f'{n} {row.values[n]:.3g}' for n in names if n in row.values)
