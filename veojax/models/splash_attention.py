"""Attention over packed rows on TPUs: the library's splash kernel, which skips blocks whose segments do not meet.

The kernel takes what it may skip as data (`MaskInfo`), so it is made here from the segment ids of every row: nothing of
the size of L² exists, and one compiled program serves every packing. Within a block that is not skipped the kernel
compares the ids. Backward is the library's fused kernel: five products of a block where two kernels take seven. It
writes dQ once for each of its blocks of keys, which are therefore larger than those of the forward pass; and so many
heads are taken at once as keep these copies within WORKSPACE.

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
WORKSPACE = 2 ** 31  # bytes, about, of the backward pass's copies of dQ
NO_SEGMENT = -1   # the id of what fills up a row to whole blocks


def attention(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS, *, interpret: bool = False):
  """As `models.attention.attention`. `interpret` runs the kernel's Python on any platform, for tests."""
  blocks, operands = _prepare(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS)
  o_BNLK = jax.lax.map(lambda row: _kernel(blocks, *row, interpret=interpret), operands)
  return cut(o_BNLK, q_BLNK)


def partial(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS, *, interpret: bool = False):
  """As `models.attention.partial`."""
  blocks, operands = _prepare(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS)

  def row(operands):
    o_NLK, (logsumexp_NL,) = _kernel(blocks, *operands, interpret=interpret, save_residuals=True)
    return o_NLK, logsumexp_NL
  o_BNLK, logsumexp_BNL = jax.lax.map(row, operands)
  logsumexp_BNL = logsumexp_BNL.reshape(len(q_BLNK), -1, logsumexp_BNL.shape[-1])
  return cut(o_BNLK, q_BLNK), logsumexp_BNL.swapaxes(1, 2)[:, :q_BLNK.shape[1]]


def gradients(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS, o_BLNK, logsumexp_BLN, do_BLNK, *,
              interpret: bool = False):
  """As `models.attention.gradients`.

  The library's differentiation of its kernel knows only softmax over the keys that the kernel saw, so its backward
  kernel is called itself, which no version names as public: the tests run it.
  """
  blocks, operands = _prepare(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS)
  delta_BLN = jnp.sum(o_BLNK.astype(jnp.float32) * do_BLNK.astype(jnp.float32), -1)
  of_queries = [jnp.pad(x, ((0, 0), (0, -x.shape[1] % blocks.block_q), (0, 0))).swapaxes(1, 2)
                for x in (logsumexp_BLN, delta_BLN)]

  def row(operands):
    q_NLK, k_NSK, v_NSK, segment_L, segment_S, do_NLK, logsumexp_NL, delta_NL = operands
    return splash._splash_attention_bwd_dkv(
        q_NLK, k_NSK, v_NSK, splash.SegmentIds(segment_L, segment_S), None, logsumexp_NL, do_NLK, delta_NL,
        bq=blocks.block_q_dkv, bkv=blocks.block_kv_dkv, bkv_compute=blocks.block_kv_dkv_compute, is_mqa=False,
        mask_info=backward_mask(segment_L, segment_S, blocks.block_q_dkv, blocks.block_kv_dkv),
        mask_value=splash.DEFAULT_MASK_VALUE, attn_logits_soft_cap=None, use_fused_bwd_kernel=True,
        q_layout=blocks.q_layout, k_layout=blocks.k_layout, v_layout=blocks.v_layout, mask_function=None,
        interpret=interpret)
  heads = operands[0].shape[1]
  dq, dk, dv = jax.lax.map(row, (*operands, *(some_heads(x, heads) for x in
                                              (filled(do_BLNK, blocks.block_q), *of_queries))))
  return cut(dq, q_BLNK) * q_BLNK.shape[-1] ** -0.5, cut(dk, k_BSNK), cut(dv, v_BSNK)


def _prepare(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS):
  """(sizes of blocks, (q, k, v, segment_BL, segment_BS) as the kernel takes them: queries scaled, all in whole blocks,
  a row's heads as several rows of fewer)."""
  queries, keys = block_size(q_BLNK.shape[1]), block_size(k_BSNK.shape[1])
  q, k, v = (filled(x, block) for x, block in
             ((q_BLNK * q_BLNK.shape[-1] ** -0.5, queries), (k_BSNK, keys), (v_BSNK, keys)))
  segments = [jnp.pad(s, ((0, 0), (0, -s.shape[1] % block)), constant_values=NO_SEGMENT)
              for s, block in ((segment_BL, queries), (segment_BS, keys))]
  merged = keys * divisor(k.shape[2] // keys, MERGED)
  half = keys // math.gcd(2, keys // LANES)  # what the backward pass computes at once
  blocks = splash.BlockSizes(queries, keys, keys, queries, merged, half, use_fused_bwd_kernel=True)
  copies_of_dq = q[0, 0].nbytes * (k.shape[2] // merged)
  heads = divisor(q.shape[1], max(1, WORKSPACE // copies_of_dq))
  groups = q.shape[1] // heads
  return blocks, (*(some_heads(x, heads) for x in (q, k, v)), *(jnp.repeat(s, groups, 0) for s in segments))


def _kernel(blocks, q_NLK, k_NSK, v_NSK, segment_L, segment_S, *, interpret, save_residuals=False):
  kernel = splash.SplashAttentionKernel(
      mask(segment_L, segment_S, blocks.block_q, blocks.block_kv), None,
      backward_mask(segment_L, segment_S, blocks.block_q_dkv, blocks.block_kv_dkv), block_sizes=blocks,
      is_mqa=False, save_residuals=save_residuals, mask_value=splash.DEFAULT_MASK_VALUE, attn_logits_soft_cap=None,
      residual_checkpoint_name=None if save_residuals else layers.ATTENTION_OUTPUT, mask_function=None,
      interpret=interpret)
  return kernel(q_NLK, k_NSK, v_NSK, splash.SegmentIds(segment_L, segment_S))


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


def some_heads(x_BN, heads: int):
  """[B, N, ...] → [B·groups, heads, ...]."""
  return x_BN.reshape(-1, heads, *x_BN.shape[2:])


def cut(x_BNLK, like_BLNK):
  """The inverse of `filled` and `some_heads`."""
  return x_BNLK.reshape(len(like_BLNK), -1, *x_BNLK.shape[2:]).swapaxes(1, 2)[:, :like_BLNK.shape[1], :, :like_BLNK.shape[-1]]


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
