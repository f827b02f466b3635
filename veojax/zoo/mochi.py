"""Mochi 1 (Genmo 2024): text to video, by an asymmetric transformer over the latents of a 6 × 8 × 8 autoencoder, with a
T5 v1.1 text encoder.

As published: 64 Euler steps of the flow on linear-quadratic levels (half of the steps down to t = .975), guidance 4.5
in float32, an empty prompt being no text at all.
"""
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from veojax import host, processes, sharding
from veojax.data.tokenizer import Tokenizer
from veojax.diffusion import guidance, samplers, timesteps
from veojax.diffusion.process import RectifiedFlow
from veojax.zoo import mochi_transformer, mochi_vae, t5
from veojax.zoo.mochi_transformer import MochiTransformer, MochiTransformerConfig
from veojax.zoo.mochi_vae import MochiCodec, MochiVAE, MochiVAEConfig
from veojax.zoo.published import Original, Part, Published, Run


@dataclasses.dataclass(frozen=True)
class MochiSettings:
  """What `generate` takes. tile: pixels of a side of what is decoded at once, in `chunk` latent frames; None is whole
  frames, as published, where the device has the memory, else the largest tile that fits (`fitting_tile`). dtype: of
  transformer and text encoder."""
  num_frames: int = 19
  height: int = 480
  width: int = 848
  fps: float = 30.0
  num_inference_steps: int = 64
  guidance_scale: float = 4.5
  negative_prompt: str = ''
  dtype: Literal['float32', 'bfloat16'] = 'bfloat16'
  tile: int | None = None
  chunk: int = 2

  def __post_init__(self):
    if self.num_frames < 1 or self.num_frames % 6 != 1:
      raise ValueError(f'num_frames={self.num_frames}; give 6k + 1, such as {6 * (max(self.num_frames, 1) // 6) + 1}')
    if min(self.height, self.width) < 16 or self.height % 16 or self.width % 16:
      raise ValueError(f'height={self.height}, width={self.width}; give multiples of 16')
    if not self.fps > 0 or self.num_inference_steps < 1 or self.chunk < 1:
      raise ValueError(f'fps={self.fps}, num_inference_steps={self.num_inference_steps}, chunk={self.chunk}; '
                       'give positive numbers')


