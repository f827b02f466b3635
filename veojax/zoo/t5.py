"""T5 v1.1 and UMT5 text encoders (Raffel et al. 2020; Shazeer 2020; Chung et al. 2023), from their published folders.

Logits are not divided by sqrt(K), and positions enter only as a bias on them, by the bucket of the distance from query
to key: T5 has one table of biases for all layers, UMT5 one per layer. No other biases; norms are RMS norms; the MLP is
gated by a tanh GELU.

A folder holds config.json, weights in safetensors and spiece.model, as transformers writes it. Rows are padded to
`max_length`. No token sees padding; what stands at padded places is not meaningful, and the mask says which they are.
"""
import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from veojax import config as door
from veojax import processes, sharding
from veojax.data.tokenizer import Tokenizer
from veojax.models import layers, transformer, weights
from veojax.zoo import weight_table
from veojax.zoo.published import Part
from veojax.zoo.transforms import LINEAR, LINEAR_FROM_HEADS
from veojax.zoo.weight_table import Rule, drop

# Fields of config.json that do not change what the encoder computes.
IGNORED = frozenset((
    '_name_or_path', 'architectures', 'bos_token_id', 'classifier_dropout', 'decoder_start_token_id', 'dense_act_fn',
    'dropout_rate', 'dtype', 'eos_token_id', 'gradient_checkpointing', 'initializer_factor', 'is_decoder',
    'is_encoder_decoder', 'is_gated_act', 'n_positions', 'num_decoder_layers', 'output_past', 'pad_token_id',
    'scalable_attention', 'scale_decoder_outputs', 'task_specific_params', 'tie_word_embeddings', 'tokenizer_class',
    'torch_dtype', 'transformers_version', 'use_cache'))


@dataclasses.dataclass(frozen=True)
class T5Config:
  """The fields of config.json that matter, under their names there."""
  model_type: Literal['t5', 'umt5']
  vocab_size: int
  d_model: int
  d_kv: int
  d_ff: int
  num_layers: int
  num_heads: int
  feed_forward_proj: Literal['gated-gelu']
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128
  layer_norm_epsilon: float = 1e-6


class Attention(nnx.Module):

  def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
    D, N, K = config.d_model, config.num_heads, config.d_kv
    init = layers.lecun_normal(in_axis=0, out_axis=(1, 2))
    self.w_q, self.w_k, self.w_v = (layers.param(init, rngs.params(), (D, N, K), sharding.D_NK) for _ in 'qkv')
    self.w_out = layers.param(layers.lecun_normal(in_axis=(0, 1), out_axis=2), rngs.params(), (N, K, D), sharding.NK_D)

  def __call__(self, h_BSD: Float[Array, 'b s d'], bias_NSS: Float[Array, 'n s s'],
               mask_BS: Bool[Array, 'b s']) -> Float[Array, 'b s d']:
    q, k, v = (layers.einsum('bsd,dnk->bsnk', h_BSD, w[...], sharding.BSNK) for w in (self.w_q, self.w_k, self.w_v))
    logits_BNSS = jnp.einsum('bsnk,btnk->bnst', q, k, preferred_element_type=jnp.float32) + bias_NSS[None]
    weights_BNSS = jax.nn.softmax(jnp.where(mask_BS[:, None, None], logits_BNSS, -1e30), -1).astype(v.dtype)
    a_BSNK = jnp.einsum('bnst,btnk->bsnk', weights_BNSS, v)
    return layers.einsum('bsnk,nkd->bsd', a_BSNK, self.w_out[...], sharding.B)


class GatedGelu(nnx.Module):
  """(gelu(x W_gate) * x W_up) W_down."""

  def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
    D, F, init = config.d_model, config.d_ff, layers.lecun_normal(in_axis=0, out_axis=1)
    self.w_gate, self.w_up = (layers.param(init, rngs.params(), (D, F), sharding.D_F) for _ in 'gu')
    self.w_down = layers.param(init, rngs.params(), (F, D), sharding.F_D)

  def __call__(self, h_BSD: Float[Array, 'b s d']) -> Float[Array, 'b s d']:
    gate, up = (layers.einsum('bsd,df->bsf', h_BSD, w[...], sharding.BSF) for w in (self.w_gate, self.w_up))
    return layers.einsum('bsf,fd->bsd', jax.nn.gelu(gate, approximate=True) * up, self.w_down[...], sharding.B)


