"""Attention over packed rows that computes only the blocks of scores whose segments meet, for CPUs.

Softmax over blocks of keys with a running maximum and sum (Milakov & Gimelshein 2018); the backward pass makes each
block's scores again (Dao et al. 2022, algorithm 4), so that nothing of the size of L² is stored.

A block of queries and a block of keys meet where their ranges of segment ids overlap. The blocks of queries of all rows
are sorted by how many blocks of keys they meet and taken in groups of about equal work; a group takes as many steps as
its first block has keys to meet, each step one block of keys for every block of queries. So the cost is that of the
segments, for any packing, while a step is a batch of products large enough for the machine.

Dims, beside the legend of types.py: g blocks of a group, q and s the queries and keys of a block.
"""
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import ad_checkpoint

from veojax.models import layers

BLOCK = 96             # about so many queries or keys: the scores of a group stay in the cache
HEADS_AT_ONCE = 12     # block × head pairs of a step
EMPTY = -1e30
NO_QUERY, NO_KEY = -1, -2  # segment ids of what fills up a row to whole blocks: they meet nobody


@jax.custom_vjp
def attention(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS):
  """As `models.attention.attention`."""
  return _forward(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS)[0]


def partial(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS):
  """As `models.attention.partial`."""
  plan = Plan(q_BLNK, k_BSNK, segment_BL, segment_BS)
  return tuple(map(plan.rows, _outputs(plan, q_BLNK, k_BSNK, v_BSNK)))


def gradients(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS, o_BLNK, logsumexp_BLN, do_BLNK):
  """As `models.attention.gradients`."""
  plan = Plan(q_BLNK, k_BSNK, segment_BL, segment_BS)
  outputs = map(plan.query_groups, (o_BLNK, logsumexp_BLN))
  return _backward((q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS, *outputs), do_BLNK)[:3]


def _outputs(plan, q_BLNK, k_BSNK, v_BSNK):
  """Output and logsumexp of each group."""
  k, v = plan.key_blocks(k_BSNK), plan.key_blocks(v_BSNK)

  def group(operands):
    q, segment, meets, count = operands

    def step(j, carry):
      o, maximum, total = carry
      k_j, v_j = k[meets[:, j]], v[meets[:, j]]
      same = plan.same(segment, meets, j, count)
      scores = jnp.where(same, jnp.einsum('gnqk,gnsk->gnqs', q, k_j, preferred_element_type=jnp.float32), EMPTY)
      above = jnp.maximum(maximum, scores.max(-1))
      p, decay = jnp.exp(scores - above[..., None]), jnp.exp(maximum - above)
      o_j = jnp.einsum('gnqs,gnsk->gnqk', p.astype(v_j.dtype), v_j, preferred_element_type=jnp.float32)
      return o * decay[..., None] + o_j, above, total * decay + p.sum(-1)
    zero = jnp.zeros(q.shape[:3], jnp.float32)
    start = jnp.zeros(q.shape, jnp.float32), zero + EMPTY, zero
    o, maximum, total = jax.lax.fori_loop(0, count[0], step, start)
    return (o / total[..., None]).astype(q.dtype), maximum + jnp.log(total)
  operands = plan.query_groups(q_BLNK * q_BLNK.shape[-1] ** -0.5), plan.segment, plan.meets, plan.count
  return jax.lax.map(group, operands)


def _forward(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS):
  plan = Plan(q_BLNK, k_BSNK, segment_BL, segment_BS)
  o, logsumexp = (ad_checkpoint.checkpoint_name(x, layers.ATTENTION_OUTPUT)
                  for x in _outputs(plan, q_BLNK, k_BSNK, v_BSNK))
  return plan.rows(o), (q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS, o, logsumexp)


