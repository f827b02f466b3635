"""Mochi 1's video autoencoder (Genmo 2024, `AutoencoderKLMochi`): 6 × 8 × 8 pixels to a latent of 12 channels.

It is causal in time. Latent 0 is frame 0, latent i ≥ 1 covers frames 6(i-1)+1 … 6i. Convolutions see the first frame
repeated before the clip and edges repeated around the frame; norms are of one frame, group by group. The encoder also
looks back along time at each place of the frame (attention without positions). Convolutions carry their past, and
attention all its keys and values, so a clip in chunks equals the whole.

Pixels lie in [-1, 1]; the encoder sees them with sines and cosines at 64 and 128 cycles a unit. The posterior is
N(mean, exp(logvar)); the decoder's output is not clipped.
"""
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from veojax import sharding
from veojax.models import conv, layers, split_codec
from veojax.models.conv import Pointwise, Video
from veojax.models.video_codec import VideoCodec
from veojax.models.video_vae import LOGVAR_MAX, LOGVAR_MIN
from veojax.zoo.transforms import CONV, LINEAR, LINEAR_FROM_HEADS, SAME, channels_of_blocks, patch, pointwise
from veojax.zoo.weight_table import Rule

GROUPS = 32
HEAD_DIM = 32
CYCLES = (64, 128)  # of the encoder's sines and cosines, a unit of the pixels
EPS = 1e-5

State = tuple  # the past of every layer of time, in the order of computation


@dataclasses.dataclass(frozen=True)
class MochiVAEConfig:
  """The fields of config.json, and the dtype of the computation."""
  in_channels: int = 15
  out_channels: int = 3
  encoder_block_out_channels: tuple[int, ...] = (64, 128, 256, 384)
  decoder_block_out_channels: tuple[int, ...] = (128, 256, 512, 768)
  latent_channels: int = 12
  layers_per_block: tuple[int, ...] = (3, 3, 4, 6, 3)
  act_fn: Literal['silu', 'swish'] = 'silu'
  temporal_expansions: tuple[int, ...] = (1, 2, 3)
  spatial_expansions: tuple[int, ...] = (2, 2, 2)
  add_attention_block: tuple[bool, ...] = (False, True, True, True, True)
  latents_mean: tuple[float, ...] | None = None
  latents_std: tuple[float, ...] | None = None
  scaling_factor: float = 1.0
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    stages = len(self.encoder_block_out_channels)
    if self.in_channels != 3 + 6 * len(CYCLES) or self.out_channels != 3:
      raise ValueError(f'in_channels={self.in_channels}, out_channels={self.out_channels}; pixels are 3 channels, and '
                       '15 with their sines and cosines')
    sizes = {'decoder_block_out_channels': stages, 'layers_per_block': stages + 1, 'add_attention_block': stages + 1,
             'temporal_expansions': stages - 1, 'spatial_expansions': stages - 1}
    for name, size in sizes.items():
      if len(getattr(self, name)) != size:
        raise ValueError(f'{name}={getattr(self, name)} for {stages} stages; give {size} values')
    widths = (*self.encoder_block_out_channels, *self.decoder_block_out_channels)
    if any(width % GROUPS for width in widths):
      raise ValueError(f'block_out_channels={widths}; give multiples of {GROUPS}')

  @property
  def temporal_compression(self) -> int:
    return math.prod(self.temporal_expansions)

  @property
  def spatial_compression(self) -> int:
    return math.prod(self.spatial_expansions)

  @property
  def mean_C(self) -> np.ndarray:
    return np.asarray(self.latents_mean or [0.0] * self.latent_channels, np.float32)

  @property
  def std_C(self) -> np.ndarray:
    return np.asarray(self.latents_std or [1.0] * self.latent_channels, np.float32) / np.float32(self.scaling_factor)