class T5Block(nnx.Module):

  def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
    self.epsilon = config.layer_norm_epsilon
    self.attention = Attention(config, rngs=rngs)
    self.mlp = GatedGelu(config, rngs=rngs)
    self.attention_scale, self.mlp_scale = (
        layers.param(nnx.initializers.ones, rngs.params(), (config.d_model,)) for _ in range(2))

  def __call__(self, x_BSD, bias_NSS, mask_BS):
    h_BSD = layers.rms_norm(x_BSD, self.attention_scale[...], self.epsilon)
    x_BSD = x_BSD + self.attention(h_BSD, bias_NSS, mask_BS)
    return x_BSD + self.mlp(layers.rms_norm(x_BSD, self.mlp_scale[...], self.epsilon))


class UMT5Block(T5Block):
  """A T5Block with its own biases of distance."""

  def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
    super().__init__(config, rngs=rngs)
    self.relative_bias = relative_bias(config, rngs)

  def __call__(self, x_BSD, bucket_SS, mask_BS):
    return super().__call__(x_BSD, by_distance(self.relative_bias[...], bucket_SS), mask_BS)


class T5Encoder(nnx.Module):

  def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
    self.config = config
    self.embedding = layers.param(layers.normal(1.0), rngs.params(), (config.vocab_size, config.d_model))
    self.scale = layers.param(nnx.initializers.ones, rngs.params(), (config.d_model,))
    self.relative_bias = relative_bias(config, rngs)
    self.blocks = transformer.stack(lambda r: T5Block(config, rngs=r), config.num_layers, rngs)

  def __call__(self, ids_BS: Int[Array, 'b s'], mask_BS: Bool[Array, 'b s'], dtype) -> Float[Array, 'b s d']:
    bias_NSS = by_distance(self.relative_bias[...], buckets(ids_BS.shape[1], self.config))
    x_BSD = embed(self.embedding[...], ids_BS, dtype)
    x_BSD = transformer.run(self.blocks, x_BSD, lambda block, x: block(x, bias_NSS, mask_BS), 'none')
    return layers.rms_norm(x_BSD, self.scale[...], self.config.layer_norm_epsilon)


class UMT5Encoder(nnx.Module):

  def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
    self.config = config
    self.embedding = layers.param(layers.normal(1.0), rngs.params(), (config.vocab_size, config.d_model))
    self.scale = layers.param(nnx.initializers.ones, rngs.params(), (config.d_model,))
    self.blocks = transformer.stack(lambda r: UMT5Block(config, rngs=r), config.num_layers, rngs)

  def __call__(self, ids_BS: Int[Array, 'b s'], mask_BS: Bool[Array, 'b s'], dtype) -> Float[Array, 'b s d']:
    bucket_SS = buckets(ids_BS.shape[1], self.config)
    x_BSD = embed(self.embedding[...], ids_BS, dtype)
    x_BSD = transformer.run(self.blocks, x_BSD, lambda block, x: block(x, bucket_SS, mask_BS), 'none')
    return layers.rms_norm(x_BSD, self.scale[...], self.config.layer_norm_epsilon)


def embed(embedding, ids_BS, dtype):
  return embedding.at[ids_BS].get(out_sharding=sharding.in_force(sharding.B)).astype(dtype)


def relative_bias(config: T5Config, rngs: nnx.Rngs) -> nnx.Param:
  return layers.param(layers.normal(1.0), rngs.params(), (config.relative_attention_num_buckets, config.num_heads))


def by_distance(table: Float[Array, 'buckets n'], bucket_SS: np.ndarray) -> Float[Array, 'n s s']:
  """The bias of every head for each query (first S) and key (second S), float32."""
  return table[bucket_SS].astype(jnp.float32).transpose(2, 0, 1)


def buckets(length: int, config: T5Config) -> np.ndarray:
  """int32[S query, S key]: half of the buckets for keys after the query; in each half one bucket per distance up to a
  quarter of all, then geometrically wider ones up to the largest distance, which takes all beyond."""
  half = config.relative_attention_num_buckets // 2
  exact = half // 2
  offset = np.arange(length)[None] - np.arange(length)[:, None]
  distance = np.abs(offset)
  # In float32, as the model was trained: distances on an edge between buckets fall where float32 puts them.
  octave = np.log(np.maximum(distance, exact).astype(np.float32) / np.float32(exact))
  widest = np.float32(math.log(config.relative_attention_max_distance / exact))
  wide = exact + (octave / widest * (half - exact)).astype(int)
  near = np.where(distance < exact, distance, np.minimum(wide, half - 1))
  return (near + half * (offset > 0)).astype(np.int32)


