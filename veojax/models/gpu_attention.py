"""Attention over packed rows on GPUs: a kernel in Pallas' Triton dialect that visits only blocks whose segments meet.

Every block of queries has a range of blocks of keys, from the first to the last that its segments meet, and every block
of keys one of queries. The ranges are data, so one compiled program serves every packing; in a row whose segments lie
one after another nothing outside of a segment's own blocks is visited. Within a range the kernel compares the ids.

Softmax with a running maximum and sum, in base 2; backward makes the scores again in two kernels, one for dQ and one
for dK and dV (Dao 2023, FlashAttention-2, algorithms 1 and 2), so that nothing is added across blocks.

Output and logsumexp carry the name `layers.ATTENTION_OUTPUT`, so that rematerialisation can keep them.
"""
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import ad_checkpoint
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from veojax.models import layers

LEAST = 16                 # queries, keys or head dims of a product
EMPTY = -2e30              # a score that is none, in base 2
LAST = 2 ** 30             # padding's id, so that ids rise along a row
NO_QUERY, NO_KEY = LAST + 1, LAST + 2  # ids of what fills up a row to whole blocks: they meet nobody


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Of one kernel: queries and keys of a step, powers of two; warps; loads in flight."""
  queries: int
  keys: int
  warps: int
  stages: int


@dataclasses.dataclass(frozen=True)
class Tuning:
  forward: Blocks = Blocks(queries=128, keys=64, warps=8, stages=3)
  dq: Blocks = Blocks(queries=128, keys=64, warps=8, stages=2)
  dkv: Blocks = Blocks(queries=64, keys=128, warps=8, stages=2)


# The largest first; smaller ones for GPUs, head dims and precisions for which it does not fit.
TUNINGS = (Tuning(), Tuning(Blocks(64, 64, 8, 2), Blocks(64, 64, 8, 2), Blocks(64, 64, 8, 2)),
           Tuning(Blocks(64, 32, 8, 2), Blocks(64, 32, 8, 2), Blocks(32, 64, 8, 2)),
           Tuning(Blocks(32, 32, 4, 2), Blocks(32, 32, 4, 2), Blocks(32, 32, 4, 2)))
# Kilobytes of shared memory that a block may use, by compute capability (CUDA's programming guide, table 21).
SHARED = {'8.0': 163, '8.6': 99, '8.7': 163, '8.9': 99, '9.0': 227, '10.0': 227, '10.3': 227, '12.0': 99}


def capability() -> str:
  """Of the GPU that is here; ahead of time, where none is, that of an H100."""
  return getattr(jax.devices()[0], 'compute_capability', '9.0')


def runs_here() -> bool:
  """Triton's dialect lowers for GPUs from Ampere on."""
  return float(capability()) >= 8


def tuned(row_bytes: int, shared: int) -> Tuning:
  """The first of TUNINGS that fits: row_bytes are those of a token's q, k or v, `shared` those of a block's memory."""
  return next((tuning for tuning in TUNINGS[:-1] if needed(tuning) * row_bytes < shared), TUNINGS[-1])


def needed(tuning: Tuning) -> int:
  """Rows of q, k, v or dO that the hungriest kernel has in shared memory: two of its own, and two for each stage."""
  forward, dq, dkv = tuning.forward, tuning.dq, tuning.dkv
  return max(forward.queries + 2 * forward.stages * forward.keys, 2 * dq.queries + 2 * dq.stages * dq.keys,
             2 * dkv.keys + 2 * dkv.stages * dkv.queries)


def attention(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS, *, tuning: Tuning | None = None,
              interpret: bool = False):
  """As `models.attention.attention`. `interpret` runs the kernels' Python on any platform, for tests."""
  operands = _prepare(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS)
  return _attention(*operands, Settings.of(q_BLNK, tuning, interpret))[..., :q_BLNK.shape[-1]]


def partial(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS, *, tuning: Tuning | None = None, interpret: bool = False):
  """(output, logsumexp_BLN float32) over some keys of a row; for queries of whose segment there is none, logsumexp is
  below -1e30 and the output means nothing."""
  operands = _prepare(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS)
  o, logsumexp = _outputs(*operands, Settings.of(q_BLNK, tuning, interpret))
  return o[..., :q_BLNK.shape[-1]], logsumexp.swapaxes(1, 2) * math.log(2)