class GroupNorm(nnx.Module):
  """Group norm of each frame (Wu & He 2018), statistics in float32."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.scale = layers.param(nnx.initializers.ones, rngs.params(), (width,))
    self.bias = layers.param(layers.zeros, rngs.params(), (width,))

  def __call__(self, x_BTHWC: Video) -> Video:
    B, T, H, W, C = x_BTHWC.shape
    x = conv.reshape(x_BTHWC, B, T, H * W, GROUPS, C // GROUPS).astype(jnp.float32)
    mean = jnp.mean(x, (2, 4), keepdims=True)
    rate = jax.lax.rsqrt(jnp.mean(jnp.square(x - mean), (2, 4), keepdims=True) + EPS)
    scale, bias = (p[...].astype(jnp.float32).reshape(1, 1, 1, GROUPS, -1) for p in (self.scale, self.bias))
    # One product and one sum for each element.
    gain = rate * scale
    return conv.reshape(x * gain + (bias - mean * gain), B, T, H, W, C).astype(x_BTHWC.dtype)


class CausalConv(nnx.Module):
  """3 × 3 × 3, the present frame the last of three, edges repeated."""

  def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
    init = nnx.initializers.lecun_normal(in_axis=(0, 1, 2, 3), out_axis=4)
    self.kernel = layers.param(init, rngs.params(), (3, 3, 3, inputs, outputs))
    self.bias = layers.param(layers.zeros, rngs.params(), (outputs,))

  def __call__(self, x_BTHWC: Video, past: Video | None) -> tuple[Video, Video]:
    """The output, and the two frames that the next chunk sees before its own."""
    frames = jnp.concatenate([repeated(x_BTHWC, 2) if past is None else past, x_BTHWC], 1)
    padded = jnp.pad(frames, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), 'edge')
    y = jax.lax.conv_general_dilated(padded, self.kernel[...].astype(x_BTHWC.dtype), (1, 1, 1), 'VALID',
                                     dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'))
    return conv.add_bias(y, self.bias[...]), frames[:, -2:]


def repeated(x_BTHWC: Video, times: int) -> Video:
  """The first frame, so many times."""
  return jnp.concatenate([x_BTHWC[:, :1]] * times, 1)


class ResidualBlock(nnx.Module):

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.norms = nnx.List([GroupNorm(width, rngs=rngs) for _ in range(2)])
    self.convs = nnx.List([CausalConv(width, width, rngs=rngs) for _ in range(2)])

  def __call__(self, x_BTHWC: Video, state) -> tuple[Video, State]:
    h, new = x_BTHWC, []
    for norm, layer, past in zip(self.norms, self.convs, state or (None, None)):
      h, past = layer(jax.nn.silu(norm(h)), past)
      new.append(past)
    return x_BTHWC + h, tuple(new)


class TimeAttention(nnx.Module):
  """Each place of the frame looks at its own past; queries and keys have length 1 (Henry et al. 2020)."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    N, init = width // HEAD_DIM, layers.lecun_normal(in_axis=0, out_axis=(1, 2))
    self.norm = GroupNorm(width, rngs=rngs)
    self.w_q, self.w_k, self.w_v = (layers.param(init, rngs.params(), (width, N, HEAD_DIM)) for _ in 'qkv')
    out = layers.lecun_normal(in_axis=(0, 1), out_axis=2)
    self.w_out = layers.param(out, rngs.params(), (N, HEAD_DIM, width))
    self.b_out = layers.param(layers.zeros, rngs.params(), (width,))

  def __call__(self, x_BTHWC: Video, past) -> tuple[Video, State]:
    """The output, and all keys and values so far."""
    heads = lambda w: jnp.einsum('bthwc,cnk->bthwnk', h, w[...].astype(h.dtype))
    h = self.norm(x_BTHWC)
    q, k, v = heads(self.w_q), heads(self.w_k), heads(self.w_v)
    q, k = unit(q), unit(k)
    if past is not None:
      k, v = (jnp.concatenate(pair, 1) for pair in zip(past, (k, v)))
    T, S = q.shape[1], k.shape[1]
    seen_TS = np.arange(S)[None] <= np.arange(S - T, S)[:, None]

    def row(qkv):  # of the frame, so that scores of all places do not stand in memory at once
      q, k, v = qkv
      logits = jnp.einsum('btwnk,bswnk->bwnts', q, k, preferred_element_type=jnp.float32) * HEAD_DIM ** -0.5
      weights = jax.nn.softmax(jnp.where(seen_TS[None, None, None], logits, -1e30), -1).astype(v.dtype)
      return jnp.einsum('bwnts,bswnk->btwnk', weights, v)
    rows = [jnp.moveaxis(z, 2, 0) for z in (q, k, v)]
    a = jnp.moveaxis(jax.lax.map(row, rows), 0, 2)
    out = jnp.einsum('bthwnk,nkc->bthwc', a, self.w_out[...].astype(a.dtype))
    return x_BTHWC + conv.add_bias(out, self.b_out[...]), (k, v)


