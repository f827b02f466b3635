"""Stable Video Diffusion (Blattmann et al. 2023): a picture to video, by a U-Net with layers along time over the latents
of an image autoencoder.

As published: 25 Euler steps on the levels of Karras et al. 2022, eq. 5, from 700 to .002 and then 0; guidance away from
no picture, growing over the frames from 1 to 3; 7 frames a second, motion bucket 127, noise of deviation .02 on the
first frame.
"""
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from veojax import host, processes, sharding
from veojax.diffusion import guidance, samplers
from veojax.diffusion.process import EDM
from veojax.models import layers
from veojax.zoo import clip_vision, stable_video_diffusion, svd_picture, svd_unet, svd_vae
from veojax.zoo.clip_vision import ClipVision
from veojax.zoo.published import Part, Published, Run
from veojax.zoo.svd_unet import SVDUNet, SVDUNetConfig
from veojax.zoo.svd_vae import SVDVAE, SVDVAEConfig

AUGMENTATION = 2 ** 20  # beside a seed's numbers of clips: the key of the noise on first frames

# How it is sampled, and what is published beside the makers' one file in their code alone.
_SCHEDULER, _PICTURES = 'scheduler/scheduler_config.json', 'feature_extractor/preprocessor_config.json'
_SCHEDULE = {'_class_name': 'EulerDiscreteScheduler', 'prediction_type': 'v_prediction', 'timestep_type': 'continuous',
             'use_karras_sigmas': True}
IN_CODE = {_SCHEDULER: {**_SCHEDULE, 'sigma_min': 0.002, 'sigma_max': 700.0},
           _PICTURES: {'image_mean': (0.48145466, 0.4578275, 0.40821073),
                       'image_std': (0.26862954, 0.26130258, 0.27577711)}}


@dataclasses.dataclass(frozen=True)
class SVDSettings:
  """What `generate` takes. guidance_scale: at the last frame, growing from min_guidance_scale at the first; 1 or less is
  no guidance. motion_bucket_id: of how much motion, 0 to 255. noise_aug_strength: deviation of the noise on the given
  picture, whose pixels lie in [-1, 1]. chunk: frames decoded at once; None is all, as published, where the device has
  the memory, else as many as fit. dtype: of U-Net and image tower. Of a picture of another form the middle is taken."""
  num_frames: int = 25
  height: int = 576
  width: int = 1024
  fps: float = 7.0
  num_inference_steps: int = 25
  guidance_scale: float = 3.0
  min_guidance_scale: float = 1.0
  motion_bucket_id: int = 127
  noise_aug_strength: float = 0.02
  dtype: Literal['float32', 'bfloat16'] = 'bfloat16'
  chunk: int | None = None

  def __post_init__(self):
    if min(self.height, self.width) < 8 or self.height % 8 or self.width % 8:
      raise ValueError(f'height={self.height}, width={self.width}; give multiples of 8')
    chunk = self.num_frames if self.chunk is None else self.chunk
    if not self.fps > 0 or min(self.num_frames, self.num_inference_steps, chunk) < 1:
      raise ValueError(f'num_frames={self.num_frames}, fps={self.fps}, num_inference_steps={self.num_inference_steps}, '
                       f'chunk={self.chunk}; give positive numbers')
    if self.noise_aug_strength < 0:
      raise ValueError(f'noise_aug_strength={self.noise_aug_strength}; give a deviation, 0 for none')


