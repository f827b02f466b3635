"""Mochi 1's transformer (Genmo 2024, `MochiTransformer3DModel`): two streams, pictures wide and text narrow, that meet
in one attention.

Published, it answers x0 - eps at the timestep 1000 (1 - t). Here t is the noise level and the answer eps - x0, the
flow's velocity, as everywhere in this project.

Positions: the frame's number, and rows and columns from the centre in units in which a frame's area is 192². Each head
has frequencies of its own, learned, for all three. Published heads rotate the pairs (2i, 2i+1); here the dims of
queries, keys and their scales are reordered, so that they are (i, i + K/2): products of queries and keys do not change.

Modulation has no shift, and gates pass through tanh; what attention and MLP give is normed before its gate. The last
block reads the text and does not change it; the query it holds for text is read by nothing.
"""
import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from veojax import sharding
from veojax.models import attention, conv, layers, transformer
from veojax.zoo.transforms import FLAT, LINEAR, LINEAR_FROM_HEADS, in_halves, patch
from veojax.zoo.weight_table import Rule

POOL_HEADS = 8
AREA = 192 ** 2
EPS = 1e-6
QK_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class MochiTransformerConfig:
  """The fields of config.json, and how it is run here: `remat` for the backward pass."""
  patch_size: int = 2
  num_attention_heads: int = 24
  attention_head_dim: int = 128
  num_layers: int = 48
  pooled_projection_dim: int = 1536  # width of the text stream
  in_channels: int = 12
  out_channels: int | None = None
  qk_norm: Literal['rms_norm'] = 'rms_norm'
  text_embed_dim: int = 4096
  time_embed_dim: int = 256
  activation_fn: Literal['swiglu'] = 'swiglu'
  max_sequence_length: int = 256
  remat: transformer.Remat = 'none'

  def __post_init__(self):
    if self.num_layers < 2 or self.attention_head_dim % 2 or self.text_embed_dim % POOL_HEADS:
      raise ValueError(f'num_layers={self.num_layers}, attention_head_dim={self.attention_head_dim}, text_embed_dim='
                       f'{self.text_embed_dim}; give 2 layers or more, an even head dim and a multiple of {POOL_HEADS}')
    if self.out_channels not in (None, self.in_channels):
      raise ValueError(f'out_channels={self.out_channels} for in_channels={self.in_channels}; they must be equal')

  @property
  def width(self) -> int:
    return self.num_attention_heads * self.attention_head_dim


class Linear(nnx.Module):
  """x W + b over the last dim, for the few vectors of an example."""

  def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
    self.w = layers.param(layers.lecun_normal(), rngs.params(), (inputs, outputs), sharding.D_F)
    self.b = layers.param(layers.zeros, rngs.params(), (outputs,))

  def __call__(self, x: Float[Array, '*b d']) -> Float[Array, '*b e']:
    spec = sharding.in_force(sharding.rows(x.ndim))
    return conv.add_bias(jnp.einsum('...d,de->...e', x, self.w[...].astype(x.dtype), out_sharding=spec), self.b[...])


class Modulation(nnx.Module):
  """silu(c) W + b: `number` vectors of `width` for each example, float32."""

  def __init__(self, inputs: int, number: int, width: int, *, rngs: nnx.Rngs):
    init = layers.lecun_normal(in_axis=0, out_axis=(1, 2))
    self.w = layers.param(init, rngs.params(), (inputs, number, width), sharding.D_NE)
    self.b = layers.param(layers.zeros, rngs.params(), (number, width))

  def __call__(self, c_BD: Float[Array, 'b d']) -> list[Float[Array, 'b 1 e']]:
    spec = sharding.in_force(sharding.rows(3))
    m = jnp.einsum('bd,dne->bne', jax.nn.silu(c_BD), self.w[...].astype(c_BD.dtype), out_sharding=spec)
    m_BNE = (m + self.b[...].astype(m.dtype)[None]).astype(jnp.float32)
    return [m_BNE[:, i, None] for i in range(m.shape[1])]


