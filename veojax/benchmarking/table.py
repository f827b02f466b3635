"""A benchmark's report as a person reads it, and as a machine does."""
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterable

import rich.console
import rich.table

from veojax.benchmarking.report import Report
from veojax.benchmarking.timing import Measured

GIB = 2 ** 30
WIDTH = 240  # columns of what is no terminal, such as a file
FIGURE = 12   # of a figure, so that names are not broken
MFU = ("MFU: 6 · tokens · parameters of the blocks' matrices + 12 · L² · width a layer and row of L tokens (forward a "
       'third of it; nothing computed twice counts), attention by itself 4 · L² · width forward and 10 more backward; in '
       'the median step, over the best product and over the data sheet.')


def show(report: Report, as_json: bool = False):
  """Prints it; cut nowhere."""
  console = rich.console.Console(width=None if sys.stdout.isatty() else WIDTH)
  console.print(json.dumps(tree(report)) if as_json else table(report), soft_wrap=as_json)


def kept(parts: Iterable[Report], path: str | None, name: str) -> Report:
  """The last of a report's parts. Each, where a path is given, becomes the line of this name in a file of JSON lines,
  so that what is measured stays though the process does not."""
  for report in parts:
    if path:
      file = pathlib.Path(path)
      lines = file.read_text().splitlines(keepends=True) if file.exists() else []
      line = json.dumps({'name': name, 'done': report.done, **tree(report)})
      new = file.with_name(f'{file.name}.new')
      new.write_text(''.join(l for l in lines if json.loads(l)['name'] != name) + line + '\n')
      new.replace(file)
  return report


def table(report: Report) -> rich.console.Group:
  title = f'{report.num_devices} x {report.device}, {report.dtype}'
  rows = [figures(report, measured) for measured in report.measured]
  steps = rich.table.Table('')
  for name in dict.fromkeys(name for row in rows for name in row):
    steps.add_column(name, overflow='fold', max_width=FIGURE)
  for measured, row in zip(report.measured, rows):
    steps.add_row(measured.name, *(row.get(column.header, '') for column in steps.columns[1:]))
  others = _table('product', 'TFLOP/s'), _table('attention', 'error', 'of the largest value', 'at most')
  for size, rate in report.products.items():
    others[0].add_row(size, f'{rate / 1e12:.4g}')
  for error in report.errors:
    others[1].add_row(error.check, error.tensor, f'{error.largest:.2g}', f'{error.bound:.2g}' + ' !' * (not error.fine))
  costs, failures = _table('instruction or kernel', 'seconds a step'), _table('fails', 'by')
  for name, seconds in report.costs:
    costs.add_row(name, f'{seconds:.4g}')
  for part, error in report.failures.items():
    failures.add_row(part, error)
  told = [MFU] if any(measured.flops for measured in report.measured) else []
  shown = [t for t in (*others, costs, failures) if t.rows]
  return rich.console.Group(title, *([steps] if rows else []), *told, *shown)


def _table(*columns: str) -> rich.table.Table:
  made = rich.table.Table()
  for name in columns:
    made.add_column(name, overflow='fold')
  return made


def figures(report: Report, measured: Measured) -> dict[str, str]:
  """{what: figure} of one row."""
  found = {'step, median': f'{measured.median:.4g} s', 'step, best': f'{measured.best:.4g} s',
           'CPU time a step': f'{measured.cpu_seconds / len(measured.seconds):.4g} s'}
  found |= {f'{unit.removesuffix(" a step")} a second': f'{number / measured.median:,.4g}'
            for unit, number in measured.units.items()}
  if measured.flops:
    found['model TFLOP/s'] = f'{measured.rate / 1e12:.4g}'
    if report.peak:
      found['MFU of the best product'] = f'{measured.rate / report.peak:.1%}'
    found["MFU of the data sheet's peak"] = (
        f'{measured.rate / report.datasheet:.1%}' if report.datasheet else 'unknown chip')
  if measured.waited is not None:
    found['waiting for data'] = f'{measured.waited / sum(measured.seconds):.2%}'
  if measured.predicted:
    found['memory by the compiler'] = f'{measured.predicted / GIB:.2f} GiB'
  if measured.peak:
    found['memory held, at most'] = f'{measured.peak / GIB:.2f} GiB'
  found['compile time'] = f'{measured.compile_seconds:.1f} s'
  if measured is not report.measured[0]:
    found['time of the first'] = f'{report.measured[0].median / measured.median:.2f} of this one'
  return found


def tree(report: Report) -> dict:
  """For JSON: the report, with what is derived from it."""
  found = dataclasses.asdict(report)
  for entry, measured in zip(found['measured'], report.measured):
    entry |= {'median': measured.median, 'best': measured.best, 'model_flops_per_second': measured.rate,
              'mfu_of_product': measured.rate / report.peak if measured.flops and report.peak else None,
              'mfu_of_datasheet': measured.rate / report.datasheet if measured.flops and report.datasheet else None}
  return found
