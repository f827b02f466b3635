"""A benchmark's report as a person reads it, and as a machine does."""
import dataclasses

import rich.table

from veojax.benchmarking.report import Report
from veojax.benchmarking.timing import Measured

GIB = 2 ** 30


def table(report: Report) -> rich.table.Table:
  rows = rich.table.Table(title=f'{report.num_devices} x {report.device}, {report.dtype}', title_justify='left')
  for name in ('', *(measured.name for measured in report.measured)):
    rows.add_column(name)
  columns = [figures(report, measured) for measured in report.measured]
  for name in dict.fromkeys(name for column in columns for name in column):
    rows.add_row(name, *(column.get(name, '') for column in columns))
  rows.add_section()
  for size, rate in report.products.items():
    rows.add_row(f'product {size}', f'{rate / 1e12:.4g} TFLOP/s')
  if report.error is not None:
    rows.add_row('error against float32 dense attention', f'{report.error:.2g} of the largest value')
  rows.add_section()
  for name, seconds in report.costs:
    rows.add_row(name, f'{seconds:.4g} s')
  return rows


def figures(report: Report, measured: Measured) -> dict[str, str]:
  """{what: figure} of one column."""
  found = {'step, median': f'{measured.median:.4g} s', 'step, best': f'{measured.best:.4g} s',
           'CPU time a step': f'{measured.cpu_seconds / len(measured.seconds):.4g} s'}
  found |= {f'{unit.removesuffix(" a step")} a second': f'{number / measured.median:,.4g}'
            for unit, number in measured.units.items()}
  if measured.flops:
    found['model FLOP/s'] = f'{measured.rate / 1e12:.4g} T'
    found['MFU of the best product'] = f'{measured.rate / report.peak:.1%}'
    if report.datasheet:
      found["MFU of the data sheet's peak"] = f'{measured.rate / report.datasheet:.1%}'
  if measured.waited is not None:
    found['waiting for data'] = f'{measured.waited / sum(measured.seconds):.2%}'
  if measured.memory:
    found['memory of a device'] = f'{measured.memory / GIB:.2f} GiB'
  found['compile time'] = f'{measured.compile_seconds:.1f} s'
  if measured is not report.measured[0]:
    found['time of the first'] = f'{report.measured[0].median / measured.median:.2f} of this one'
  return found


def tree(report: Report) -> dict:
  """For JSON: the report, with what is derived from it."""
  found = dataclasses.asdict(report)
  for entry, measured in zip(found['measured'], report.measured):
    entry |= {'median': measured.median, 'best': measured.best, 'model_flops_per_second': measured.rate,
              'mfu_of_product': measured.rate / report.peak if measured.flops else None,
              'mfu_of_datasheet': measured.rate / report.datasheet if measured.flops and report.datasheet else None}
  return found