class MochiPipeline:
  """A converted Mochi; `zoo.published.Pipeline` says what is asked of it."""
  settings = MochiSettings()
  given = {}
  takes_prompt = True

  def __init__(self, run: Run):
    self.run = run
    self.tokenizer = Tokenizer.load(run.folder / 'tokenizer' / 'spiece.model')
    index = run.json('model_index.json') if (run.folder / 'model_index.json').exists() else {}
    self.empty_is_no_text = index.get('force_zeros_for_empty_prompt', not index)

  def sizes(self) -> dict[str, str]:
    return {'sizes': 'num_frames 6k + 1, trained up to 163; height and width multiples of 16, trained at 480 × 848'}

  def noise_shape(self, settings: MochiSettings) -> tuple[int, int, int, int]:
    vae = self.run.configs['vae']
    return (1 + (settings.num_frames - 1) // vae.temporal_compression, settings.height // vae.spatial_compression,
            settings.width // vae.spatial_compression, vae.latent_channels)

  def __call__(self, prompts: Sequence[str], noise: Float[Array, 'b t h w c'], settings: MochiSettings,
               draw) -> np.ndarray:
    """uint8[B, T, H, W, 3]."""
    filled = lambda tree: jax.tree.map(lambda x: sharding.fill_rows(np.asarray(x)), tree)
    text, unguided = self.embed(prompts, settings.dtype), None
    if settings.guidance_scale != 1:
      unguided = filled(self.embed([settings.negative_prompt] * len(prompts), settings.dtype))
    levels = timesteps.levels(settings.num_inference_steps, spacing='linear_quadratic')
    latents = sample(self.run.parts['transformer'], filled(noise), filled(text), unguided, levels,
                     settings.guidance_scale, settings.dtype)
    return self.decode(processes.fetch(latents)[:len(prompts)], settings)

  def embed(self, texts: Sequence[str], dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """T5's features float32[B, S, E] and mask bool[B, S]; of an empty text nothing is seen, where so published."""
    model = t5.TextModel(self.run.parts['text_encoder'], self.tokenizer, dtype)
    features, mask = model.encode(texts, self.run.configs['transformer'].max_sequence_length)
    if self.empty_is_no_text:
      mask = mask & np.array([bool(text) for text in texts])[:, None]
    return features, mask

  def decode(self, latents: np.ndarray, settings: MochiSettings) -> np.ndarray:
    vae = self.run.parts['vae']
    codec = codec_of(vae, settings.tile or fitting_tile(settings, host.free_bytes()), settings.chunk)
    return np.stack([codec.decode(latent, settings.num_frames, settings.height, settings.width) for latent in latents])


# Of the published decoder, compiled for whole frames of 480 × 848 on TPUs: 63 GiB for 2 latent frames.
BYTES_PER_PIXEL = 82_000
SMALLEST_TILE = 64  # smaller ones are mostly overlap
SHARE = 0.6  # of the free memory, for the tile that is decoded; the rest is for the past of all others


def fitting_tile(settings: MochiSettings, free_bytes: int | None) -> int:
  """Pixels of a side of the largest tile that a device with so much free memory decodes: whole frames where these fit,
  or nothing is known of the memory."""
  whole, bytes_per_pixel = max(settings.height, settings.width), BYTES_PER_PIXEL * settings.chunk
  if free_bytes is None or free_bytes >= settings.height * settings.width * bytes_per_pixel:
    return whole
  return max(SMALLEST_TILE, min(whole, math.isqrt(int(SHARE * free_bytes / bytes_per_pixel)) // 16 * 16))


def codec_of(vae: MochiVAE, tile: int, chunk: int = 2) -> MochiCodec:
  sc = vae.cfg.spatial_compression
  tile = sc * -(-tile // sc)
  return MochiCodec(vae, vae.cfg.mean_C, vae.cfg.std_C, chunk=chunk, tile=tile, overlap=tile // 4 // sc * sc)


Text = tuple[Float[np.ndarray, 'b s e'] | Array, Bool[np.ndarray, 'b s'] | Array]


@functools.partial(jax.jit, static_argnames='dtype')
def sample(transformer: MochiTransformer, noise: Float[Array, 'b t h w c'] | np.ndarray, text: Text,
           unguided: Text | None, levels: Float[Array, 'steps'], scale: Float[Array, ''] | float,
           dtype: str) -> Float[Array, 'b t h w c']:
  """All steps from noise to normalised latents, as one program; without guidance where `unguided` is None."""
  def denoise(features, mask):
    features = jnp.asarray(features, dtype)
    return lambda x, t: transformer(x, jnp.broadcast_to(t, len(x)), features, jnp.asarray(mask))
  denoise = denoise(*text) if unguided is None else guidance.guided(denoise(*text), denoise(*unguided), scale)
  x = jnp.asarray(noise, jnp.float32)
  return samplers.euler(denoise, x, levels, process=RectifiedFlow(), prediction='flow')


_original_vae = Original(
    {'encoder.safetensors': 'encoder.', 'decoder.safetensors': 'decoder.'}, mochi_vae.original_table, lambda files: {
        'latents_mean': (-0.06730895953510081, -0.038011381506090416, -0.07477820912866141, -0.05565264470995561,
                         0.012767231469026969, -0.04703542746246419, 0.043896967884726704, -0.09346305707025976,
                         -0.09918314763016893, -0.008729793427399178, -0.011931556316503654, -0.0321993391887285),
        'latents_std': (0.9263795028493863, 0.9248894543193766, 0.9393059390890617, 0.959253732819592,
                        0.8244560132752793, 0.917259975397747, 0.9294154431013696, 1.3720942357788521,
                        0.881393668867029, 0.9168315692124348, 0.9185249279345552, 0.9274757570805041)})

MOCHI = Published(
    name='Mochi 1', class_names=('MochiPipeline',), pipeline=MochiPipeline, tasks=('text to video',),
    licence='Apache-2.0', small=('tokenizer',), parts={
        'transformer': Part(
            'MochiTransformer3DModel', MochiTransformerConfig, lambda config, rngs: MochiTransformer(config, rngs=rngs),
            mochi_transformer.table,
            original=Original({'dit.safetensors': ''}, mochi_transformer.original_table, lambda files: {})),
        'vae': Part('AutoencoderKLMochi', MochiVAEConfig, lambda config, rngs: MochiVAE(config, rngs=rngs),
                    mochi_vae.table, original=_original_vae, on_mesh=False),
        'text_encoder': t5.PART})
