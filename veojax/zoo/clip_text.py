"""CLIP's text tower (Radford et al. 2021, `CLIPTextModel`): a causal transformer with learned positions and pre-norms.

A token sees itself and what is before it, so padding after a text changes nothing of the text; as published, padding is
no different from text, and whoever reads all tokens reads it too. Projections have biases. The pooled vector is that of
the first end token (of the highest id, where config.json names 2, as the first published files do).

Keys of the published files begin with `text_model.`, those of newer ones do not.
"""
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from veojax import processes, sharding
from veojax.models import conv, layers, transformer
from veojax.zoo.clip_tokenizer import ClipTokenizer
from veojax.zoo.published import Part
from veojax.zoo.transforms import FLAT, LINEAR, LINEAR_FROM_HEADS
from veojax.zoo.weight_table import Rule, drop

# Fields of config.json that do not change what the tower computes.
IGNORED = frozenset((
    'architectures', 'attention_dropout', 'bos_token_id', 'dropout', 'dtype', 'initializer_factor', 'initializer_range',
    'pad_token_id', 'projection_dim', 'torch_dtype', 'transformers_version'))

ACTIVATIONS = {'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),
               'gelu': functools.partial(jax.nn.gelu, approximate=False)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
  """What both towers have of config.json, under the names there."""
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  hidden_act: Literal['quick_gelu', 'gelu'] = 'quick_gelu'
  layer_norm_eps: float = 1e-5

  def __post_init__(self):
    if self.hidden_size % self.num_attention_heads:
      raise ValueError(f'hidden_size={self.hidden_size} is no multiple of num_attention_heads='
                       f'{self.num_attention_heads}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig(ClipConfig):
  """The fields of config.json that matter."""
  model_type: Literal['clip_text_model']
  vocab_size: int = 49408
  max_position_embeddings: int = 77
  eos_token_id: int = 49407


class LayerNorm(nnx.Module):
  """Mean and variance of the last dim, in float32."""

  def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs):
    self.eps = eps
    self.scale = layers.param(nnx.initializers.ones, rngs.params(), (width,))
    self.bias = layers.param(layers.zeros, rngs.params(), (width,))

  def __call__(self, x: Float[Array, 'b s d']) -> Float[Array, 'b s d']:
    x32 = x.astype(jnp.float32)
    x32 = x32 - jnp.mean(x32, -1, keepdims=True)
    y = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + self.eps)
    return conv.add_bias(y * self.scale[...].astype(jnp.float32)[None, None], self.bias[...]).astype(x.dtype)


class CausalAttention(nnx.Module):

  def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
    D, N = config.hidden_size, config.num_attention_heads
    K, init = D // N, layers.lecun_normal(in_axis=0, out_axis=(1, 2))
    self.w_q, self.w_k, self.w_v = (layers.param(init, rngs.params(), (D, N, K), sharding.D_NK) for _ in 'qkv')
    self.b_q, self.b_k, self.b_v = (layers.param(layers.zeros, rngs.params(), (N, K)) for _ in 'qkv')
    self.w_out = layers.param(layers.lecun_normal(in_axis=(0, 1), out_axis=2), rngs.params(), (N, K, D), sharding.NK_D)
    self.b_out = layers.param(layers.zeros, rngs.params(), (D,))

  def __call__(self, h_BSD: Float[Array, 'b s d']) -> Float[Array, 'b s d']:
    q, k, v = (layers.einsum('bsd,dnk->bsnk', h_BSD, w[...], sharding.BSNK) + b[...].astype(h_BSD.dtype)[None, None]
               for w, b in ((self.w_q, self.b_q), (self.w_k, self.b_k), (self.w_v, self.b_v)))
    logits_BNSS = jnp.einsum('bsnk,btnk->bnst', q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    before_SS = np.tri(q.shape[1], dtype=bool)
    weights_BNSS = jax.nn.softmax(jnp.where(before_SS[None, None], logits_BNSS, -1e30), -1).astype(v.dtype)
    a_BSNK = jnp.einsum('bnst,btnk->bsnk', weights_BNSS, v)
    return conv.add_bias(layers.einsum('bsnk,nkd->bsd', a_BSNK, self.w_out[...], sharding.B), self.b_out[...])


class Block(nnx.Module):

  def __init__(self, config: ClipConfig, *, rngs: nnx.Rngs):
    D, F, init = config.hidden_size, config.intermediate_size, layers.lecun_normal()
    self.act = config.hidden_act
    self.attention_norm, self.mlp_norm = (LayerNorm(D, config.layer_norm_eps, rngs=rngs) for _ in range(2))
    self.attention = CausalAttention(config, rngs=rngs)
    self.w_up = layers.param(init, rngs.params(), (D, F), sharding.D_F)
    self.b_up = layers.param(layers.zeros, rngs.params(), (F,))
    self.w_down = layers.param(init, rngs.params(), (F, D), sharding.F_D)
    self.b_down = layers.param(layers.zeros, rngs.params(), (D,))

  def __call__(self, x_BSD: Float[Array, 'b s d']) -> Float[Array, 'b s d']:
    x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD))
    up_BSF = layers.einsum('bsd,df->bsf', self.mlp_norm(x_BSD), self.w_up[...], sharding.BSF)
    h_BSF = ACTIVATIONS[self.act](conv.add_bias(up_BSF, self.b_up[...]))
    return x_BSD + conv.add_bias(layers.einsum('bsf,fd->bsd', h_BSF, self.w_down[...], sharding.B), self.b_down[...])


