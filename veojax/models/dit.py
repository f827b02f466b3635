"""The diffusion transformer over packed rows of text, sound and picture tokens (Peebles & Xie 2023; one stream).

Every token carries a modality, a position and an extent in physical units, a segment and a noise level. A task is a set
of noise levels; nothing here branches on it. The network predicts per token whatever its training asked of it (eps, x0,
v or the flow's velocity); text tokens have no output.

Modulation (adaLN-Zero) is computed once per group of tokens that share segment, modality and noise level: one shared
projection, plus a table of each block, gathered to the tokens. Besides its noise level a group knows the mean of its
caption's features (as Stable Diffusion 3 and Mochi do), a short way for the caption to reach every layer.
"""
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from veojax import sharding
from veojax.models import layers, rope as rotary, transformer
from veojax.models.rope import RopeConfig
from veojax.models.text import TextConfig, TextEncoder
from veojax.types import AUDIO, MODALITIES, TEXT, VIDEO, Tokens

# How the rows of a batch lie over the mesh.
TOKEN_SPECS = Tokens(
    latent=sharding.BLD, modality=sharding.BL, segment=sharding.BL, position=sharding.BLD, extent=sharding.BLD,
    group=sharding.BL, group_modality=sharding.B, group_segment=sharding.B, group_level=sharding.B,
    text=sharding.B, text_segment=sharding.B,
    text_index=sharding.BL)


@dataclasses.dataclass(frozen=True)
class DiTConfig:
  video_channels: int = 16
  audio_channels: int = 32
  width: int = 256
  depth: int = 8
  num_heads: int = 4
  mlp_width: int = 768
  text: TextConfig = TextConfig()
  rope: RopeConfig = RopeConfig()
  remat: transformer.Remat = 'none'
  dtype: Literal['float32', 'bfloat16'] = 'bfloat16'

  def __post_init__(self):
    if self.width % (2 * self.num_heads):
      raise ValueError(f'width {self.width} is not a multiple of 2 x num_heads={self.num_heads}')

  @property
  def channels(self) -> int:
    """Channels of a packed token: the widest modality's."""
    return max(self.video_channels, self.audio_channels)


class Block(nnx.Module):

  def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
    self.attention = transformer.SelfAttention(config.width, config.num_heads, rngs=rngs)
    self.mlp = transformer.SwiGLU(config.width, config.mlp_width, rngs=rngs)
    self.table = layers.param(layers.zeros, rngs.params(), (len(MODALITIES), 6, config.width))

  def __call__(self, x_BLD, shared_BG6D, row):
    modulation = shared_BG6D + layers.einsum('bgm,mse->bgse', row.modality_BGM, self.table[...])
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (gather(row, modulation[:, :, i]) for i in range(6))
    h_BLD = layers.rms_norm(x_BLD) * (1 + scale_a) + shift_a
    x_BLD = x_BLD + gate_a * self.attention(h_BLD, row.segment_BL, row.rotation_BL2k)
    h_BLD = layers.rms_norm(x_BLD) * (1 + scale_m) + shift_m
    return x_BLD + gate_m * self.mlp(h_BLD)