def gradients(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS, o_BLNK, logsumexp_BLN, do_BLNK, *,
              tuning: Tuning | None = None, interpret: bool = False):
  """Gradients by q, k and v of `do` times the output, as far as it comes from these keys; o_BLNK and logsumexp_BLN are
  those over all keys of the row."""
  operands = _prepare(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS)
  residuals = *operands, _lanes(o_BLNK), logsumexp_BLN.swapaxes(1, 2) / math.log(2)
  settings = Settings.of(q_BLNK, tuning, interpret)
  return tuple(x[..., :q_BLNK.shape[-1]] for x in _backward(settings, residuals, _lanes(do_BLNK))[:3])


@dataclasses.dataclass(frozen=True)
class Settings:
  scale: float
  tuning: Tuning
  interpret: bool

  @classmethod
  def of(cls, q_BLNK, tuning: Tuning | None, interpret: bool) -> 'Settings':
    row_bytes = lane_count(q_BLNK.shape[-1]) * q_BLNK.dtype.itemsize
    tuning = tuning or tuned(row_bytes, 1024 * SHARED.get(capability(), min(SHARED.values())))
    return cls(q_BLNK.shape[-1] ** -0.5, tuning, interpret)


def _prepare(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS):
  return *map(_lanes, (q_BLNK, k_BSNK, v_BSNK)), *(jnp.where(s == 0, LAST, s) for s in (segment_BL, segment_BS))


def _lanes(x_BLNK):
  """Zeros up to whole lanes: they change no product."""
  head_dim = x_BLNK.shape[-1]
  return jnp.pad(x_BLNK, ((0, 0),) * 3 + ((0, lane_count(head_dim) - head_dim),))


def lane_count(head_dim: int) -> int:
  return max(LEAST, pl.next_power_of_2(head_dim))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q, k, v, segment_q, segment_k, settings):
  return _forward(q, k, v, segment_q, segment_k, settings)[0]


def _outputs(q, k, v, segment_q, segment_k, settings):
  """Output [B, L, N, K] and logsumexp [B, N, L] in base 2."""
  rows = Rows(q, k, segment_q, segment_k, settings.tuning.forward, settings.interpret)
  kernel = functools.partial(forward_kernel, scale=settings.scale, keys=rows.blocks.keys)
  o, logsumexp = rows.over_queries(kernel, 'gpu_attention_forward', (rows.queries(q), rows.keys(k), rows.keys(v)), (),
                                   (rows.query_shape(q.dtype), rows.scalar_shape))
  return o[:, :q.shape[1]], logsumexp[..., :q.shape[1]]


def _forward(q, k, v, segment_q, segment_k, settings):
  o, logsumexp = (ad_checkpoint.checkpoint_name(x, layers.ATTENTION_OUTPUT)
                  for x in _outputs(q, k, v, segment_q, segment_k, settings))
  return o, (q, k, v, segment_q, segment_k, o, logsumexp)


def _backward(settings, residuals, do):
  q, k, v, segment_q, segment_k, o, logsumexp = residuals
  delta = jnp.einsum('blnk,blnk->bnl', do, o, preferred_element_type=jnp.float32)
  rows = Rows(q, k, segment_q, segment_k, settings.tuning.dq, settings.interpret)
  operands = lambda: ((rows.queries(q), rows.keys(k), rows.keys(v)),
                      (rows.queries(do), rows.scalars(logsumexp), rows.scalars(delta)))
  kernel = functools.partial(dq_kernel, scale=settings.scale, keys=rows.blocks.keys)
  dq, = rows.over_queries(kernel, 'gpu_attention_dq', *operands(), (rows.query_shape(q.dtype),))
  rows = Rows(q, k, segment_q, segment_k, settings.tuning.dkv, settings.interpret)
  kernel = functools.partial(dkv_kernel, scale=settings.scale, queries=rows.blocks.queries)
  dk, dv = rows.over_keys(kernel, 'gpu_attention_dkv', *operands(), (rows.key_shape(k.dtype), rows.key_shape(v.dtype)))
  return dq[:, :q.shape[1]], dk[:, :k.shape[1]], dv[:, :k.shape[1]], None, None


_attention.defvjp(_forward, _backward)