class SVDPipeline:
  """A converted Stable Video Diffusion; `zoo.published.Pipeline` says what is asked of it."""
  given = {'image': True}
  takes_prompt = False

  def __init__(self, run: Run):
    self.run = run
    config: SVDUNetConfig = run.configs['unet']
    if config.in_channels != 2 * config.out_channels:
      raise ValueError(f'a U-Net of {config.in_channels} channels in and {config.out_channels} out; one that makes video '
                       'of a picture reads its latents beside the noise')
    self.settings = SVDSettings(num_frames=config.num_frames)
    self.process = process_of(run)
    tree = run.json(_PICTURES)
    self.mean_C, self.std_C = (np.asarray(tree[f'image_{name}'], np.float32) for name in ('mean', 'std'))

  def sizes(self) -> dict[str, str]:
    frames = self.run.configs['unet'].num_frames
    return {'sizes': f'trained for {frames} frames of 576 × 1024; height and width multiples of 8'}

  def noise_shape(self, settings: SVDSettings) -> tuple[int, int, int, int]:
    sc = self.run.configs['vae'].spatial_compression
    return settings.num_frames, settings.height // sc, settings.width // sc, self.run.configs['unet'].out_channels

  def __call__(self, prompts: Sequence[str], noise: Float[Array, 'b t h w c'], settings: SVDSettings, draw,
               image: UInt8[np.ndarray, 'h2 w2 3']) -> np.ndarray:
    """uint8[B, T, H, W, 3]; each clip has its own noise on the picture too."""
    image = svd_picture.middle(image, settings.height, settings.width)
    augmentation = np.asarray(draw(AUGMENTATION, (settings.height, settings.width, 3)))
    first = self.encode(svd_picture.resized(image, settings.height, settings.width), augmentation,
                        settings.noise_aug_strength)
    vector = np.repeat(self.embed([image], settings.dtype), len(noise), 0)
    conditions = np.asarray([[settings.fps - 1, settings.motion_bucket_id, settings.noise_aug_strength]], np.float32)
    scales = None
    if settings.guidance_scale > 1:
      scales = np.linspace(settings.min_guidance_scale, settings.guidance_scale, settings.num_frames, dtype=np.float32)
    rows = [sharding.fill_rows(np.asarray(x)) for x in (noise, first, vector, conditions.repeat(len(noise), 0))]
    latents = sample(self.run.parts['unet'], *rows, levels(self.process, settings.num_inference_steps), scales,
                     self.process, settings.dtype)
    return self.decode(processes.fetch(latents)[:len(noise)], settings)

  def encode(self, picture: UInt8[np.ndarray, 'h w 3'], noise: Float[np.ndarray, 'b h w 3'],
             strength: float) -> np.ndarray:
    """Latents float32[B, h, w, C] of the picture with each noise; they are not scaled."""
    pixels = picture.astype(np.float32) / 127.5 - 1
    with sharding.no_mesh():
      return np.concatenate([np.asarray(_encode(self.run.parts['vae'], pixels + np.float32(strength) * n))
                             for n in noise])

  def embed(self, pictures: Sequence[np.ndarray], dtype: str) -> np.ndarray:
    """CLIP's vectors float32[B, E] of pictures uint8[H, W, 3], each of its own size."""
    side = self.run.configs['image_encoder'].image_size
    seen = [svd_picture.antialiased(picture.astype(np.float32) / 127.5 - 1, side) for picture in pictures]
    normed = (np.stack(seen) / 2 + 0.5 - self.mean_C) / self.std_C
    with sharding.default_mesh():
      vectors = _embed(self.run.parts['image_encoder'], sharding.fill_rows(normed.astype(np.float32)), dtype)
    return processes.fetch(vectors)[:len(pictures)]

  def decode(self, latents: np.ndarray, settings: SVDSettings) -> np.ndarray:
    vae = self.run.parts['vae']
    codec = svd_vae.codec_of(vae, settings.chunk or fitting_chunk(settings, host.free_bytes()))
    return np.stack([codec.decode(latent, settings.num_frames, settings.height, settings.width) for latent in latents])


# Of the published decoder, compiled for a TPU: 16.2 GiB for 7 frames of 576 × 1024, 7.1 for 4, 26.8 for 14.
BYTES_PER_PIXEL = 4300