class Row(nnx.Pytree):
  """What every block needs to know of the rows, computed once."""

  def __init__(self, tokens: Tokens, config: DiTConfig):
    dtype = jnp.dtype(config.dtype)
    self.segment_BL = tokens.segment
    self.rotation_BL2k = rotary.rotation(config.rope, config.width // config.num_heads, tokens.position)
    # One-hot products rather than gathers: exact, they shard without help, and cost G / (4 D) of a layer.
    self.group_BLG = jax.nn.one_hot(tokens.group, tokens.group_modality.shape[1], dtype=dtype)
    self.modality_BGM = jax.nn.one_hot(tokens.group_modality, len(MODALITIES), dtype=dtype)


def gather(row: Row, group_BGD):
  return jnp.einsum('blg,bgd->bld', row.group_BLG, group_BGD)


class Head(nnx.Module):
  """In and out projections of one modality; the last modulation is shared."""

  def __init__(self, channels: int, width: int, *, rngs: nnx.Rngs):
    self.w_in = layers.param(layers.lecun_normal(), rngs.params(), (channels, width), sharding.C_D)
    self.w_out = layers.param(layers.zeros, rngs.params(), (width, channels), sharding.D_C)

  def embed(self, latent_BLC):
    return layers.einsum('blc,cd->bld', latent_BLC[..., :self.w_in.shape[0]], self.w_in[...], sharding.BLD)

  def predict(self, x_BLD, channels):
    y = layers.einsum('bld,dc->blc', x_BLD, self.w_out[...], sharding.BLD)
    return jnp.pad(y, ((0, 0), (0, 0), (0, channels - y.shape[-1])))


class DiT(nnx.Module):

  POSITION_FEATURES = 8  # frequencies per axis
  NOISE_FEATURES = 64

  def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
    D = config.width
    self.config = config
    linear = layers.lecun_normal()
    self.text_encoder = TextEncoder(config.text, rngs=rngs)
    self.w_text = layers.param(linear, rngs.params(), (config.text.width, D), sharding.C_D)
    self.w_caption = layers.param(linear, rngs.params(), (config.text.width, D), sharding.C_D)
    self.video_head = Head(config.video_channels, D, rngs=rngs)
    self.audio_head = Head(config.audio_channels, D, rngs=rngs)
    self.w_place = layers.param(linear, rngs.params(), (6 * self.POSITION_FEATURES + 3, D), sharding.C_D)
    self.modality_embedding = layers.param(layers.normal(0.02), rngs.params(), (len(MODALITIES), D))
    self.w_noise = layers.param(linear, rngs.params(), (2 * self.NOISE_FEATURES, D))
    self.w_noise_out = layers.param(linear, rngs.params(), (D, D), sharding.C_D)
    # Zero, so that every block starts as the identity and the output as zero.
    self.w_modulation = layers.param(layers.zeros, rngs.params(), (D, 6, D), sharding.D_6D)
    self.w_last = layers.param(layers.zeros, rngs.params(), (D, 2, D), sharding.D_6D)
    self.blocks = transformer.stack(lambda r: Block(config, rngs=r), config.depth, rngs)

  def __call__(self, tokens: Tokens, noise_BG: Float[Array, 'b g']) -> Float[Array, 'b l c']:
    """Prediction for every token, float32[B, L, C]; zero for text and padding.

    tokens.latent holds the noisy latents x_t; noise_BG is the noise level of each group, in [0, 1].
    """
    dtype = jnp.dtype(self.config.dtype)
    tokens = jax.tree.map(jnp.asarray, tokens)
    row = Row(tokens, self.config)
    text_BSC = self.text_encoder(tokens.text, tokens.text_segment, dtype)
    c_BGD = self.condition(noise_BG, text_BSC, tokens, row)
    shared_BG6D = layers.einsum('bgd,dse->bgse', c_BGD, self.w_modulation[...], sharding.B)
    x_BLD = self.embed(tokens, text_BSC, dtype)
    x_BLD = transformer.run(self.blocks, x_BLD, lambda block, x: block(x, shared_BG6D, row), self.config.remat)
    shift, scale = (gather(row, layers.einsum('bgd,de->bge', c_BGD, self.w_last[:, i], sharding.B)) for i in range(2))
    h_BLD = layers.rms_norm(x_BLD) * (1 + scale) + shift
    is_video, is_audio = ((tokens.modality == m)[..., None] for m in (VIDEO, AUDIO))
    video, audio = (head.predict(h_BLD, tokens.latent.shape[-1]) for head in (self.video_head, self.audio_head))
    return jnp.where(is_video, video, jnp.where(is_audio, audio, 0)).astype(jnp.float32)

  def condition(self, noise_BG, text_BSC, tokens, row):
    """Embedding of each group's noise level, modality and caption."""
    features = layers.fourier(noise_BG, self.NOISE_FEATURES, 0.25, 64.0).astype(row.group_BLG.dtype)
    h = layers.einsum('bgf,fd->bgd', features, self.w_noise[...])
    h = layers.einsum('bgd,de->bge', jax.nn.silu(h), self.w_noise_out[...], sharding.B)
    own_BGS = (tokens.group_segment[:, :, None] == tokens.text_segment[:, None, :]).astype(h.dtype)
    share_BGS = own_BGS / jnp.maximum(jnp.sum(own_BGS, -1, keepdims=True), 1)
    caption = layers.einsum('bgs,bsc->bgc', share_BGS, layers.reshard(text_BSC, sharding.B), sharding.B)
    h = h + layers.einsum('bgc,cd->bgd', caption, self.w_caption[...], sharding.B)
    return jax.nn.silu(h + layers.einsum('bgm,md->bgd', row.modality_BGM, self.modality_embedding[...]))

  def embed(self, tokens, text_BSC, dtype):
    """Token features: content by modality, plus place (position and extent)."""
    latent = tokens.latent.astype(dtype)
    text_BSD = layers.einsum('bsc,cd->bsd', text_BSC, self.w_text[...], sharding.BLD)
    text_BLD = layers.take(text_BSD, tokens.text_index, sharding.BLD)
    is_text, is_audio, is_video = ((tokens.modality == m)[..., None] for m in (TEXT, AUDIO, VIDEO))
    content = jnp.where(is_video, self.video_head.embed(latent), jnp.where(is_audio, self.audio_head.embed(latent), 0))
    place = layers.fourier(tokens.position, self.POSITION_FEATURES, 0.125, 8.0)
    place = place.reshape(*place.shape[:2], -1)
    place = jnp.concatenate([place, jnp.log(tokens.extent + 0.01)], -1).astype(dtype)
    content = content + layers.einsum('blf,fd->bld', place, self.w_place[...], sharding.BLD)
    return jnp.where(is_text, text_BLD, jnp.where(is_audio | is_video, content, 0))