def forward_kernel(first, last, segment_q, segment_k, q, k, v, o, logsumexp, *, scale, keys):
  """One block of queries against its range of blocks of keys."""
  q_QK, id_Q = q[...], segment_q[...]

  def step(j, carry):
    o_QK, top_Q, sum_Q = carry
    at = pl.ds(j * keys, keys)
    s_QS = triton.dot(q_QK, k[at, :], trans_b=True) * (scale * math.log2(math.e))
    s_QS = jnp.where(id_Q[:, None] == segment_k[at][None, :], s_QS, EMPTY)
    new_Q = jnp.maximum(top_Q, jnp.max(s_QS, 1))
    p_QS, decay_Q = jnp.exp2(s_QS - new_Q[:, None]), jnp.exp2(top_Q - new_Q)
    o_QK = o_QK * decay_Q[:, None] + triton.dot(p_QS.astype(v.dtype), v[at, :])
    return o_QK, new_Q, sum_Q * decay_Q + jnp.sum(p_QS, 1)
  zero_Q = jnp.zeros(q_QK.shape[:1], jnp.float32)
  start = jnp.zeros(q_QK.shape, jnp.float32), zero_Q + EMPTY, zero_Q
  o_QK, top_Q, sum_Q = jax.lax.fori_loop(first[...], last[...], step, start)
  sum_Q = jnp.maximum(sum_Q, 1e-30)  # a block of nothing but filling has met nobody
  o[...] = (o_QK / sum_Q[:, None]).astype(o.dtype)
  logsumexp[...] = top_Q + jnp.log2(sum_Q)


def dq_kernel(first, last, segment_q, segment_k, q, k, v, do, logsumexp, delta, dq, *, scale, keys):
  """dQ of one block of queries."""
  q_QK, do_QK, id_Q = q[...], do[...], segment_q[...]
  logsumexp_Q, delta_Q = logsumexp[...], delta[...]

  def step(j, dq_QK):
    at = pl.ds(j * keys, keys)
    k_SK = k[at, :]
    s_QS = triton.dot(q_QK, k_SK, trans_b=True) * (scale * math.log2(math.e))
    same_QS = id_Q[:, None] == segment_k[at][None, :]
    p_QS = jnp.where(same_QS, jnp.exp2(s_QS - logsumexp_Q[:, None]), 0.0)
    dp_QS = triton.dot(do_QK, v[at, :], trans_b=True)
    ds_QS = p_QS * (dp_QS - delta_Q[:, None])
    return dq_QK + triton.dot(ds_QS.astype(k_SK.dtype), k_SK)
  dq_QK = jax.lax.fori_loop(first[...], last[...], step, jnp.zeros(q_QK.shape, jnp.float32))
  dq[...] = (dq_QK * scale).astype(dq.dtype)


def dkv_kernel(first, last, segment_q, segment_k, q, k, v, do, logsumexp, delta, dk, dv, *, scale, queries):
  """dK and dV of one block of keys, from its range of blocks of queries; scores lie transposed."""
  k_SK, v_SK, id_S = k[...], v[...], segment_k[...]

  def step(i, carry):
    dk_SK, dv_SK = carry
    at = pl.ds(i * queries, queries)
    q_QK, do_QK = q[at, :], do[at, :]
    s_SQ = triton.dot(k_SK, q_QK, trans_b=True) * (scale * math.log2(math.e))
    same_SQ = id_S[:, None] == segment_q[at][None, :]
    p_SQ = jnp.where(same_SQ, jnp.exp2(s_SQ - logsumexp[at][None, :]), 0.0)
    dv_SK = dv_SK + triton.dot(p_SQ.astype(do_QK.dtype), do_QK)
    dp_SQ = triton.dot(v_SK, do_QK, trans_b=True)
    ds_SQ = p_SQ * (dp_SQ - delta[at][None, :])
    return dk_SK + triton.dot(ds_SQ.astype(q_QK.dtype), q_QK), dv_SK
  zero_SK = jnp.zeros(k_SK.shape, jnp.float32)
  dk_SK, dv_SK = jax.lax.fori_loop(first[...], last[...], step, (zero_SK, zero_SK))
  dk[...] = (dk_SK * scale).astype(dk.dtype)
  dv[...] = dv_SK.astype(dv.dtype)