def unit(x):
  x32 = x.astype(jnp.float32)
  return (x32 / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(x32), -1, keepdims=True)), EPS)).astype(x.dtype)


class Stage(nnx.Module):
  """Residual blocks, each followed by attention along time where that is asked for."""

  def __init__(self, width: int, depth: int, attention: bool, *, rngs: nnx.Rngs):
    self.blocks = nnx.List([ResidualBlock(width, rngs=rngs) for _ in range(depth)])
    self.attentions = nnx.List([TimeAttention(width, rngs=rngs) for _ in range(depth * attention)])

  def __call__(self, x_BTHWC: Video, state) -> tuple[Video, State]:
    layers_ = [layer for i, block in enumerate(self.blocks) for layer in (block, *self.attentions[i:i + 1])]
    new = []
    for layer, past in zip(layers_, state or (None,) * len(layers_), strict=True):
      x_BTHWC, past = layer(x_BTHWC, past)
      new.append(past)
    return x_BTHWC, tuple(new)


class MochiVAE(nnx.Module):
  """Stages from fine to coarse in `encoder`, from coarse to fine in `decoder`, with a fold or unfold between each
  two."""
  DECODER = 'from_latent', 'decoder', 'up', 'to_pixels'

  def __init__(self, cfg: MochiVAEConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    ins, outs, depths = cfg.encoder_block_out_channels, cfg.decoder_block_out_channels, cfg.layers_per_block
    self.from_pixels = Pointwise(cfg.in_channels, ins[0], rngs=rngs)
    widths = (*ins, ins[-1])
    self.encoder = nnx.List([Stage(*sizes, rngs=rngs) for sizes in zip(widths, depths, cfg.add_attention_block)])
    self.down = nnx.List([Pointwise(ins[i] * fold, ins[i + 1], rngs=rngs) for i, fold in enumerate(self.folds)])
    self.encoder_norm = GroupNorm(ins[-1], rngs=rngs)
    self.to_latent = layers.param(layers.lecun_normal(), rngs.params(), (ins[-1], 2 * cfg.latent_channels))
    self.from_latent = Pointwise(cfg.latent_channels, outs[-1], rngs=rngs)
    widths = (outs[-1], *outs[::-1])
    self.decoder = nnx.List([Stage(width, depth, False, rngs=rngs) for width, depth in zip(widths, depths[::-1])])
    self.up = nnx.List([Pointwise(outs[i + 1], outs[i] * self.folds[i], rngs=rngs)
                        for i in reversed(range(len(self.folds)))])
    self.to_pixels = Pointwise(outs[0], cfg.out_channels, rngs=rngs)

  @property
  def folds(self) -> list[int]:
    """Cells that become one, from fine to coarse."""
    return [t * s * s for t, s in zip(self.cfg.temporal_expansions, self.cfg.spatial_expansions)]

  def encode_chunk(self, video_BTHWC: Float[Array, 'b t h w 3'], state: State | None = None):
    """One chunk → ((mean, logvar) float32, state for the next). The first (state None) has 1 + 6k frames, later ones
    6k."""
    tc, sc = self.cfg.temporal_compression, self.cfg.spatial_compression
    _, T, H, W, _ = video_BTHWC.shape
    if T < 1 or H % sc or W % sc or (T - (state is None)) % tc:
      frames = f'1 + k·{tc}' if state is None else f'k·{tc}'
      raise ValueError(f'{T} frames of {H}×{W} pixels do not divide; give {frames} frames of sides divisible by {sc}')
    expansions = list(zip(self.cfg.temporal_expansions, self.cfg.spatial_expansions))
    x, new = self.from_pixels(waves(video_BTHWC).astype(self.cfg.dtype)), []
    for i, stage in enumerate(self.encoder):
      x, past = stage(x, state and state[i])
      new.append(past)
      if i < len(self.down):
        time, space = expansions[i]
        if state is None and time > 1:
          x = jnp.concatenate([repeated(x, time - 1), x], 1)
        x = self.down[i](conv.space_to_depth(x, time, space))
    x = jax.nn.silu(self.encoder_norm(x))
    mean, logvar = jnp.split((x @ self.to_latent[...].astype(x.dtype)).astype(jnp.float32), 2, -1)
    return (mean, jnp.clip(logvar, LOGVAR_MIN, LOGVAR_MAX)), tuple(new)

  def decode_chunk(self, latent_BTHWC: Video, state: State | None = None) -> tuple[Float[Array, 'b t h w 3'], State]:
    """One chunk of any number of latent frames → (pixels, state for the next); the first has state None."""
    if latent_BTHWC.shape[-1] != self.cfg.latent_channels:
      raise ValueError(f'latents of {latent_BTHWC.shape[-1]} channels for a codec of {self.cfg.latent_channels}; '
                       'use the codec that made them')
    expansions = list(zip(self.cfg.temporal_expansions, self.cfg.spatial_expansions))[::-1]
    x, new = self.from_latent(latent_BTHWC.astype(self.cfg.dtype)), []
    for i, stage in enumerate(self.decoder):
      x, past = stage(x, state and state[i])
      new.append(past)
      if 0 < i <= len(self.up):
        x = conv.depth_to_space(self.up[i - 1](x), *expansions[i - 1])
    x = self.to_pixels(jax.nn.silu(x)).astype(jnp.float32)
    return (x[:, self.cfg.temporal_compression - 1:] if state is None else x), tuple(new)


def waves(x_BTHWC: Float[Array, 'b t h w 3']) -> Float[Array, 'b t h w 15']:
  """[x, sines, cosines], each colour's frequencies side by side; float32."""
  x = x_BTHWC.astype(jnp.float32)
  angle = jnp.concatenate([x[..., i, None] * np.float32(2 * np.pi * cycles) for i in range(3) for cycles in CYCLES], -1)
  return jnp.concatenate([x, jnp.sin(angle), jnp.cos(angle)], -1)


@dataclasses.dataclass(frozen=True)
class MochiCodec(VideoCodec):
  """A MochiVAE as the project's codecs are: any clip, in chunks and tiles.

  A frame no larger than a tile is taken as it is: what repeats its edges would change what is made of it.
  """
  VAE, CONFIG = MochiVAE, MochiVAEConfig

  def _sides(self, h, w):
    return tuple(min(side, size) for side, size in zip(super()._sides(h, w), (h, w)))

  def _step(self, tiles, num_latents, alone, shared):
    # A tile is on one device: norms and attention see all of it, and all of its past.
    mesh = sharding.clip_mesh(len(tiles.weights), num_chunks=1, num_rows=1)
    if mesh.size == 1:
      return functools.partial(alone, self.vae), self.chunk
    tiles.at_once = mesh.size
    return split_codec.by_tile(alone, self.vae, mesh), self.chunk


def _weights(source: str, target: str, transform, name: str = 'kernel') -> list[Rule]:
  return [Rule(f'{source}.weight', f'{target}.{name}', transform), Rule(f'{source}.bias', f'{target}.bias')]


def _stage(names, part: str, i: int, depth: int, attention: bool) -> list[Rule]:
  rules = []
  for j in range(depth):
    for n, (norm, layer) in enumerate(names.residual(part, i, j)):
      into = f'{part}.{i}.blocks.{j}'
      rules += _weights(norm, f'{into}.norms.{n}', SAME, 'scale') + _weights(layer, f'{into}.convs.{n}', CONV)
    if attention:
      rules += names.attention(i, j, f'{part}.{i}.attentions.{j}')
  return rules


class Diffusers:
  """diffusers' names."""
  ends = {'from_pixels': 'encoder.proj_in', 'to_latent': 'encoder.proj_out',
          'encoder_norm': 'encoder.norm_out.norm_layer',
          'from_latent': 'decoder.conv_in', 'to_pixels': 'decoder.proj_out'}

  def __init__(self, cfg: MochiVAEConfig):
    self.last = len(cfg.encoder_block_out_channels)

  def _stage(self, part: str, i: int) -> str:
    block = {'encoder': 'down_blocks', 'decoder': 'up_blocks'}[part]
    return f'{part}.block_in' if i == 0 else f'{part}.block_out' if i == self.last else f'{part}.{block}.{i - 1}'

  def fold(self, part: str, i: int) -> str:
    return f'encoder.down_blocks.{i}.conv_in.conv' if part == 'encoder' else f'decoder.up_blocks.{i}.proj'

  def residual(self, part: str, i: int, j: int) -> list[tuple[str, str]]:
    """(norm, convolution) twice."""
    block = f'{self._stage(part, i)}.resnets.{j}'
    return [(f'{block}.norm{n}.norm_layer', f'{block}.conv{n}.conv') for n in (1, 2)]

  def attention(self, i: int, j: int, target: str) -> list[Rule]:
    stage = self._stage('encoder', i)
    norm, attn = f'{stage}.norms.{j}.norm_layer', f'{stage}.attentions.{j}'
    return [*_weights(norm, f'{target}.norm', SAME, 'scale'),
            Rule(f'{attn}.to_{{part:[qkv]}}.weight', f'{target}.w_{{part}}', LINEAR),
            Rule(f'{attn}.to_out.0.weight', f'{target}.w_out', LINEAR_FROM_HEADS),
            Rule(f'{attn}.to_out.0.bias', f'{target}.b_out')]


class Makers:
  """The makers' names: all layers of the encoder in one list, those of the decoder's first stage behind its entry."""
  ends = {'from_pixels': 'encoder.layers.0', 'to_latent': 'encoder.output_proj', 'encoder_norm': 'encoder.output_norm',
          'from_latent': 'decoder.blocks.0.0', 'to_pixels': 'decoder.output_proj'}

  def __init__(self, cfg: MochiVAEConfig):
    self.last, self.first = len(cfg.encoder_block_out_channels), cfg.layers_per_block[0]

  def fold(self, part: str, i: int) -> str:
    return f'encoder.layers.{self.first + 1 + i}.layers.0' if part == 'encoder' else f'decoder.blocks.{i + 1}.proj'

  def _block(self, part: str, i: int, j: int) -> str:
    if part == 'decoder':
      return f'decoder.blocks.{i}.' + (f'{j + 1}' if i == 0 else f'{j}' if i == self.last else f'blocks.{j}')
    inner = f'{j + 1}' if i == 0 else f'{self.first + i + j}' if i == self.last else f'{self.first + i}.layers.{j + 1}'
    return f'encoder.layers.{inner}'

  def residual(self, part: str, i: int, j: int) -> list[tuple[str, str]]:
    block = f'{self._block(part, i, j)}.stack'
    return [(f'{block}.0', f'{block}.2'), (f'{block}.3', f'{block}.5')]

  def attention(self, i: int, j: int, target: str) -> list[Rule]:
    block = f'{self._block("encoder", i, j)}.attn_block'
    return [*_weights(f'{block}.norm', f'{target}.norm', SAME, 'scale'),
            Rule(f'{block}.attn.qkv.weight', tuple(f'{target}.w_{part}' for part in 'qkv'), LINEAR),
            Rule(f'{block}.attn.out.weight', f'{target}.w_out', LINEAR_FROM_HEADS),
            Rule(f'{block}.attn.out.bias', f'{target}.b_out')]


def table(cfg: MochiVAEConfig) -> Sequence[Rule]:
  """diffusers' names."""
  return _rules(cfg, Diffusers(cfg))


def original_table(cfg: MochiVAEConfig) -> Sequence[Rule]:
  """The makers' names, those of encoder.safetensors and decoder.safetensors with these prefixes."""
  return _rules(cfg, Makers(cfg))


def _rules(cfg: MochiVAEConfig, names: Diffusers | Makers) -> Sequence[Rule]:
  last, out = len(cfg.encoder_block_out_channels), []
  for i, (depth, attention) in enumerate(zip(cfg.layers_per_block, cfg.add_attention_block)):
    out += _stage(names, 'encoder', i, depth, attention) + _stage(names, 'decoder', last - i, depth, False)
  for i, (time, space) in enumerate(zip(cfg.temporal_expansions, cfg.spatial_expansions)):
    out += _weights(names.fold('encoder', i), f'down.{i}', patch(time, space, space))
    source, up = names.fold('decoder', last - 2 - i), f'up.{last - 2 - i}'
    blocks = channels_of_blocks(time * space * space)
    out += [Rule(f'{source}.weight', f'{up}.kernel', blocks), Rule(f'{source}.bias', f'{up}.bias', blocks)]
  ends = names.ends
  return (*out, *_weights(ends['from_pixels'], 'from_pixels', LINEAR),
          *_weights(ends['to_pixels'], 'to_pixels', LINEAR),
          *_weights(ends['from_latent'], 'from_latent', pointwise(3)),
          *_weights(ends['encoder_norm'], 'encoder_norm', SAME, 'scale'),
          Rule(f'{ends["to_latent"]}.weight', 'to_latent', LINEAR))