def fitting_chunk(settings: SVDSettings, free_bytes: int | None) -> int:
  """Frames that a device with so much free memory decodes at once; all where nothing is known of it."""
  if free_bytes is None:
    return settings.num_frames
  return min(settings.num_frames, max(1, free_bytes // (BYTES_PER_PIXEL * settings.height * settings.width)))


def process_of(run: Run) -> EDM:
  """The scheduler's levels. ValueError where it is none that this U-Net is sampled by."""
  tree = run.json(_SCHEDULER)
  for field, value in _SCHEDULE.items():
    if tree.get(field) != value:
      raise ValueError(f'{run.folder / _SCHEDULER} has {field}={tree.get(field)!r}; {run.published.name} is sampled with '
                       f'{value!r}')
  return EDM(tree['sigma_min'], tree['sigma_max'], sigma_data=1.0)


def levels(process: EDM, num_steps: int) -> Float[np.ndarray, 'steps']:
  """Deviations from sigma_max to sigma_min, evenly spaced in their 7th root, and 0; as levels of the process."""
  ends = np.array([process.sigma_max, process.sigma_min]) ** (1 / process.rho)
  sigma = np.linspace(*ends, num_steps) ** process.rho
  return np.asarray(process.level(np.append(sigma, 0.0).astype(np.float32))).clip(0, 1)


@jax.jit
def _encode(vae: SVDVAE, pixels_HWC):
  return vae.encode(pixels_HWC[None, None])[0][:, 0]


@functools.partial(jax.jit, static_argnums=2)
def _embed(tower: ClipVision, pictures_BHWC, dtype: str):
  return tower(pictures_BHWC, dtype).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=('process', 'dtype'))
def sample(unet: SVDUNet, noise: Float[Array, 'b t h w c'] | np.ndarray, first: Float[Array, 'b h w c'] | np.ndarray,
           vector: Float[Array, 'b e'] | np.ndarray, conditions: Float[Array, 'b 3'] | np.ndarray,
           levels: Float[Array, 'steps'] | np.ndarray, scales: Float[Array, 't'] | np.ndarray | None, process: EDM,
           dtype: str) -> Float[Array, 'b t h w c']:
  """All steps from noise to scaled latents, as one program; with and without the picture one after another through the
  network, which stands in the program once. scales: of the frames' guidance; None is none."""
  noise, first, vector, conditions = (layers.reshard(jnp.asarray(x, jnp.float32), sharding.B)
                                      for x in (noise, first, vector, conditions))
  given = jax.tree.map(lambda x: layers.reshard(jnp.stack([x, jnp.zeros_like(x)]), sharding.stacked(sharding.B)),
                       (first, vector))

  def predict(x, level, first, vector):
    return -denoised(unet, process, x, jnp.broadcast_to(level, len(x)), first, vector.astype(dtype), conditions)

  def evaluate(x, level):
    return tuple(jax.lax.map(lambda given: predict(x, level, *given), given))
  denoise = lambda x, level: predict(x, level, first, vector)
  if scales is not None:
    denoise = guidance.guided_by(evaluate, (scales[None, :, None, None, None],))
  x = noise * np.sqrt(process.sigma_max ** 2 + 1)
  return samplers.euler(denoise, x, levels, process=process, prediction='edm')


def denoised(unet: Callable, process: EDM, x: Float[Array, 'b t h w c'], level_B: Float[Array, 'b'],
             first: Float[Array, 'b h w c'], vector: Float[Array, 'b e'], conditions: Float[Array, 'b 3']
             ) -> Float[Array, 'b t h w c']:
  """v, which is -F of Karras et al. 2022 with data of unit variance; computed in the vector's dtype."""
  scale = process.input_scale(level_B)[:, None, None, None, None]
  first = jnp.broadcast_to(first[:, None], (*x.shape[:4], first.shape[-1]))
  seen = jnp.concatenate([x * scale, first], -1)
  return unet(seen, 0.25 * jnp.log(process.sigma(level_B)), vector[:, None], conditions)


SVD = Published(
    name='Stable Video Diffusion', class_names=('StableVideoDiffusionPipeline',), pipeline=SVDPipeline,
    tasks=('image to video',), licence='Stability AI Community License',
    small=('scheduler', 'feature_extractor'), beside=stable_video_diffusion.BESIDE, in_code=IN_CODE, parts={
        'unet': Part('UNetSpatioTemporalConditionModel', SVDUNetConfig,
                     lambda config, rngs: SVDUNet(config, rngs=rngs), svd_unet.table, svd_unet.IGNORED,
                     original=stable_video_diffusion.UNET),
        'vae': Part('AutoencoderKLTemporalDecoder', SVDVAEConfig, lambda config, rngs: SVDVAE(config, rngs=rngs),
                    svd_vae.table, svd_vae.IGNORED, on_mesh=False, original=stable_video_diffusion.VAE),
        'image_encoder': dataclasses.replace(clip_vision.PART, original=stable_video_diffusion.IMAGES)})
