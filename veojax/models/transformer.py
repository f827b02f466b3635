"""The two halves of a transformer block, used by the diffusion transformer and by the text encoder; and how a stack
runs.

No biases. Queries and keys are RMS-normed per head (Dehghani et al. 2023), so logits are bounded by sqrt(K) times the
product of the learned scales. Every layer's parameters carry a leading layer axis; one `lax.scan` runs the stack.
"""
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import ad_checkpoint
from jaxtyping import Array, Float, Int

from veojax import sharding
from veojax.models import attention, layers, rope

Remat = Literal['none', 'dots', 'attention', 'offload', 'full']
BLOCK_INPUT = 'block input'  # what rematerialisation calls it
POLICIES = {
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'attention': jax.checkpoint_policies.save_only_these_names(layers.ATTENTION_OUTPUT),
    'offload': jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=[BLOCK_INPUT, layers.ATTENTION_OUTPUT],
        offload_src='device', offload_dst='pinned_host'),
    'full': None}


class SelfAttention(nnx.Module):

  def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs):
    D, N, K = width, num_heads, width // num_heads
    init = layers.lecun_normal(in_axis=0, out_axis=(1, 2))
    self.w_q, self.w_k, self.w_v = (layers.param(init, rngs.params(), (D, N, K), sharding.D_NK) for _ in 'qkv')
    self.w_out = layers.param(layers.lecun_normal(in_axis=(0, 1), out_axis=2), rngs.params(), (N, K, D), sharding.NK_D)
    self.q_scale, self.k_scale = (layers.param(nnx.initializers.ones, rngs.params(), (K,)) for _ in 'qk')

  def __call__(self, h_BLD: Float[Array, 'b l d'], segment_BL: Int[Array, 'b l'],
               rotation_BL2k: Float[Array, 'b l 2 k']) -> Float[Array, 'b l d']:
    q, k, v = (layers.einsum('bld,dnk->blnk', h_BLD, w[...], sharding.BLNK) for w in (self.w_q, self.w_k, self.w_v))
    q = rope.rotate(layers.rms_norm(q, self.q_scale[...]), rotation_BL2k)
    k = rope.rotate(layers.rms_norm(k, self.k_scale[...]), rotation_BL2k)
    a_BLNK = attention.attention(q, k, v, segment_BL, segment_BL)
    return layers.einsum('blnk,nkd->bld', a_BLNK, self.w_out[...], sharding.BLD)


class SwiGLU(nnx.Module):
  """(silu(x W_gate) * x W_up) W_down (Shazeer 2020)."""

  def __init__(self, width: int, mlp_width: int, *, rngs: nnx.Rngs):
    init = layers.lecun_normal(in_axis=0, out_axis=1)
    self.w_gate, self.w_up = (layers.param(init, rngs.params(), (width, mlp_width), sharding.D_F) for _ in 'gu')
    self.w_down = layers.param(init, rngs.params(), (mlp_width, width), sharding.F_D)

  def __call__(self, h_BLD: Float[Array, 'b l d']) -> Float[Array, 'b l d']:
    gate = layers.einsum('bld,df->blf', h_BLD, self.w_gate[...], sharding.BLF)
    up = layers.einsum('bld,df->blf', h_BLD, self.w_up[...], sharding.BLF)
    return layers.einsum('blf,fd->bld', jax.nn.silu(gate) * up, self.w_down[...], sharding.BLD)


def stack(make_block, depth: int, rngs: nnx.Rngs):
  """`depth` blocks as one, whose parameters carry a leading layer axis. Initialised one by one, so that a block's
  initialisers may name its own layout."""
  blocks = [make_block(rngs) for _ in range(depth)]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


def run(blocks, x, apply, remat: Remat):
  """x → apply(block, x) for each block of a stack, by one scan.

  remat says what is kept for the backward pass, which makes all else again: 'none' remakes nothing; 'full' keeps only
  the blocks' inputs; 'attention' also attention's outputs, the dearest to make again in long rows; 'offload' keeps
  these two in the host's memory, which on a CPU is the same memory; 'dots' the results of products with parameters.
  """
  def layer(x, block):
    return apply(block, ad_checkpoint.checkpoint_name(x, BLOCK_INPUT)), None
  if remat != 'none':
    layer = jax.checkpoint(layer, policy=POLICIES[remat])
  return jax.lax.scan(layer, x, blocks)[0]
