"""Attention over packed rows on TPUs: the library's splash kernel, which skips blocks whose segments do not meet.

The kernel takes what it may skip as data (`MaskInfo`), so it is made here from the segment ids of every row: nothing of
the size of L² exists, and one compiled program serves every packing. Within a block that is not skipped the kernel
compares the ids. Backward is the library's fused kernel: five products of a block where two kernels take seven. It
writes dQ once for each of its blocks of keys, which are therefore larger than those of the forward pass.

Output and logsumexp carry the name `layers.ATTENTION_OUTPUT`, so that rematerialisation can keep them.
"""
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info

from veojax.models import layers

LANES = 128       # head dims and blocks are multiples of it
BLOCK = 1024      # queries or keys, at most
MERGED = 2        # blocks of keys, at most, that the backward pass takes as one: more overflow VMEM
NO_SEGMENT = -1   # the id of what fills up a row to whole blocks


def attention(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS, *, interpret: bool = False):
  """As `models.attention.attention`. `interpret` runs the kernel's Python on any platform, for tests."""
  head_dim = q_BLNK.shape[-1]
  queries, keys = block_size(q_BLNK.shape[1]), block_size(k_BSNK.shape[1])
  q, k, v = (filled(x, block) for x, block in ((q_BLNK * head_dim ** -0.5, queries), (k_BSNK, keys), (v_BSNK, keys)))
  segment_q, segment_k = (jnp.pad(s, ((0, 0), (0, -s.shape[1] % block)), constant_values=NO_SEGMENT)
                          for s, block in ((segment_BL, queries), (segment_BS, keys)))
  merged = keys * divisor(k.shape[2] // keys, MERGED)
  half = keys // math.gcd(2, keys // LANES)  # what the backward pass computes at once

  def row(operands):
    q_NLK, k_NSK, v_NSK, segment_L, segment_S = operands
    kernel = splash.SplashAttentionKernel(
        mask(segment_L, segment_S, queries, keys), None, backward_mask(segment_L, segment_S, queries, merged),
        block_sizes=splash.BlockSizes(queries, keys, keys, queries, merged, half, use_fused_bwd_kernel=True),
        is_mqa=False, save_residuals=False, mask_value=splash.DEFAULT_MASK_VALUE, attn_logits_soft_cap=None,
        residual_checkpoint_name=layers.ATTENTION_OUTPUT, mask_function=None, interpret=interpret)
    return kernel(q_NLK, k_NSK, v_NSK, splash.SegmentIds(segment_L, segment_S))
  o_BNLK = jax.lax.map(row, (q, k, v, segment_q, segment_k))
  return o_BNLK.swapaxes(1, 2)[:, :q_BLNK.shape[1], :, :head_dim]


def block_size(length: int) -> int:
  """Tokens of a block: rows are cut into as few equal ones as BLOCK allows."""
  return LANES * math.ceil(length / math.ceil(length / BLOCK) / LANES)


def divisor(number: int, most: int) -> int:
  """The largest divisor of `number` up to `most`."""
  return max(d for d in range(1, most + 1) if number % d == 0)


def filled(x_BLNK, block: int):
  """[B, L, N, K] → [B, N, L, K], zeros up to whole blocks and lanes: they change no product."""
  _, length, _, head_dim = x_BLNK.shape
  return jnp.pad(x_BLNK, ((0, 0), (0, -length % block), (0, 0), (0, -head_dim % LANES))).swapaxes(1, 2)


def meetings(segment_L, segment_S, queries: int, keys: int):
  """bool[q, s]: whether the ranges of ids of a block of queries and of a block of keys overlap."""
  q, k = segment_L.reshape(-1, queries), segment_S.reshape(-1, keys)
  return (q.min(-1)[:, None] <= k.max(-1)[None]) & (k.min(-1)[None] <= q.max(-1)[:, None])


def fetched(meet):
  """For each step of a walk over `meet` by rows the column to fetch: where nothing meets that of the next step at which
  something does, so that it is there in time and fetched once."""
  step = jnp.arange(meet.size)
  following = jax.lax.cummin(jnp.where(meet.reshape(-1), step, meet.size), reverse=True)
  following = jnp.where(following == meet.size, jnp.argmax(meet), following)  # the next head's first
  return (following % meet.shape[1]).reshape(meet.shape)


def mask(segment_L, segment_S, queries, keys) -> mask_info.MaskInfo:
  """For each block of queries the blocks of keys; one for all heads."""
  meet = meetings(segment_L, segment_S, queries, keys)
  return _mask_info(meet, fetched(meet))


def backward_mask(segment_L, segment_S, queries, keys) -> mask_info.MaskInfo:
  """For each block of keys the blocks of queries, in the layout [q, s] all the same."""
  meet = meetings(segment_L, segment_S, queries, keys)
  return _mask_info(meet, fetched(meet.T).T)


def _mask_info(meet, fetch):
  return mask_info.MaskInfo(data_next=fetch[None].astype(jnp.int32), mask_next=None,
                            block_mask=meet[None].astype(jnp.int32), partial_mask_blocks=None, q_sequence=None)