class Projections(nnx.Module):
  """Queries and keys, normed per head, and values of one stream."""

  def __init__(self, width: int, num_heads: int, head_dim: int, *, rngs: nnx.Rngs):
    init = layers.lecun_normal(in_axis=0, out_axis=(1, 2))
    shape = width, num_heads, head_dim
    self.w_q, self.w_k, self.w_v = (layers.param(init, rngs.params(), shape, sharding.D_NK) for _ in 'qkv')
    self.q_scale, self.k_scale = (layers.param(nnx.initializers.ones, rngs.params(), (head_dim,)) for _ in 'qk')

  def __call__(self, h_BLD):
    q, k, v = (layers.einsum('bld,dnk->blnk', h_BLD, w[...], sharding.BLNK) for w in (self.w_q, self.w_k, self.w_v))
    return layers.rms_norm(q, self.q_scale[...], QK_EPS), layers.rms_norm(k, self.k_scale[...], QK_EPS), v


class Output(nnx.Module):
  """From the heads back to a stream."""

  def __init__(self, width: int, num_heads: int, head_dim: int, *, rngs: nnx.Rngs):
    init = layers.lecun_normal(in_axis=(0, 1), out_axis=2)
    self.w_out = layers.param(init, rngs.params(), (num_heads, head_dim, width), sharding.NK_D)
    self.b_out = layers.param(layers.zeros, rngs.params(), (width,))

  def __call__(self, a_BLNK):
    return conv.add_bias(layers.einsum('blnk,nkd->bld', a_BLNK, self.w_out[...], sharding.BLD), self.b_out[...])


