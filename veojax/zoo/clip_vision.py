"""CLIP's image tower (Radford et al. 2021, `CLIPVisionModelWithProjection`): a transformer over the patches of a picture
and a token of its own for the whole, whose last state, normed and projected, is the picture's vector.

Pictures are `image_size` a side, normalised per channel as the published folder's preprocessor_config.json says.
"""
import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from veojax import sharding
from veojax.models import attention, conv, layers, transformer
from veojax.zoo import clip_text
from veojax.zoo.clip_text import CausalAttention, ClipConfig, LayerNorm
from veojax.zoo.published import Part
from veojax.zoo.transforms import LINEAR, patch
from veojax.zoo.weight_table import Rule, drop

# Fields of config.json that do not change what the tower computes.
IGNORED = frozenset((
    '_name_or_path', 'architectures', 'attention_dropout', 'dropout', 'dtype', 'initializer_factor',
    'initializer_range', 'torch_dtype', 'transformers_version'))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipVisionConfig(ClipConfig):
  """The fields of config.json that matter."""
  model_type: Literal['clip_vision_model']
  projection_dim: int
  image_size: int = 224
  patch_size: int = 32
  num_channels: Literal[3] = 3

  def __post_init__(self):
    super().__post_init__()
    if self.image_size % self.patch_size:
      raise ValueError(f'image_size={self.image_size} is no multiple of patch_size={self.patch_size}')


class Attention(CausalAttention):
  """Every token looks at every other."""

  def __call__(self, h_BSD: Float[Array, 'b s d']) -> Float[Array, 'b s d']:
    q, k, v = (layers.einsum('bsd,dnk->bsnk', h_BSD, w[...], sharding.BSNK) + b[...].astype(h_BSD.dtype)[None, None]
               for w, b in ((self.w_q, self.b_q), (self.w_k, self.b_k), (self.w_v, self.b_v)))
    # Tokens are filled up to what `context` divides.
    S, fill = h_BSD.shape[1], -h_BSD.shape[1] % sharding.size('context')
    q, k, v = (jnp.pad(x, ((0, 0), (0, fill), (0, 0), (0, 0))) for x in (q, k, v))
    segment_BS = jnp.asarray(np.broadcast_to(np.arange(S + fill) < S, q.shape[:2]).astype(np.int32))
    a_BSNK = attention.attention(q, k, v, layers.reshard(segment_BS, sharding.BL),
                                 layers.reshard(segment_BS, sharding.B))
    a_BSNK = layers.reshard(a_BSNK, sharding.BSNK)[:, :S]
    return conv.add_bias(layers.einsum('bsnk,nkd->bsd', a_BSNK, self.w_out[...], sharding.B), self.b_out[...])


class Block(clip_text.Block):

  def __init__(self, config: ClipVisionConfig, *, rngs: nnx.Rngs):
    super().__init__(config, rngs=rngs)
    self.attention = Attention(config, rngs=rngs)


class ClipVision(nnx.Module):

  def __init__(self, config: ClipVisionConfig, *, rngs: nnx.Rngs):
    self.config = config
    D, p = config.hidden_size, config.patch_size
    self.patch = layers.param(layers.lecun_normal(), rngs.params(), (p * p * config.num_channels, D), sharding.C_D)
    self.whole = layers.param(layers.normal(0.02), rngs.params(), (D,))
    self.position = layers.param(layers.normal(0.02), rngs.params(), ((config.image_size // p) ** 2 + 1, D))
    self.norm_in, self.norm_out = (LayerNorm(D, config.layer_norm_eps, rngs=rngs) for _ in range(2))
    self.blocks = transformer.stack(lambda r: Block(config, rngs=r), config.num_hidden_layers, rngs)
    self.project = layers.param(layers.lecun_normal(), rngs.params(), (D, config.projection_dim), sharding.D_C)

  def __call__(self, picture_BHWC: Float[Array, 'b h w 3'], dtype='float32') -> Float[Array, 'b e']:
    """The vector of each picture, in `dtype`."""
    config, p = self.config, self.config.patch_size
    B, n = len(picture_BHWC), config.image_size // p
    rows = sharding.in_force(sharding.B)
    x = jnp.reshape(picture_BHWC, (B, n, p, n, p, 3), out_sharding=rows).transpose(0, 1, 3, 2, 4, 5)
    x = jnp.reshape(x, (B, n * n, p * p * 3), out_sharding=rows).astype(dtype)
    x_BSD = layers.einsum('bsc,cd->bsd', x, self.patch[...], sharding.B)
    whole_B1D = jnp.broadcast_to(self.whole[...].astype(dtype), (B, 1, config.hidden_size))
    x_BSD = jnp.concatenate([layers.reshard(whole_B1D, sharding.B), x_BSD], 1) + self.position[...].astype(dtype)[None]
    x_BSD = transformer.run(self.blocks, self.norm_in(x_BSD), lambda block, x: block(x), 'none')
    return layers.einsum('bsd,de->bse', self.norm_out(x_BSD[:, :1]), self.project[...], sharding.B)[:, 0]


def table(config: ClipVisionConfig) -> Sequence[Rule]:
  norm = lambda source, target: [Rule(f'{source}.weight', f'{target}.scale'), Rule(f'{source}.bias', f'{target}.bias')]
  p = config.patch_size
  return [*clip_text.block_rules('vision_model.encoder.layers.{layer}'),
          Rule('vision_model.embeddings.class_embedding', 'whole'),
          Rule('vision_model.embeddings.patch_embedding.weight', 'patch', patch(p, p)),
          Rule('vision_model.embeddings.position_embedding.weight', 'position'),
          drop('vision_model.embeddings.position_ids', 'they count up'),
          *norm('vision_model.pre_layrnorm', 'norm_in'), *norm('vision_model.post_layernorm', 'norm_out'),
          Rule('visual_projection.weight', 'project', LINEAR)]


PART = Part('CLIPVisionModelWithProjection', ClipVisionConfig, lambda config, rngs: ClipVision(config, rngs=rngs),
            table, IGNORED)
