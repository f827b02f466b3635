"""Attention by itself at a config's sizes: over packed rows, against the library's over whole rows.

FLOPs are those of the two products forward and the five backward that no kernel can do without (scores are made again),
2 · L² · N · K each, for rows of one segment; of several equal segments that many times less.
"""
import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from veojax.benchmarking import timing
from veojax.benchmarking.timing import Candidate, compiled
from veojax.models import attention, dense_attention, gpu_attention
from veojax.models.gpu_attention import Blocks, Tuning

FORWARD, BACKWARD = 2, 5  # products
# Other blocks than the GPU kernels' own, for a table of what they cost.
TUNINGS = {f'{q} x {k}, {warps} warps, {stages} stages': Tuning(*[Blocks(q, k, warps, stages)] * 3)
           for q, k, warps, stages in ((64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 8, 2), (128, 64, 4, 2),
                                       (128, 64, 8, 2), (128, 128, 8, 2))}


def whole(q, k, v, segment_BL, segment_BS):
  """The library's attention, which knows of no segments: cuDNN's on NVIDIA's GPUs, XLA's elsewhere."""
  on_gpu = jax.default_backend() == 'gpu' and q.dtype != jnp.float32
  return jax.nn.dot_product_attention(q, k, v, implementation='cudnn' if on_gpu else None)


def candidates(config, segments: int = 4) -> dict[str, Callable[[], Candidate]]:
  """What makes each by its name. Forward, and forward with backward: rows of one segment, of `segments` equal ones, and
  the library's."""
  dit, L = config.dit, config.pack.row_tokens
  shape = 1, L, dit.num_heads, dit.width // dit.num_heads
  operands = [jax.random.normal(key, shape, dit.dtype) for key in jax.random.split(jax.random.key(0), 3)]
  ways = [('packed, 1 segment', attention.attention, 1),
          (f'packed, {segments} segments', attention.attention, segments), ("library's, no segments", whole, 1)]
  if jax.default_backend() == 'gpu':
    ways += [(f'blocks of {name}', functools.partial(gpu_attention.attention, tuning=tuning), 1)
             for name, tuning in TUNINGS.items()]
  found = {}
  for backward in (False, True):
    for name, way, count in ways:
      ids = jnp.asarray(np.arange(L) * count // L + 1, jnp.int32)[None]
      products = FORWARD + BACKWARD * backward
      name = f'{"forward and backward" if backward else "forward"}, {name}'
      found[name] = functools.partial(_candidate, name, way, operands, ids, backward,
                                      2 * products * L * L * dit.width / count)
  return found


@dataclasses.dataclass(frozen=True)
class Check:
  """A row whose attention is held to float32 dense attention: segments of these lengths, then padding."""
  head_dim: int
  dtype: str
  segments: tuple[int, ...]
  padding: int = 0
  heads: int = 2

  @property
  def name(self) -> str:
    return (f'{sum(self.segments) + self.padding} tokens in {len(self.segments)} segments and {self.padding} of '
            f'padding, head dim {self.head_dim}, {self.dtype}')


CHECKS = (Check(128, 'bfloat16', (687, 292, 1, 512), padding=556), Check(128, 'bfloat16', (2048,)),
          Check(64, 'float32', (312,)),  # a row of the world's model
          Check(128, 'bfloat16', (1, 2, 3, 5, 8, 13, 21, 34, 55, 89) * 4, padding=100))
# Eight roundings, each of half a unit in the last place: of bfloat16, and of TF32, in which GPUs multiply float32.
BOUNDS = {'bfloat16': 8 * 2 ** -9, 'float32': 8 * 2 ** -12}


@dataclasses.dataclass(frozen=True)
class Error:
  """largest: error of a tensor over its largest value; NaN where either is not finite."""
  check: str
  tensor: str
  largest: float
  bound: float

  @property
  def fine(self) -> bool:
    return self.largest <= self.bound  # NaN is not


def errors(config, failures: dict[str, str]) -> tuple[Error, ...]:
  """Of outputs and gradients against float32 dense attention: of CHECKS, and of the config's own head dim and
  precision. What fails is noted in `failures`."""
  dit = config.dit
  own = Check(dit.width // dit.num_heads, dit.dtype, CHECKS[0].segments, CHECKS[0].padding)
  found = [timing.attempt(failures, f'check of {check.name}', errors_of, check)
           for check in dict.fromkeys((own, *CHECKS))]
  return tuple(error for some in found for error in some or ())


def errors_of(check: Check) -> list[Error]:
  """Of the output and of the gradients of queries, keys and values, each [1, L, heads, head_dim], of random ones."""
  counts = (*check.segments, check.padding)
  ids = jnp.asarray(np.repeat((*range(1, len(counts)), 0), counts), jnp.int32)[None]
  shape = *ids.shape, check.heads, check.head_dim
  operands = [jax.random.normal(key, shape, check.dtype) for key in jax.random.split(jax.random.key(0), 3)]

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def results(way, dtype, *operands):
    out, pull = jax.vjp(lambda q, k, v: way(q, k, v, ids, ids), *(x.astype(dtype) for x in operands))
    return out, *pull(jnp.cos(out))
  with jax.default_matmul_precision('float32'):
    exact = results(dense_attention.attention, jnp.float32, *operands)
  found = results(attention.attention, check.dtype, *operands)
  return [Error(check.name, tensor, _largest(*map(np.asarray, (a, b))), BOUNDS[check.dtype])
          for tensor, a, b in zip(('out', 'dq', 'dk', 'dv'), found, exact)]


def _largest(found, exact) -> float:
  found = found.astype(np.float32)
  if not (np.isfinite(found).all() and np.isfinite(exact).all()):
    return math.nan
  return float(np.abs(found - exact).max() / np.abs(exact).max())


def _candidate(name, way, operands, ids, backward, flops) -> Candidate:
  function = functools.partial(lambda way, q, k, v, ids: way(q, k, v, ids, ids), way)
  if backward:
    forward = function
    function = jax.grad(lambda q, k, v, ids: jnp.sum(forward(q, k, v, ids).astype(jnp.float32)), (0, 1, 2))
  program, seconds, memory = compiled(function, *operands, ids)

  def one():
    jax.block_until_ready(program(*operands, ids))
  return Candidate(name, one, flops, {'tokens': ids.shape[1]}, seconds, memory, program.as_text())