class LastBlock(nnx.Module):
  """Pictures look at pictures and text; the text stays."""

  def __init__(self, config: MochiTransformerConfig, *, rngs: nnx.Rngs, text_modulations: int = 1):
    D, E, heads = config.width, config.pooled_projection_dim, (config.num_attention_heads, config.attention_head_dim)
    self.mod = Modulation(D, 4, D, rngs=rngs)
    self.text_mod = Modulation(D, text_modulations, E, rngs=rngs)
    self.attention = Projections(D, *heads, rngs=rngs)
    self.text_attention = Projections(E, *heads, rngs=rngs)
    self.output = Output(D, *heads, rngs=rngs)
    self.mlp = transformer.SwiGLU(D, 4 * D * 2 // 3, rngs=rngs)

  def __call__(self, x_BLD, y_BSE, c_BD, row):
    text_scale, *_ = self.text_mod(c_BD)
    return self.pictures(x_BLD, c_BD, row, *self.text_attention(modulated(y_BSE, text_scale))[1:])[0]

  def pictures(self, x_BLD, c_BD, row, text_k, text_v):
    """The pictures' new state, and keys and values of both streams."""
    scale_a, gate_a, scale_m, gate_m = self.mod(c_BD)
    q, k, v = self.attention(modulated(x_BLD, scale_a))
    q, k = (rotate(z, row.cos, row.sin) for z in (q, k))
    k, v = (jnp.concatenate([layers.reshard(z, sharding.BSNK) for z in pair], 1) for pair in ((k, text_k), (v, text_v)))
    a_BLD = self.output(attention.attention(q, k, v, row.segment_BL, row.segment_keys))
    x_BLD = x_BLD + gated(a_BLD, gate_a)
    return x_BLD + gated(self.mlp(modulated(x_BLD, scale_m)), gate_m), k, v


class Block(LastBlock):
  """Both streams change."""

  def __init__(self, config: MochiTransformerConfig, *, rngs: nnx.Rngs):
    super().__init__(config, rngs=rngs, text_modulations=4)
    E = config.pooled_projection_dim
    self.text_output = Output(E, config.num_attention_heads, config.attention_head_dim, rngs=rngs)
    self.text_mlp = transformer.SwiGLU(E, 4 * E * 2 // 3, rngs=rngs)

  def __call__(self, x_BLD, y_BSE, c_BD, row):
    scale_a, gate_a, scale_m, gate_m = self.text_mod(c_BD)
    q, text_k, text_v = self.text_attention(modulated(y_BSE, scale_a))
    x_BLD, k, v = self.pictures(x_BLD, c_BD, row, text_k, text_v)
    a_BSE = self.text_output(attention.attention(q, k, v, row.segment_BS, row.segment_keys))
    y_BSE = y_BSE + gated(a_BSE, gate_a)
    return x_BLD, y_BSE + gated(self.text_mlp(modulated(y_BSE, scale_m)), gate_m)


def modulated(x_BLD, scale_B1D):
  """The norm of x, times 1 + scale, in float32."""
  return (layers.rms_norm(x_BLD.astype(jnp.float32), eps=EPS) * (1 + scale_B1D)).astype(x_BLD.dtype)


def gated(x_BLD, gate_B1D):
  """The norm of x, times tanh(gate), in float32."""
  return (layers.rms_norm(x_BLD.astype(jnp.float32), eps=EPS) * jnp.tanh(gate_B1D)).astype(x_BLD.dtype)


def rotate(x_BLNK, cos_1LNk, sin_1LNk):
  a, b = jnp.split(x_BLNK.astype(jnp.float32), 2, -1)
  return jnp.concatenate([a * cos_1LNk - b * sin_1LNk, b * cos_1LNk + a * sin_1LNk], -1).astype(x_BLNK.dtype)


class Row(nnx.Pytree):
  """What every block needs to know of the tokens: their rotation, and who sees whom."""

  def __init__(self, frequencies, grid: tuple[int, int, int], padding: int, mask_BS):
    B, L = len(mask_BS), math.prod(grid) + padding
    position_L3, spec = np.pad(positions(*grid), ((0, padding), (0, 0))), sharding.LNK
    angle_LNk = jnp.einsum('la,ank->lnk', position_L3, frequencies.astype(jnp.float32),
                           out_sharding=sharding.in_force(spec))
    self.cos, self.sin = jnp.cos(angle_LNk)[None], jnp.sin(angle_LNk)[None]
    real_BL = np.broadcast_to(np.arange(L) < math.prod(grid), (B, L)).astype(np.int32)
    text_BS = layers.reshard(mask_BS.astype(jnp.int32), sharding.B)
    # Padding sees padding, so that no row of the softmax is empty; nobody reads it.
    self.segment_BL, self.segment_BS = layers.reshard(jnp.asarray(real_BL), sharding.BL), text_BS
    self.segment_keys = jnp.concatenate([layers.reshard(jnp.asarray(real_BL), sharding.B), text_BS], 1)


def positions(num_frames: int, height: int, width: int) -> np.ndarray:
  """float32[T·H·W, 3] of a grid of tokens."""
  unit = math.sqrt(AREA / (height * width))
  axes = [np.arange(num_frames), *((np.arange(n) + 0.5 - n / 2) * unit for n in (height, width))]
  return np.stack(np.meshgrid(*axes, indexing='ij'), -1).reshape(-1, 3).astype(np.float32)


class Pool(nnx.Module):
  """The text as one vector: its mean looks at its tokens and at itself."""

  def __init__(self, text_dim: int, width: int, *, rngs: nnx.Rngs):
    K, init = text_dim // POOL_HEADS, layers.lecun_normal(in_axis=0, out_axis=(1, 2))
    self.w_q, self.w_k, self.w_v = (
        layers.param(init, rngs.params(), (text_dim, POOL_HEADS, K), sharding.D_NK) for _ in 'qkv')
    self.b_q, self.b_k, self.b_v = (layers.param(layers.zeros, rngs.params(), (POOL_HEADS, K)) for _ in 'qkv')
    self.out = Linear(text_dim, width, rngs=rngs)

  def __call__(self, text_BSE: Float[Array, 'b s e'], mask_BS: Bool[Array, 'b s']) -> Float[Array, 'b d']:
    share_BS = mask_BS / jnp.maximum(mask_BS.sum(1, keepdims=True), 1)
    mean_B1E = jnp.einsum('bs,bse->be', share_BS.astype(text_BSE.dtype), text_BSE)[:, None]
    both = jnp.concatenate([mean_B1E, text_BSE], 1)
    head = lambda x, w, b: layers.einsum('bsd,dnk->bsnk', x, w[...], sharding.BSNK) + b[...].astype(x.dtype)[None, None]
    q, k, v = head(mean_B1E, self.w_q, self.b_q), head(both, self.w_k, self.b_k), head(both, self.w_v, self.b_v)
    logits = jnp.einsum('bqnk,bsnk->bnqs', q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    seen = jnp.pad(mask_BS, ((0, 0), (1, 0)), constant_values=True)[:, None, None]
    weights = jax.nn.softmax(jnp.where(seen, logits, -1e30), -1).astype(v.dtype)
    a_BNK = jnp.einsum('bnqs,bsnk->bqnk', weights, v)[:, 0]
    spec = sharding.in_force(sharding.rows(2))
    return self.out(jnp.reshape(a_BNK, (len(a_BNK), -1), out_sharding=spec))


class MochiTransformer(nnx.Module):

  def __init__(self, config: MochiTransformerConfig, *, rngs: nnx.Rngs):
    self.config = config
    D, patch_dim = config.width, config.patch_size ** 2 * config.in_channels
    self.patch = Linear(patch_dim, D, rngs=rngs)
    self.time_in, self.time_out = Linear(config.time_embed_dim, D, rngs=rngs), Linear(D, D, rngs=rngs)
    self.pool = Pool(config.text_embed_dim, D, rngs=rngs)
    self.text = Linear(config.text_embed_dim, config.pooled_projection_dim, rngs=rngs)
    self.frequencies = layers.param(layers.normal(1.0), rngs.params(), (
        3, config.num_attention_heads, config.attention_head_dim // 2), sharding.A_NK)
    # One block's initialisation, mapped: traced one by one, those of 47 blocks take minutes.
    keys = jax.random.split(rngs.params(), config.num_layers - 1)
    self.blocks = jax.lax.map(lambda key: Block(config, rngs=layers.Rngs(key)), keys)
    self.last = LastBlock(config, rngs=rngs)
    self.out_scale, self.out_shift = Linear(D, D, rngs=rngs), Linear(D, D, rngs=rngs)
    self.out = Linear(D, patch_dim, rngs=rngs)

  def __call__(self, latent_BTHWC: Float[Array, 'b t h w c'], t_B: Float[Array, 'b'], text_BSE: Float[Array, 'b s e'],
               mask_BS: Bool[Array, 'b s']) -> Float[Array, 'b t h w c']:
    """The flow's velocity eps - x0, float32, at noise levels t; computed in the text's dtype.

    Height and width are multiples of patch_size; mask is True at the text's tokens.
    """
    config, p = self.config, self.config.patch_size
    B, T, H, W, C = latent_BTHWC.shape
    grid = T, H // p, W // p
    padding = -math.prod(grid) % sharding.size('context')
    rows = sharding.in_force(sharding.B)
    x = jnp.reshape(latent_BTHWC, (B, T, H // p, p, W // p, p, C), out_sharding=rows).transpose(0, 1, 2, 4, 3, 5, 6)
    x = jnp.reshape(x, (B, math.prod(grid), p * p * C), out_sharding=rows).astype(text_BSE.dtype)
    x = layers.reshard(jnp.pad(x, ((0, 0), (0, padding), (0, 0))), sharding.B)
    x_BLD = layers.reshard(self.patch(x), sharding.BLD)
    y_BSE = layers.reshard(self.text(text_BSE), sharding.BLD)
    time_BD = self.time_out(jax.nn.silu(self.time_in(sinusoid(1000 * (1 - t_B), config.time_embed_dim, x.dtype))))
    c_BD = time_BD + self.pool(text_BSE, mask_BS)
    row = Row(self.frequencies[...], grid, padding, mask_BS)
    x_BLD, y_BSE = transformer.run(self.blocks, (x_BLD, y_BSE), lambda block, xy: block(*xy, c_BD, row), config.remat)
    x_BLD = layers.reshard(self.last(x_BLD, y_BSE, c_BD, row), sharding.B)[:, :math.prod(grid)]
    h_BD = jax.nn.silu(c_BD)
    x_BLD = layer_norm(x_BLD) * (1 + self.out_scale(h_BD))[:, None] + self.out_shift(h_BD)[:, None]
    y = jnp.reshape(self.out(x_BLD), (B, *grid, p, p, C), out_sharding=rows).transpose(0, 1, 2, 4, 3, 5, 6)
    return -jnp.reshape(y, (B, T, H, W, C), out_sharding=rows).astype(jnp.float32)


def layer_norm(x_BLD):
  x = x_BLD.astype(jnp.float32)
  x = x - jnp.mean(x, -1, keepdims=True)
  return (x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + EPS)).astype(x_BLD.dtype)


def sinusoid(timestep_B: Float[Array, 'b'], size: int, dtype) -> Float[Array, 'b f']:
  """[cos, sin] of the timestep at frequencies from 1 down to nearly 1e-4."""
  frequency = np.exp(-math.log(1e4) * np.arange(size // 2) / (size // 2)).astype(np.float32)
  angle = timestep_B.astype(jnp.float32)[:, None] * frequency[None]
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1).astype(dtype)


def _linear(source: str, target: str) -> list[Rule]:
  return [Rule(f'{source}.weight', f'{target}.w', LINEAR), Rule(f'{source}.bias', f'{target}.b')]


def _shared(config: MochiTransformerConfig, names: dict[str, str]) -> list[Rule]:
  """What is the same in both dialects but for the names."""
  p = config.patch_size
  rules = [Rule(f'{names["patch"]}.weight', 'patch.w', patch(p, p)), Rule(f'{names["patch"]}.bias', 'patch.b'),
           Rule('pos_frequencies', 'frequencies'),
           Rule(f'{names["pool"]}.to_q.weight', 'pool.w_q', LINEAR),
           Rule(f'{names["pool"]}.to_q.bias', 'pool.b_q', FLAT),
           Rule(f'{names["pool"]}.to_kv.weight', ('pool.w_k', 'pool.w_v'), LINEAR),
           Rule(f'{names["pool"]}.to_kv.bias', ('pool.b_k', 'pool.b_v'), FLAT)]
  for source, target in (('time_in', 'time_in'), ('time_out', 'time_out'), ('text', 'text'), ('out', 'out')):
    rules += _linear(names[source], target)
  return rules + _linear(f'{names["pool"]}.to_out', 'pool.out')


def _per_block(config: MochiTransformerConfig, rules) -> list[Rule]:
  """rules(prefix of the source, prefix of the target) of the stacked blocks and of the last one."""
  last = config.num_layers - 1
  layer = '{layer:' + '|'.join(str(i) for i in range(last)) + '}'
  return rules(layer, 'blocks', False) + rules(str(last), 'last', True)


def table(config: MochiTransformerConfig) -> Sequence[Rule]:
  """diffusers' names."""
  halves = in_halves(config.attention_head_dim)

  def block(number: str, target: str, last: bool) -> list[Rule]:
    source = f'transformer_blocks.{number}'
    attn, text_mod = f'{source}.attn1', f'{source}.norm1_context.linear' + '_1' * last
    rules = [
        Rule(f'{source}.norm1.linear.weight', f'{target}.mod.w', LINEAR),
        Rule(f'{source}.norm1.linear.bias', f'{target}.mod.b', FLAT),
        Rule(f'{text_mod}.weight', f'{target}.text_mod.w', LINEAR),
        Rule(f'{text_mod}.bias', f'{target}.text_mod.b', FLAT),
        Rule(f'{attn}.to_{{part:[qk]}}.weight', f'{target}.attention.w_{{part}}', halves),
        Rule(f'{attn}.to_v.weight', f'{target}.attention.w_v', LINEAR),
        Rule(f'{attn}.norm_{{part:[qk]}}.weight', f'{target}.attention.{{part}}_scale', halves),
        Rule(f'{attn}.add_{{part:[qk]}}_proj.weight', f'{target}.text_attention.w_{{part}}', halves),
        Rule(f'{attn}.add_v_proj.weight', f'{target}.text_attention.w_v', LINEAR),
        Rule(f'{attn}.norm_added_{{part:[qk]}}.weight', f'{target}.text_attention.{{part}}_scale', halves)]
    for mlp, output, into in (('ff', 'to_out.0', ''), *[('ff_context', 'to_add_out', 'text_')] * (not last)):
      rules += [Rule(f'{attn}.{output}.weight', f'{target}.{into}output.w_out', LINEAR_FROM_HEADS),
                Rule(f'{attn}.{output}.bias', f'{target}.{into}output.b_out'),
                Rule(f'{source}.{mlp}.net.0.proj.weight', (f'{target}.{into}mlp.w_up', f'{target}.{into}mlp.w_gate'),
                     LINEAR),
                Rule(f'{source}.{mlp}.net.2.weight', f'{target}.{into}mlp.w_down', LINEAR)]
    return rules
  names = {'patch': 'patch_embed.proj', 'time_in': 'time_embed.timestep_embedder.linear_1',
           'time_out': 'time_embed.timestep_embedder.linear_2', 'pool': 'time_embed.pooler',
           'text': 'time_embed.caption_proj', 'out': 'proj_out'}
  return _shared(config, names) + _per_block(config, block) + [
      Rule('norm_out.linear.weight', ('out_scale.w', 'out_shift.w'), LINEAR),
      Rule('norm_out.linear.bias', ('out_scale.b', 'out_shift.b'))]


def original_table(config: MochiTransformerConfig) -> Sequence[Rule]:
  """The makers' names: q, k and v in one matrix, the gate before the value, shift before scale."""
  halves = in_halves(config.attention_head_dim)

  def block(number: str, target: str, last: bool) -> list[Rule]:
    source, rules = f'blocks.{number}', []
    for stream, into in (('x', ''), ('y', 'text_')):
      attn = f'{target}.{into}attention'
      rules += [
          Rule(f'{source}.mod_{stream}.weight', f'{target}.{into}mod.w', LINEAR),
          Rule(f'{source}.mod_{stream}.bias', f'{target}.{into}mod.b', FLAT),
          Rule(f'{source}.attn.qkv_{stream}.weight', (f'{attn}.w_q', f'{attn}.w_k', f'{attn}.w_v'),
               (halves, halves, LINEAR)),
          Rule(f'{source}.attn.{{part:[qk]}}_norm_{stream}.weight', f'{attn}.{{part}}_scale', halves)]
      if stream == 'x' or not last:
        rules += [Rule(f'{source}.attn.proj_{stream}.weight', f'{target}.{into}output.w_out', LINEAR_FROM_HEADS),
                  Rule(f'{source}.attn.proj_{stream}.bias', f'{target}.{into}output.b_out'),
                  Rule(f'{source}.mlp_{stream}.w1.weight', (f'{target}.{into}mlp.w_gate', f'{target}.{into}mlp.w_up'),
                       LINEAR),
                  Rule(f'{source}.mlp_{stream}.w2.weight', f'{target}.{into}mlp.w_down', LINEAR)]
    return rules
  names = {'patch': 'x_embedder.proj', 'time_in': 't_embedder.mlp.0', 'time_out': 't_embedder.mlp.2',
           'pool': 't5_y_embedder', 'text': 't5_yproj', 'out': 'final_layer.linear'}
  return _shared(config, names) + _per_block(config, block) + [
      Rule('final_layer.mod.weight', ('out_shift.w', 'out_scale.w'), LINEAR),
      Rule('final_layer.mod.bias', ('out_shift.b', 'out_scale.b'))]
