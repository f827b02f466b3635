"""What of Make-A-Video (Singer et al. 2022, section 3.1) knows text: an embedding that pictures and captions share, and
the prior, which makes a picture's embedding of a caption.

The embedding is that of CLIP (Radford et al. 2021): a picture and its own caption lie closer than any other two of the
batch. The prior is that of DALL-E 2 (Ramesh et al. 2022, section 2.2): a diffusion model over the picture's embedding
that answers x_0, told the caption's embedding and its tokens. Embeddings have length 1; the prior's data is sqrt(E)
times that, of unit variance. A caption of zeros says nothing.

Pictures without captions have embeddings too: that is how the networks behind the prior learn from them.
"""
import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key

from veojax import sharding
from veojax.diffusion import guidance, samplers, timesteps
from veojax.diffusion.process import VP
from veojax.models import layers
from veojax.models.text import TextConfig, TextEncoder
from veojax.zoo import unet_layers
from veojax.zoo.make_a_video_unet import LEVEL_SCALE
from veojax.zoo.mochi_transformer import sinusoid
from veojax.zoo.unet_layers import (
    Conv, Downsample, Embedding, GroupNorm, LayerNorm, Linear, ResidualBlock, TransformerBlock)

PROCESS = VP('cosine')
FIRST_SCALE, MOST_SCALE = 1 / 0.07, 100.0  # of the logits, as in CLIP


@dataclasses.dataclass(frozen=True)
class EmbedderConfig:
  """embedding_dim: E. widths: of the picture encoder's stages, each of half the sides; prior_*: of the prior."""
  embedding_dim: int = 768
  widths: tuple[int, ...] = (128, 256, 512, 768)
  groups: int = 32
  text: TextConfig = TextConfig(vocab_size=32768, width=768, depth=12, num_heads=6, mlp_width=2048)
  prior_width: int = 1024
  prior_depth: int = 12
  prior_head_dim: int = 128

  def __post_init__(self):
    if self.prior_width % self.prior_head_dim or any(width % self.groups for width in self.widths):
      raise ValueError(f'prior_width={self.prior_width}, widths={self.widths}; give multiples of prior_head_dim='
                       f'{self.prior_head_dim}, and of groups={self.groups}')


class PictureEncoder(nnx.Module):

  def __init__(self, config: EmbedderConfig, *, rngs: nnx.Rngs):
    widths, groups = config.widths, config.groups
    self.conv_in = Conv(3, widths[0], rngs=rngs)
    self.blocks = nnx.List([ResidualBlock(widths[max(i - 1, 0)], width, groups, rngs=rngs)
                            for i, width in enumerate(widths)])
    self.down = nnx.List([Downsample(width, rngs=rngs) for width in widths])
    self.norm_out = GroupNorm(widths[-1], groups, rngs=rngs)
    self.out = Linear(widths[-1], config.embedding_dim, rngs=rngs)

  def __call__(self, picture_BHWC: Float[Array, 'b h w 3'], dtype) -> Float[Array, 'b e']:
    """Of length 1. Of a picture in [-1, 1]."""
    x = self.conv_in(picture_BHWC[:, None].astype(dtype))
    for block, down in zip(self.blocks, self.down):
      x = down(block(x))
    return unit(self.out(jnp.mean(jax.nn.silu(self.norm_out(x)), (1, 2, 3))))


class CaptionEncoder(nnx.Module):

  def __init__(self, config: EmbedderConfig, *, rngs: nnx.Rngs):
    self.text = TextEncoder(config.text, rngs=rngs)
    self.out = Linear(config.text.width, config.embedding_dim, rngs=rngs)

  def __call__(self, ids_BS: Int[Array, 'b s'], dtype) -> tuple[Float[Array, 'b e'], Float[Array, 'b s d']]:
    """(the embedding, of length 1; the features of all tokens, zeros of padding). Padding has the id -1."""
    known_BS = (ids_BS >= 0).astype(jnp.int32)
    features_BSD = self.text(jnp.maximum(ids_BS, 0), known_BS, dtype) * known_BS[..., None].astype(dtype)
    features_BSD = layers.reshard(features_BSD, sharding.B)
    count_B1 = jnp.maximum(jnp.sum(known_BS, 1, keepdims=True), 1).astype(dtype)
    return unit(self.out(jnp.sum(features_BSD, 1) / count_B1)), features_BSD


def unit(x_BE: Float[Array, 'b e']) -> Float[Array, 'b e']:
  """Of length 1, float32."""
  x = x_BE.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12)