class ClipText(nnx.Module):

  def __init__(self, config: ClipTextConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.embedding = layers.param(layers.normal(0.02), rngs.params(), (config.vocab_size, config.hidden_size))
    self.position = layers.param(layers.normal(0.01), rngs.params(),
                                 (config.max_position_embeddings, config.hidden_size))
    self.blocks = transformer.stack(lambda r: Block(config, rngs=r), config.num_hidden_layers, rngs)
    self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps, rngs=rngs)

  def __call__(self, ids_BS: Int[Array, 'b s'], dtype='float32') -> tuple[Float[Array, 'b s d'], Float[Array, 'b d']]:
    """(features of all tokens after the last norm, the pooled vector), in `dtype`."""
    spec = sharding.in_force(sharding.B)
    x_BSD = self.embedding[...].at[ids_BS].get(out_sharding=spec).astype(dtype)
    x_BSD = x_BSD + self.position[...][:ids_BS.shape[1]].astype(dtype)[None]
    x_BSD = self.norm(transformer.run(self.blocks, x_BSD, lambda block, x: block(x), 'none'))
    end_B = jnp.argmax(ids_BS if self.config.eos_token_id == 2 else ids_BS == self.config.eos_token_id, 1)
    at_end_BS = jnp.arange(ids_BS.shape[1])[None] == end_B[:, None]
    return x_BSD, jnp.einsum('bs,bsd->bd', at_end_BS.astype(x_BSD.dtype), x_BSD)


def block_rules(source: str) -> list[Rule]:
  """Of the stack of blocks of either tower, whose layers are published as `source`."""
  linear = lambda name, target, shape, bias: [
      Rule(f'{source}.{name}.weight', f'blocks.{target.format("w")}', shape),
      Rule(f'{source}.{name}.bias', f'blocks.{target.format("b")}', bias)]
  norm = lambda name, target: [Rule(f'{source}.{name}.weight', f'blocks.{target}.scale'),
                               Rule(f'{source}.{name}.bias', f'blocks.{target}.bias')]
  return [*norm('layer_norm1', 'attention_norm'), *norm('layer_norm2', 'mlp_norm'),
          Rule(f'{source}.self_attn.{{part:[qkv]}}_proj.weight', 'blocks.attention.w_{part}', LINEAR),
          Rule(f'{source}.self_attn.{{part:[qkv]}}_proj.bias', 'blocks.attention.b_{part}', FLAT),
          *linear('self_attn.out_proj', 'attention.{}_out', LINEAR_FROM_HEADS, FLAT),
          *linear('mlp.fc1', '{}_up', LINEAR, FLAT), *linear('mlp.fc2', '{}_down', LINEAR, FLAT)]


def table(config: ClipTextConfig) -> Sequence[Rule]:
  rules = []
  for prefix in ('text_model.', ''):
    rules += [
        *block_rules(f'{prefix}encoder.layers.{{layer}}'),
        Rule(f'{prefix}embeddings.token_embedding.weight', 'embedding'),
        Rule(f'{prefix}embeddings.position_embedding.weight', 'position'),
        drop(f'{prefix}embeddings.position_ids', 'they count up'),
        Rule(f'{prefix}final_layer_norm.weight', 'norm.scale'), Rule(f'{prefix}final_layer_norm.bias', 'norm.bias')]
  return rules


# What stands beside this tower in the files of both.
BESIDE = drop('vision_model.{rest:.+}', 'of the tower of pictures'), *(
    drop(name, 'features of the tokens are not projected') for name in (
        'text_projection.weight', 'visual_projection.weight', 'logit_scale'))


def config_of_both(tree: Mapping[str, Any], path) -> ClipTextConfig:
  """Of the text tower in the config.json of both (`CLIPModel`), which in the first published files lists all that the
  library knows, and in newer ones leaves out what is the library's default."""
  default = {'model_type': 'clip_text_model', 'hidden_size': 512, 'intermediate_size': 2048, 'num_hidden_layers': 12,
             'num_attention_heads': 8}
  names = {field.name for field in dataclasses.fields(ClipTextConfig)}
  given = {name: value for name, value in (tree.get('text_config') or {}).items() if name in names}
  return PART.build({**default, **given}, f'text_config of {path}')


PART = Part('CLIPTextModel', ClipTextConfig, lambda config, rngs: ClipText(config, rngs=rngs), table, IGNORED)


@functools.partial(jax.jit, static_argnums=2)
def _encode(tower: ClipText, ids_BS, dtype: str):
  return tower(ids_BS, dtype)[0].astype(jnp.float32)


def encode(tower: ClipText, tokenizer: ClipTokenizer, texts: Sequence[str], dtype: str) -> np.ndarray:
  """Features float32[B, max_length, D] of all tokens, padding among them, computed in `dtype`."""
  if tokenizer.max_length > tower.config.max_position_embeddings or tokenizer.vocab_size > tower.config.vocab_size:
    raise ValueError(f'the tokenizer has {tokenizer.vocab_size} tokens in rows of {tokenizer.max_length}, the tower '
                     f'{tower.config.vocab_size} in rows of {tower.config.max_position_embeddings}; give the tokenizer '
                     'that belongs to these weights')
  ids_BS = sharding.fill_rows(tokenizer.rows(texts))
  return processes.fetch(_encode(tower, ids_BS, dtype))[:len(texts)]
