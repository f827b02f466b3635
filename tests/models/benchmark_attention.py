"""What attention over packed rows costs, forward and backward, against the same rows as one segment and against dense
attention: `python tests/models/benchmark_attention.py [--tokens=8192] [--rows=1] [--heads=4] [--head_dim=64]
[--segments=16]`. With `--tokens=264 --rows=16 --segments=4` and the like: from which length on blocks are worth it.

Aligned segments end where blocks do; unaligned ones are shifted by a third of a block. Ratios are of the best of
`repeats` runs, in one process.
"""
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich import console, table

from veojax import arguments, host
from veojax.models import blocked_attention, dense_attention


def seconds(way, operands, segment, repeats: int) -> float:
  """The best time of value and gradients."""
  step = jax.jit(jax.grad(lambda q, k, v: jnp.sum(way(q, k, v, segment, segment)), (0, 1, 2)))
  jax.block_until_ready(step(*operands))
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(step(*operands))
    times.append(time.perf_counter() - start)
  return min(times)


def main(*options: str):
  defaults = {'tokens': 8192, 'rows': 1, 'heads': 4, 'head_dim': 64, 'segments': 16, 'repeats': 3}
  given = defaults | arguments.parse(list(options))
  host.keep_memory()
  L, count = given['tokens'], given['segments']
  keys = jax.random.split(jax.random.key(0), 3)
  operands = [jax.random.normal(key, (given['rows'], L, given['heads'], given['head_dim'])) for key in keys]
  equal = np.arange(L) * count // L + 1
  shifted = np.roll(equal, L // count // 3)
  rows = {'dense, one segment': (dense_attention.attention, np.ones(L, int)),
          'blocks, one segment': (blocked_attention.attention, np.ones(L, int)),
          f'blocks, {count} aligned segments': (blocked_attention.attention, equal),
          f'blocks, {count} unaligned segments': (blocked_attention.attention, shifted)}
  out = table.Table(title=f'{given["rows"]} rows of {L} tokens, {given["heads"]} heads of {given["head_dim"]}, on '
                          f'{jax.default_backend()}')
  for column in ('', 'seconds', 'of the faster with one segment'):
    out.add_column(column)
  times = {name: seconds(way, operands, jnp.tile(jnp.asarray(ids, jnp.int32), (given['rows'], 1)), given['repeats'])
           for name, (way, ids) in rows.items()}
  best = min(times['dense, one segment'], times['blocks, one segment'])
  for name, value in times.items():
    out.add_row(name, f'{value:.3f}', f'{value / best:.3f}')
  console.Console().print(out)


if __name__ == '__main__':
  main(*sys.argv[1:])