def _backward(residuals, do_BLNK):
  q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS, o, logsumexp = residuals
  plan = Plan(q_BLNK, k_BSNK, segment_BL, segment_BS)
  k, v, scale = plan.key_blocks(k_BSNK), plan.key_blocks(v_BSNK), q_BLNK.shape[-1] ** -0.5
  do = plan.query_groups(do_BLNK)
  delta = jnp.sum(do.astype(jnp.float32) * o.astype(jnp.float32), -1)

  def group(carry, operands):
    q, do, delta, logsumexp, segment, meets, count = operands
    product = lambda subscripts, a, b: jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)

    def step(j, carry):  # scores transposed, so that two of three products with them take them as they lie
      dq, dk, dv = carry
      index = meets[:, j]
      k_j, v_j = k[index], v[index]
      same = plan.same(segment, meets, j, count).swapaxes(-1, -2)
      p = jnp.where(same, jnp.exp(product('gnsk,gnqk->gnsq', k_j, q) - logsumexp[:, :, None]), 0)
      dp = product('gnsk,gnqk->gnsq', v_j, do)
      ds = (p * (dp - delta[:, :, None])).astype(q.dtype)
      dq = dq + product('gnsq,gnsk->gnqk', ds, k_j)
      dk = dk.at[index].add(product('gnsq,gnqk->gnsk', ds, q))
      return dq, dk, dv.at[index].add(product('gnsq,gnqk->gnsk', p.astype(q.dtype), do))
    dq, dk, dv = jax.lax.fori_loop(0, count[0], step, (jnp.zeros(q.shape, jnp.float32), *carry))
    return (dk, dv), dq
  zeros = jnp.zeros(k.shape, jnp.float32)
  operands = plan.query_groups(q_BLNK * scale), do, delta, logsumexp, plan.segment, plan.meets, plan.count
  (dk, dv), dq = jax.lax.scan(group, (zeros, zeros), operands)
  dk, dv = (plan.key_rows(d).astype(k_BSNK.dtype) for d in (dk, dv))
  return (plan.rows(dq) * scale).astype(q_BLNK.dtype), dk, dv, None, None


attention.defvjp(_forward, _backward)


class Plan:
  """Which blocks of queries meet which blocks of keys, and in what groups.

  segment[group, g, q], meets[group, g, j]: the j-th block of keys to meet; count[group, g]: how many there are.
  """

  def __init__(self, q_BLNK, k_BSNK, segment_BL, segment_BS):
    self.batch, self.num_queries, heads = q_BLNK.shape[:3]
    self.num_keys = k_BSNK.shape[1]
    queries = _blocks(segment_BL, NO_QUERY)
    self.key_segment = _blocks(segment_BS, NO_KEY)
    q_blocks, k_blocks = (s.shape[0] // self.batch for s in (queries, self.key_segment))
    spans = lambda s, n: (s.min(-1).reshape(self.batch, n), s.max(-1).reshape(self.batch, n))
    (q_least, q_most), (k_least, k_most) = spans(queries, q_blocks), spans(self.key_segment, k_blocks)
    meet = (q_least[:, :, None] <= k_most[:, None]) & (k_least[:, None] <= q_most[:, :, None])
    meets = jnp.argsort(~meet, -1) + k_blocks * jnp.arange(self.batch)[:, None, None]
    count = meet.sum(-1).reshape(-1)
    self.order = jnp.argsort(-count)
    self.group = math.gcd(count.size, 2 ** int(np.log2(max(1, HEADS_AT_ONCE // heads))))
    self.segment, self.meets, self.count = (
        self._groups(a) for a in (queries, meets.reshape(-1, k_blocks), count))

  def _groups(self, blocks):
    return blocks[self.order].reshape(-1, self.group, *blocks.shape[1:])

  def query_groups(self, q_BLNK):
    """[B, L, N, K] → [group, g, N, q, K]."""
    return self._groups(_blocks(q_BLNK, 0).swapaxes(1, 2))

  def key_blocks(self, k_BSNK):
    """[B, S, N, K] → [block, N, s, K]."""
    return _blocks(k_BSNK, 0).swapaxes(1, 2)

  def rows(self, groups):
    """The inverse of query_groups, and for [group, g, N, q] → [B, L, N]."""
    blocks = groups.reshape(-1, *groups.shape[2:])[jnp.argsort(self.order)]
    return _unblocks(blocks.swapaxes(1, 2), self.batch, self.num_queries)

  def key_rows(self, blocks):
    """The inverse of key_blocks."""
    return _unblocks(blocks.swapaxes(1, 2), self.batch, self.num_keys)

  def same(self, segment, meets, j, count):
    """bool[g, 1, q, s]: pairs of one segment in step j of a group; none where a block has met all its keys."""
    same = segment[:, :, None] == self.key_segment[meets[:, j]][:, None]
    return (same & (j < count)[:, None, None])[:, None]


def _blocks(x, fill):
  """[B, L, ...] → [B·blocks, block, ...], rows filled up to whole blocks."""
  B, L = x.shape[:2]
  blocks = math.ceil(L / BLOCK)
  block = 8 * math.ceil(L / blocks / 8)
  x = jnp.pad(x, ((0, 0), (0, blocks * block - L), *((0, 0),) * (x.ndim - 2)), constant_values=fill)
  return x.reshape(B * blocks, block, *x.shape[2:])


def _unblocks(x, batch, length):
  return x.reshape(batch, -1, *x.shape[2:])[:, :length]
