"""Rows of tokens denoised together: the sampler, the guidance and the network meet here.

Every token has a schedule of its own: text and given tokens stay at 0, sound and picture fall from 1 to 0 along levels
shifted for their modality. Guidance compares two rows that hold the same media tokens in the same places under two
texts.
"""
import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PRNGKeyArray

from veojax import sharding
from veojax.diffusion import guidance, samplers, timesteps
from veojax.diffusion.objective import Objective
from veojax.models import dit, layers
from veojax.types import AUDIO, GIVEN, VIDEO, Tokens

SAMPLERS = {'ddpm': samplers.ddpm, 'ddim': samplers.ddim, 'euler': samplers.euler, 'heun': samplers.heun,
            'dpmpp_2m': samplers.dpmpp_2m}


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  sampler: Literal['ddpm', 'ddim', 'euler', 'heun', 'dpmpp_2m'] = 'euler'
  num_inference_steps: int = 30
  guidance_scale: float = 3.0
  audio_guidance_scale: float | None = None  # None: as for the picture
  guidance_rescale: float = 0.0
  guidance_interval: tuple[float, float] | None = None  # noise levels (low, high] that are guided; None: all
  video_shift: float = 1.0
  audio_shift: float = 1.0
  spacing: Literal['uniform', 'quadratic', 'linear_quadratic'] = 'uniform'
  strength: float = 1.0  # the level to begin at, from what stands there: below 1 an edit (Meng et al. 2022, SDEdit)

  def __post_init__(self):
    if not 0 < self.strength <= 1:
      raise ValueError(f'strength={self.strength}; give a number above 0 (keep all) up to 1 (keep nothing)')
    if self.num_inference_steps < 1:
      raise ValueError(f'num_inference_steps={self.num_inference_steps}; sampling takes at least 1 step')
    for name in ('video_shift', 'audio_shift'):
      if not getattr(self, name) > 0:
        raise ValueError(f'{name}={getattr(self, name)}; give a positive number, 1 for none')
    if not 0 <= self.guidance_rescale <= 1:
      raise ValueError(f'guidance_rescale={self.guidance_rescale}; give 0 (none) to 1')


def schedule(tokens: Tokens, config: SamplingConfig) -> Float[Array, 'steps b l 1']:
  """Levels of every token of numpy rows; 0 all along for what is given and for what is not sound or picture."""
  modality_BL1 = np.asarray(tokens.modality)[..., None]
  given_BL1 = np.take_along_axis(np.asarray(tokens.group_level), np.asarray(tokens.group), 1)[..., None] == GIVEN
  shift = np.where(modality_BL1 == AUDIO, config.audio_shift, config.video_shift).astype(np.float32)
  made = timesteps.levels(config.num_inference_steps, shift, config.spacing)
  return jnp.where(((modality_BL1 >= AUDIO) & ~given_BL1)[None], config.strength * made, 0.0)


def scales(tokens: Tokens, config: SamplingConfig):
  """Guidance scale of every token, or the number 1 where nothing is guided."""
  audio = config.guidance_scale if config.audio_guidance_scale is None else config.audio_guidance_scale
  if config.guidance_scale == audio == 1:
    return 1.0
  return guidance.by_modality(tokens.modality, video=config.guidance_scale, audio=audio)


def first_of_group(tokens: Tokens) -> np.ndarray:
  """int32[B, G]: a token of each group, where its level can be read; 0 for groups without tokens."""
  B, G = tokens.group_modality.shape
  first = np.zeros((B, G), np.int32)
  for b in range(B):
    groups, index = np.unique(np.asarray(tokens.group[b]), return_index=True)
    first[b, groups] = index
  return first


def denoiser(model, tokens: Tokens, first_BG, process):
  """denoise(x, t) of the network under `tokens`' text: x at each token's level t[B, L, 1] → the raw prediction."""
  def denoise(x_BLC, t_BL1):
    noise_BG = layers.take(t_BL1[..., 0], first_BG, sharding.B)
    return model(tokens._replace(latent=process.input_scale(t_BL1) * x_BLC), noise_BG)
  return denoise


@functools.partial(jax.jit, static_argnames=('objective', 'config'))
def sample_rows(model, tokens, unguided, first_BG, first_unguided_BG, x_BLC, levels, key, *, objective, config):
  """What `sample` runs on the devices: all steps as one program."""
  process = objective.make_process()
  denoise = guidance.guided(
      denoiser(model, tokens, first_BG, process), denoiser(model, unguided, first_unguided_BG, process),
      scales(tokens, config), config.guidance_rescale, config.guidance_interval, group=tokens.group,
      num_groups=tokens.group_modality.shape[1], where=channels_of(tokens, model.config))
  return SAMPLERS[config.sampler](denoise, x_BLC, levels, process=process, prediction=objective.prediction, key=key)


def channels_of(tokens: Tokens, config) -> Array:
  """bool[B, L, C]: the channels that a token's modality has."""
  channel = jnp.arange(tokens.latent.shape[-1])[None, None]
  modality = tokens.modality[..., None]
  return (((modality == VIDEO) & (channel < config.video_channels))
          | ((modality == AUDIO) & (channel < config.audio_channels)))


def sample(model, tokens: Tokens, unguided: Tokens, noise_BLC, key: PRNGKeyArray, *, objective: Objective,
           config: SamplingConfig) -> np.ndarray:
  """Denoises numpy rows: float32[B, L, C] latents of all media tokens.

  `unguided` holds the same media tokens in the same places under the texts to be guided away from. Noise is given, so
  that a clip's noise does not depend on the rows around it. Raises ValueError where sampler, process and prediction do
  not go together, and FloatingPointError where the result is not finite.
  """
  num_rows = len(tokens.latent)
  tokens, unguided, noise_BLC = (_filled(x) for x in (tokens, unguided, noise_BLC))
  first_BG, first_unguided_BG, levels = first_of_group(tokens), first_of_group(unguided), schedule(tokens, config)
  levels = place(levels, P(None, *sharding.BLD))
  tokens, unguided = (Tokens(*map(place, x, dit.TOKEN_SPECS)) for x in (tokens, unguided))
  x_BLC = objective.make_process().add_noise(tokens.latent, place(noise_BLC, sharding.BLD), levels[0])
  out = sample_rows(model, tokens, unguided, place(first_BG, sharding.B), place(first_unguided_BG, sharding.B), x_BLC,
                    levels, key, objective=objective, config=config)
  out = np.asarray(out)[:num_rows]
  if not np.isfinite(out).all():
    raise FloatingPointError('the sampled latents are not finite: '
                             'the model has diverged, or the guidance is far too strong')
  return out


def place(x, spec):
  """A host array on the devices of the mesh in force."""
  return jax.device_put(x, sharding.named(jax.sharding.get_mesh(), spec))


def _filled(tree):
  """Rows repeated up to a number that divides over the mesh."""
  mesh = jax.sharding.get_mesh()
  parts = math.prod(mesh.shape[axis] for axis in sharding.ROWS)
  return jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], -len(x) % parts, 0)]), tree)
