"""The text encoder: a small bidirectional transformer over sentencepiece ids, trained together with the model.

Several captions stand in one packed row; positions count from each caption's first token, and no caption sees another.
"""
import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from veojax import sharding
from veojax.models import layers, transformer


@dataclasses.dataclass(frozen=True)
class TextConfig:
  vocab_size: int = 1024
  width: int = 128
  depth: int = 2
  num_heads: int = 2
  mlp_width: int = 384


class TextBlock(nnx.Module):

  def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
    self.attention = transformer.SelfAttention(config.width, config.num_heads, rngs=rngs)
    self.mlp = transformer.SwiGLU(config.width, config.mlp_width, rngs=rngs)

  def __call__(self, x_BSD, segment_BS, rotation_BS2k):
    x_BSD = x_BSD + self.attention(layers.rms_norm(x_BSD), segment_BS, rotation_BS2k)
    return x_BSD + self.mlp(layers.rms_norm(x_BSD))


class TextEncoder(nnx.Module):

  def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
    if config.width % (2 * config.num_heads):
      raise ValueError(f'text width {config.width} is not a multiple of 2 x num_heads={config.num_heads}')
    self.config = config
    self.embedding = layers.param(layers.normal(1.0), rngs.params(), (config.vocab_size, config.width))
    self.blocks = transformer.stack(lambda r: TextBlock(config, rngs=r), config.depth, rngs)

  def __call__(self, ids_BS: Int[Array, 'b s'], segment_BS: Int[Array, 'b s'], dtype) -> Float[Array, 'b s d']:
    x_BSD = self.embedding[...].at[ids_BS].get(out_sharding=sharding.in_force(sharding.BLD)).astype(dtype)
    rotation = text_rotation(positions(segment_BS), self.config.width // self.config.num_heads)
    x_BSD = transformer.run(self.blocks, x_BSD, lambda block, x: block(x, segment_BS, rotation), 'none')
    return layers.rms_norm(x_BSD)


def positions(segment_BS: Int[Array, 'b s']) -> Int[Array, 'b s']:
  """Each token's place within its own segment, from 0."""
  index_1S = jnp.arange(segment_BS.shape[1])[None]
  before = jnp.pad(segment_BS, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
  start = jax.lax.cummax(jnp.where(segment_BS != before, index_1S, 0), axis=1)
  return index_1S - start


def text_rotation(position_BS: Int[Array, 'b s'], head_dim: int) -> Float[Array, 'b s 2 k']:
  """Rotary positions over the index of a token (Su et al. 2021, theta 1e4), float32."""
  frequency = 1e4 ** (-jnp.arange(head_dim // 2, dtype=jnp.float32) / (head_dim // 2))
  angle = position_BS[..., None].astype(jnp.float32) * frequency[None, None]
  return jnp.stack([jnp.cos(angle), jnp.sin(angle)], -2)
