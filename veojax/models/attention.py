"""Attention within segments of packed rows.

A token attends to the tokens of its own segment and to nothing else. Padding (segment 0) attends to padding, so that no
row of the softmax is empty; its output is never read.

One function, and one way for each platform: block by block on CPUs (`blocked_attention`) and on TPUs
(`splash_attention`), elsewhere dense over blocks of queries.
"""
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from veojax import sharding
from veojax.models import blocked_attention, layers, splash_attention

QUERY_BLOCK = 1024  # above this many queries the scores are made block by block: memory grows with L, not L²


def attention(q_BLNK: Float[Array, 'b l n k'], k_BSNK: Float[Array, 'b s n k'], v_BSNK: Float[Array, 'b s n k'],
              segment_BL: Int[Array, 'b l'], segment_BS: Int[Array, 'b s']) -> Float[Array, 'b l n k']:
  """softmax(q kᵀ / sqrt(K)) v over equal segments, softmax in float32.

  Rows, queries and heads may be split over the mesh; each query needs every key of its row.
  """
  operands = (q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS)
  local = functools.partial(jax.lax.platform_dependent, cpu=blocked_attention.attention,
                            tpu=splash_attention.attention, default=dense)
  if sharding.in_force(sharding.B) is None:
    return local(*operands)
  # Keys and values are gathered over `context`, queries stay split.
  specs = (sharding.BLNK, sharding.BSNK, sharding.BSNK, sharding.BL, sharding.B)
  return jax.shard_map(local, out_specs=sharding.BLNK, check_vma=False)(*map(layers.reshard, operands, specs))


def dense(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS):
  """Every query against every key, a block of queries at a time."""
  B, L, N, K = q_BLNK.shape
  if L <= QUERY_BLOCK or L % QUERY_BLOCK:
    return _dense(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS)
  blocks = L // QUERY_BLOCK
  q = jnp.moveaxis(q_BLNK.reshape(B, blocks, QUERY_BLOCK, N, K), 1, 0)
  segment = jnp.moveaxis(segment_BL.reshape(B, blocks, QUERY_BLOCK), 1, 0)
  # Recomputing a block's scores in the backward pass is what keeps them from being stored for all blocks at once.
  block = jax.checkpoint(lambda qs: _dense(qs[0], k_BSNK, v_BSNK, qs[1], segment_BS))
  return jnp.moveaxis(jax.lax.map(block, (q, segment)), 0, 1).reshape(B, L, N, K)


def _dense(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS):
  scores = jnp.einsum('blnk,bsnk->bnls', q_BLNK, k_BSNK, preferred_element_type=jnp.float32)
  scores = scores * q_BLNK.shape[-1] ** -0.5
  same = (segment_BL[:, :, None] == segment_BS[:, None, :])[:, None]
  weights = jax.nn.softmax(jnp.where(same, scores, -1e30), -1).astype(v_BSNK.dtype)
  return jnp.einsum('bnls,bsnk->blnk', weights, v_BSNK)