_SHARED = (
    Rule('shared.weight', 'embedding'),
    Rule('encoder.embed_tokens.weight', 'embedding'),
    Rule('encoder.final_layer_norm.weight', 'scale'),
    Rule('encoder.block.{layer}.layer.0.SelfAttention.{part:[qkv]}.weight', 'blocks.attention.w_{part}', LINEAR),
    Rule('encoder.block.{layer}.layer.0.SelfAttention.o.weight', 'blocks.attention.w_out', LINEAR_FROM_HEADS),
    Rule('encoder.block.{layer}.layer.0.layer_norm.weight', 'blocks.attention_scale'),
    Rule('encoder.block.{layer}.layer.1.DenseReluDense.wi_0.weight', 'blocks.mlp.w_gate', LINEAR),
    Rule('encoder.block.{layer}.layer.1.DenseReluDense.wi_1.weight', 'blocks.mlp.w_up', LINEAR),
    Rule('encoder.block.{layer}.layer.1.DenseReluDense.wo.weight', 'blocks.mlp.w_down', LINEAR),
    Rule('encoder.block.{layer}.layer.1.layer_norm.weight', 'blocks.mlp_scale'),
    drop('decoder.{rest:.+}', 'only the encoder is used'),
    drop('lm_head.weight', 'only the encoder is used'),
)
_BIAS = 'layer.0.SelfAttention.relative_attention_bias.weight'
TABLES = {'t5': (*_SHARED, Rule(f'encoder.block.0.{_BIAS}', 'relative_bias')),
          'umt5': (*_SHARED, Rule(f'encoder.block.{{layer}}.{_BIAS}', 'blocks.relative_bias'))}
ENCODERS = {'t5': T5Encoder, 'umt5': UMT5Encoder}


PART = Part('T5EncoderModel', T5Config, lambda config, rngs: ENCODERS[config.model_type](config, rngs=rngs),
            lambda config: TABLES[config.model_type], IGNORED)


@functools.partial(jax.jit, static_argnums=3)
def _encode(encoder, ids_BS, mask_BS, dtype: str):
  return encoder(ids_BS, mask_BS, dtype).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class TextModel:
  """A published text encoder with its tokenizer. It computes in `dtype`, whatever that of its parameters."""
  encoder: T5Encoder | UMT5Encoder
  tokenizer: Tokenizer
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def encode(self, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float32[B, max_length, D] and mask bool[B, max_length], True at tokens.

    A text that is too long loses its tail but keeps its end.
    """
    if isinstance(texts, str) or not texts:
      raise ValueError(f'texts={texts!r}; give a list of at least one text')
    mesh = jax.sharding.get_abstract_mesh()
    split = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in sharding.ROWS)
    rows = -(-len(texts) // split) * split
    ids_BS = np.full((rows, max_length), self.tokenizer.pad_id, np.int32)
    mask_BS = np.zeros(ids_BS.shape, bool)
    for row, text in enumerate(texts):
      ids = self.tokenizer.encode(text, max_length)
      ids_BS[row, :len(ids)], mask_BS[row, :len(ids)] = ids, True
    embedding_BSD = processes.fetch(_encode(self.encoder, ids_BS, mask_BS, self.dtype))
    return embedding_BSD[:len(texts)], mask_BS[:len(texts)]


def load(folder, tokenizer=None, dtype: Literal['float32', 'bfloat16'] = 'float32') -> TextModel:
  """The encoder of a published folder. `tokenizer` is the path of its spiece.model where that lies elsewhere.

  ValueError for a missing or damaged file, an unknown field of config.json, and weights that do not fit.
  """
  folder = pathlib.Path(folder)
  config = read_config(folder / 'config.json')
  vocabulary = Tokenizer.load(tokenizer or folder / 'spiece.model')
  if vocabulary.vocab_size > config.vocab_size:
    raise ValueError(f'the tokenizer of {folder} has {vocabulary.vocab_size} pieces and the encoder embeds '
                     f'{config.vocab_size}; give the spiece.model that belongs to these weights')
  shapes = weights.abstract(lambda rngs: ENCODERS[config.model_type](config, rngs=rngs))
  return TextModel(weight_table.load(folder, TABLES[config.model_type], shapes), vocabulary, dtype)


def read_config(path) -> T5Config:
  """config.json as transformers writes it."""
  try:
    tree = json.loads(pathlib.Path(path).read_text())
  except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
    raise ValueError(f'{path} cannot be read ({error}); give the folder of a T5 or UMT5 encoder') from None
  if not isinstance(tree, dict):
    raise ValueError(f'{path} is no configuration; give the folder of a T5 or UMT5 encoder')
  return door.build(T5Config, {k: v for k, v in tree.items() if k not in IGNORED}, str(path))