class Prior(nnx.Module):
  """Tokens of the noisy embedding, the level and the caption's embedding, which look at each other and at the
  caption's tokens."""

  def __init__(self, config: EmbedderConfig, *, rngs: nnx.Rngs):
    E, D = config.embedding_dim, config.prior_width
    self.noisy, self.caption = (Linear(E, D, rngs=rngs) for _ in range(2))
    self.level = Embedding(E, D, rngs=rngs)
    self.blocks = nnx.List([
        TransformerBlock(D, D // config.prior_head_dim, config.prior_head_dim, config.text.width, rngs=rngs)
        for _ in range(config.prior_depth)])
    self.norm_out, self.out = LayerNorm(D, rngs=rngs), Linear(D, E, rngs=rngs)

  def __call__(self, x_BE: Float[Array, 'b e'], level_B: Float[Array, 'b'], caption_BE: Float[Array, 'b e'],
               features_BSD: Float[Array, 'b s d']) -> Float[Array, 'b e']:
    """x_0, float32, computed in the features' dtype."""
    dtype = features_BSD.dtype
    level_BD = self.level(sinusoid(LEVEL_SCALE * level_B, x_BE.shape[-1], dtype))
    tokens = [self.noisy(x_BE.astype(dtype)), level_BD, self.caption(caption_BE.astype(dtype))]
    h_BLD, segment_BL = unet_layers.to_tokens(jnp.stack(tokens, 1)[:, None, None])
    for block in self.blocks:
      h_BLD = block(h_BLD, segment_BL, features_BSD)
    h_BD = layers.reshard(h_BLD, sharding.B)[:, 0]
    return self.out(self.norm_out(h_BD)).astype(jnp.float32)


class Embedder(nnx.Module):

  def __init__(self, config: EmbedderConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.picture, self.caption = PictureEncoder(config, rngs=rngs), CaptionEncoder(config, rngs=rngs)
    self.prior = Prior(config, rngs=rngs)
    self.log_scale = layers.param(nnx.initializers.constant(jnp.log(FIRST_SCALE)), rngs.params(), (1,))


def contrast(picture_BE: Float[Array, 'b e'], caption_BE: Float[Array, 'b e'], log_scale_1: Float[Array, '1']
             ) -> Float[Array, '']:
  """Cross-entropy of which caption of the batch is the picture's, and the other way round (Radford et al. 2021,
  figure 3)."""
  everywhere = lambda x: layers.reshard(x, P())
  picture_BE, caption_BE = everywhere(picture_BE), everywhere(caption_BE)
  logits = jnp.minimum(jnp.exp(log_scale_1[0]), MOST_SCALE) * (picture_BE @ caption_BE.T)
  own = jnp.sum(picture_BE * caption_BE, -1) * jnp.minimum(jnp.exp(log_scale_1[0]), MOST_SCALE)
  return jnp.mean((jax.nn.logsumexp(logits, 1) + jax.nn.logsumexp(logits, 0)) / 2 - own)


def prior_loss(prior: Callable[..., Array], picture_BE: Float[Array, 'b e'], caption_BE: Float[Array, 'b e'],
               features_BSD: Float[Array, 'b s d'], key: Key[Array, '']) -> Float[Array, '']:
  """E |x_0(x_t, t) - x_0|², DALL-E 2's eq. 2; `prior` as of `Prior`."""
  rows, (key_t, key_eps) = sharding.in_force(sharding.B), jax.random.split(key)
  x0 = picture_BE * picture_BE.shape[-1] ** 0.5
  level_B = timesteps.uniform(key_t, (len(x0),), out_sharding=rows)
  x = PROCESS.add_noise(x0, jax.random.normal(key_eps, x0.shape, out_sharding=rows), level_B[:, None])
  return jnp.mean(jnp.square(prior(x, level_B, caption_BE, features_BSD) - x0))


@functools.partial(jax.jit, static_argnames=('num_steps', 'dtype'))
def sample(embedder: Embedder, ids_BS: Int[Array, 'b s'], noise_BE: Float[Array, 'b e'],
           scale: Float[Array, ''] | float, num_steps: int, dtype: str) -> Float[Array, 'b e']:
  """A picture's embedding, of length 1, for each caption, by DDIM; `scale`: of guidance, 1 is none."""
  caption_BE, features_BSD = embedder.caption(layers.reshard(ids_BS, sharding.B), dtype)
  rows = sharding.in_force(sharding.B)

  def evaluate(x, t):
    level_B = jnp.broadcast_to(t, (len(x),), out_sharding=rows)
    return [embedder.prior(x, level_B, some * caption_BE, (some * features_BSD).astype(dtype)) for some in (1.0, 0.0)]
  made = samplers.ddim(guidance.guided_by(evaluate, (scale,)), layers.reshard(noise_BE, sharding.B),
                       timesteps.levels(num_steps), process=PROCESS, prediction='x0')
  return unit(made)
