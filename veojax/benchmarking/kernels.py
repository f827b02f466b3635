"""Attention by itself at a config's sizes: over packed rows, against the library's over whole rows.

FLOPs are those of the two products forward and the five backward that no kernel can do without (scores are made again),
2 · L² · N · K each, for rows of one segment; of several equal segments that many times less.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np

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


def candidates(config, segments: int = 4) -> list[Candidate]:
  """Forward, and forward with backward: rows of one segment, of `segments` equal ones, and the library's."""
  dit, L = config.dit, config.pack.row_tokens
  shape = 1, L, dit.num_heads, dit.width // dit.num_heads
  operands = [jax.random.normal(key, shape, dit.dtype) for key in jax.random.split(jax.random.key(0), 3)]
  ways = [('packed, 1 segment', attention.attention, 1),
          (f'packed, {segments} segments', attention.attention, segments), ("library's, no segments", whole, 1)]
  if jax.default_backend() == 'gpu':
    ways += [(f'blocks of {name}', functools.partial(gpu_attention.attention, tuning=tuning), 1)
             for name, tuning in TUNINGS.items()]
  found = []
  for backward in (False, True):
    for name, way, count in ways:
      ids = jnp.asarray(np.arange(L) * count // L + 1, jnp.int32)[None]
      products = FORWARD + BACKWARD * backward
      found.append(_candidate(f'attention {"forward and backward" if backward else "forward"}, {name}', way, operands,
                              ids, backward, 2 * products * L * L * dit.width / count))
  return found


def error(config, tokens: int = 2048) -> float:
  """The largest error of outputs and gradients against float32 dense attention, over the largest value of each; in a
  row of unequal segments and padding."""
  dit, L = config.dit, min(config.pack.row_tokens, tokens)
  ends = np.cumsum([L // 3 + 5, L // 7, 1, L // 4])
  ids = jnp.asarray(np.searchsorted(ends, np.arange(L), 'right') + 1, jnp.int32)[None]
  ids = jnp.where(ids > len(ends), 0, ids)
  shape = 1, L, dit.num_heads, dit.width // dit.num_heads
  operands = [jax.random.normal(key, shape, dit.dtype) for key in jax.random.split(jax.random.key(0), 3)]

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def results(way, dtype, *operands):
    out, pull = jax.vjp(lambda q, k, v: way(q, k, v, ids, ids), *(x.astype(dtype) for x in operands))
    return out, *pull(jnp.cos(out))
  with jax.default_matmul_precision('float32'):
    exact = results(dense_attention.attention, jnp.float32, *operands)
  found = results(attention.attention, dit.dtype, *operands)
  return max(float(jnp.max(jnp.abs(a.astype(jnp.float32) - b)) / jnp.max(jnp.abs(b))) for a, b in zip(found, exact))


def _candidate(name, way, operands, ids, backward, flops) -> Candidate:
  function = functools.partial(lambda way, q, k, v, ids: way(q, k, v, ids, ids), way)
  if backward:
    forward = function
    function = jax.grad(lambda q, k, v, ids: jnp.sum(forward(q, k, v, ids).astype(jnp.float32)), (0, 1, 2))
  program, seconds, memory = compiled(function, *operands, ids)

  def one():
    jax.block_until_ready(program(*operands, ids))
  return Candidate(name, one, flops, {'tokens': ids.shape[1]}, seconds, memory, program.as_text())