class Rows:
  """Rows cut into blocks for one kernel: which blocks meet, operands filled up, and how a grid walks over them."""

  def __init__(self, q, k, segment_q, segment_k, blocks: Blocks, interpret: bool):
    self.interpret = interpret
    fits = lambda block, length: max(LEAST, min(block, pl.next_power_of_2(length)))
    self.blocks = dataclasses.replace(blocks, queries=fits(blocks.queries, q.shape[1]),
                                      keys=fits(blocks.keys, k.shape[1]))
    self.batch, _, self.heads, self.head_dim = q.shape
    self.segment_q = _filled(segment_q, self.blocks.queries, 1, NO_QUERY)
    self.segment_k = _filled(segment_k, self.blocks.keys, 1, NO_KEY)
    spans = lambda s, block: (f(s.reshape(self.batch, -1, block), -1) for f in (jnp.min, jnp.max))
    q_least, q_most = spans(self.segment_q, self.blocks.queries)
    k_least, k_most = spans(self.segment_k, self.blocks.keys)
    self.meet = (q_least[:, :, None] <= k_most[:, None]) & (k_least[:, None] <= q_most[:, :, None])

  def queries(self, x_BLNK):
    return _filled(x_BLNK, self.blocks.queries, 1)

  def keys(self, x_BSNK):
    return _filled(x_BSNK, self.blocks.keys, 1)

  def scalars(self, x_BNL):
    """One number a query and head."""
    return _filled(x_BNL, self.blocks.queries, 2)

  def query_shape(self, dtype):
    return jax.ShapeDtypeStruct((*self.segment_q.shape, self.heads, self.head_dim), dtype)

  def key_shape(self, dtype):
    return jax.ShapeDtypeStruct((*self.segment_k.shape, self.heads, self.head_dim), dtype)

  @property
  def scalar_shape(self):
    return jax.ShapeDtypeStruct((self.batch, self.heads, self.segment_q.shape[1]), jnp.float32)

  def over_queries(self, kernel, name, qkv, others, out):
    """Calls kernel(first, last, ids, ids, q, k, v, *others, *out) for every block of queries, head and row."""
    return self._call(kernel, name, self.meet, self.blocks.queries, True, qkv, others, out)

  def over_keys(self, kernel, name, qkv, others, out):
    """The same for every block of keys."""
    return self._call(kernel, name, self.meet.swapaxes(1, 2), self.blocks.keys, False, qkv, others, out)

  def _call(self, kernel, name, meet, block, by_query, qkv, others, out):
    ranges = jnp.argmax(meet, -1), meet.shape[-1] - jnp.argmax(meet[..., ::-1], -1)
    first, last = (jnp.where(meet.any(-1), x, 0).astype(jnp.int32) for x in ranges)
    one = pl.BlockSpec((None, None), lambda i, n, b: (b, i))

    def spec(x, mine):  # a block of what the grid walks over, all of a row of the other
      if x.ndim == 2:
        return pl.BlockSpec((None, block if mine else x.shape[1]), lambda i, n, b: (b, i if mine else 0))
      if x.ndim == 3:
        return pl.BlockSpec((None, None, block if mine else x.shape[2]), lambda i, n, b: (b, n, i if mine else 0))
      return pl.BlockSpec((None, block if mine else x.shape[1], None, self.head_dim),
                          lambda i, n, b: (b, i if mine else 0, n, 0))
    mine = by_query, not by_query, by_query, not by_query, not by_query, *(by_query for _ in others)
    operands = self.segment_q, self.segment_k, *qkv, *others
    return pl.pallas_call(
        kernel, grid=(meet.shape[1], self.heads, self.batch), name=name, interpret=self.interpret, out_shape=list(out),
        in_specs=[one, one, *map(spec, operands, mine)], out_specs=[spec(x, True) for x in out],
        compiler_params=triton.CompilerParams(num_warps=self.blocks.warps, num_stages=self.blocks.stages),
    )(first, last, *operands)


def _filled(x, block: int, dim: int, fill=0):
  """Zeros, or `fill`, up to whole blocks along a dim."""
  widths = [(0, 0)] * x.ndim
  widths[dim] = 0, -x.shape[dim] % block
  return jnp.pad(x, widths, constant_values=fill)
