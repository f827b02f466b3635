"""A report as a person reads it."""
import rich.table

from veojax.compiling.report import Report

GIB = 2 ** 30


def table(report: Report) -> rich.table.Table:
  mesh = ' '.join(f'{axis}={size}' for axis, size in report.mesh.items())
  rows = rich.table.Table(title=f'{report.stage} on {report.topology}: {report.num_chips} chips, {mesh}',
                          title_justify='left', show_header=False)
  for name, value in lines(report):
    rows.add_row(name, value)
  return rows


def lines(report: Report) -> list[tuple[str, str]]:
  """(what, figure) in the order of the table."""
  found = [('parameters', f'{report.parameters / 1e9:.2f} billion')]
  found += [(name, f'{number:,}') for name, number in report.units.items()]
  found += [('compile time', f'{report.compile_seconds:.0f} s'), ('HBM of a chip', _memory(report))]
  if not report.fits:
    remedies = [*map(str, report.suggestions), *filter(None, [report.more_chips])]
    remedies = remedies or ['no change that is known: more chips would do the same again']
    found += [('it would fit with' if i == 0 else '  or', text) for i, text in enumerate(remedies)]
  if report.arguments is None:
    return found
  found.append(('  arguments, temporaries', f'{report.arguments / GIB:.1f} + {report.temporaries / GIB:.1f} GiB'))
  if report.host:
    found.append(('  offloaded to the host', f'{report.host / GIB:.1f} GiB'))
  if report.model_flops:
    found.append(('FLOPs of a chip, the model\'s own', _flops(report.model_flops)))
  found.append(('FLOPs of a chip, executed', _flops(report.executed_flops)
                + (f': {report.waste:.2f} x the model\'s' if report.waste else '')))
  found.append(('compute at the chip\'s peak', f'{report.compute_seconds:.3g} s'))
  if report.estimated_seconds:
    own = {kind: seconds for kind, seconds in report.estimated_seconds.items() if kind != 'collectives'}
    found.append(('compute by estimated cycles', f'{sum(own.values()):.3g} s ('
                  + ', '.join(f'{kind} {seconds:.3g}' for kind, seconds in own.items()) + ')'))
  found.append(('sent over one link', f'{report.link_seconds:.3g} s: {report.link_seconds / report.compute_seconds:.2f}'
                ' x the compute at the peak'))
  found += [(f'  {t.axes} {t.kind}', f'{t.sent / 1e9:.3g} GB'
             + (f', {t.across / 1e9:.3g} of them over the network' if t.across else '') + f': {t.seconds:.3g} s')
            for t in report.traffic if t.sent > 1e6]
  if report.mfu_bound:
    estimated = f'; by estimated cycles {report.mfu_estimated:.1%}' if report.mfu_estimated else ''
    found.append(('MFU is at most', f'{report.mfu_bound:.1%}{estimated}'))
  return found


def _memory(report):
  of = f'{report.peak / GIB:.1f} of {report.hbm / GIB:.1f} GiB'
  if report.fits:
    return f'{of}: {report.spare:.0%} to spare'
  return f'{of}: it does not fit by {(report.peak - report.hbm) / GIB:.1f} GiB'


def _flops(flops):
  parts = ' + '.join(f'{value / 1e12:.4g} {kind}' for kind, value in flops.items())
  return f'{sum(flops.values()) / 1e12:.4g} T ({parts})'
