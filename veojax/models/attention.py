"""Attention within segments of packed rows.

A token attends to the tokens of its own segment and to nothing else. Padding (segment 0) attends to padding, so that no
row of the softmax is empty; its output is never read.

One function, and one way for each platform: block by block on CPUs (`blocked_attention`, but for short rows), on TPUs
(`splash_attention`) and on NVIDIA's GPUs from Ampere on (`gpu_attention`), elsewhere dense over blocks of queries
(`dense_attention`).

Where the mesh's axis `context` splits the tokens of a row, a token sees the other devices' keys in one of three ways,
which `MeshConfig.attention` names, or `way` chooses:

  all_to_all  tokens are exchanged for heads: each device has whole rows of its share of the heads (Jacobs et al. 2023).
  ring        keys and values go round the devices (`ring_attention`).
  gather      each device gets the keys and values of whole rows, for its own queries.

Over c devices, with u bytes of a device's queries, forward and backward send about 8 u (c - 1) / c by all_to_all,
6 u (c - 1) by gather and 6 u c - 2 u by ring.
"""
import functools

import jax
from jaxtyping import Array, Float, Int

from veojax import sharding
from veojax.models import blocked_attention, dense_attention, gpu_attention, layers, ring_attention, splash_attention

GATHERED = 2 ** 30  # bytes, at most, of what `gather` takes on each device where nobody names the way

DENSE_BELOW = 384   # keys: on CPUs, rows shorter than this take less time whole than in blocks (benchmark_attention.py)


def attention(q_BLNK: Float[Array, 'b l n k'], k_BSNK: Float[Array, 'b s n k'], v_BSNK: Float[Array, 'b s n k'],
              segment_BL: Int[Array, 'b l'], segment_BS: Int[Array, 'b s']) -> Float[Array, 'b l n k']:
  """softmax(q kᵀ / sqrt(K)) v over equal segments, softmax in float32.

  Rows, tokens and heads may be split over the mesh. Raises ValueError where the mesh asks for heads to be exchanged and
  they do not divide.
  """
  operands = (q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS)
  local = functools.partial(jax.lax.platform_dependent, cpu=on_cpu, tpu=splash_attention.attention,
                            cuda=on_nvidia().attention,
                            default=dense_attention.attention)
  if sharding.in_force(sharding.B) is None:
    return local(*operands)
  chosen = way(q_BLNK, k_BSNK)
  if chosen == 'ring':
    local = ring_attention.make(partial, gradients)
  specs = {'all_to_all': (*[sharding.BSMK] * 3, sharding.B, sharding.B),
           'ring': (*[sharding.BLNK] * 3, sharding.BL, sharding.BL),
           'gather': (sharding.BLNK, sharding.BSNK, sharding.BSNK, sharding.BL, sharding.B)}[chosen]
  mapped = jax.shard_map(local, out_specs=specs[0], check_vma=False)
  return layers.reshard(mapped(*map(layers.reshard, operands, specs)), sharding.BLNK)


def on_cpu(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS):
  """Block by block, or dense where rows are short."""
  module = dense_attention if k_BSNK.shape[1] < DENSE_BELOW else blocked_attention
  return module.attention(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS)


def way(q_BLNK, k_BSNK) -> str:
  """How `context` is bridged under the mesh in force: as it says, or 'auto'.

  'auto': all_to_all, which sends least and holds nothing more, where `context` divides the heads of a part of `tensor`.
  Else gather, which sends less than a ring and merges nothing, as long as the keys and values of whole rows, with their
  gradients, stay within GATHERED; else ring, which holds no more for longer rows. Raises ValueError where heads are to
  be exchanged and do not divide.
  """
  asked, context, heads = sharding.attention_way(), sharding.size('context'), q_BLNK.shape[2] // sharding.size('tensor')
  if context == 1:
    return 'gather'  # which has nothing to do
  if asked == 'all_to_all' and heads % context:
    raise ValueError(f"mesh attention='all_to_all', but context={context} does not divide the {heads} heads of a part "
                     "of `tensor`; give 'auto', 'ring' or 'gather'")
  if asked != 'auto':
    return asked
  if heads % context == 0:
    return 'all_to_all'
  gathered = 4 * k_BSNK.size * k_BSNK.dtype.itemsize // (sharding.num_row_parts() * sharding.size('tensor'))
  return 'gather' if gathered <= GATHERED else 'ring'


def partial(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS):
  """(output, logsumexp_BLN float32) over some keys of a row; for queries of whose segment there is none, logsumexp is
  at most `ring_attention.EMPTY` and the output means nothing."""
  return jax.lax.platform_dependent(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS, cpu=blocked_attention.partial,
                                    tpu=splash_attention.partial, cuda=on_nvidia().partial,
                                    default=dense_attention.partial)


def gradients(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS, o_BLNK, logsumexp_BLN, do_BLNK):
  """Gradients by q, k and v of `do` times the output, as far as it comes from these keys; o_BLNK and logsumexp_BLN are
  those over all keys of the row."""
  return jax.lax.platform_dependent(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS, o_BLNK, logsumexp_BLN, do_BLNK,
                                    cpu=blocked_attention.gradients, tpu=splash_attention.gradients,
                                    cuda=on_nvidia().gradients, default=dense_attention.gradients)


def on_nvidia():
  """The module of the way for the GPU that is here, or ahead of time for an H100."""
  return gpu_attention if gpu_attention.runs_here() else dense_attention
