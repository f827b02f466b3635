"""The diffusion loss over packed rows: where the theory of `diffusion` meets the network.

E | f(x_t, t) - target |², x_t = alpha(t) x0 + sigma(t) eps, over the sound and picture tokens of every segment. With
prediction 'eps' under a variance-preserving process this is DDPM's L_simple (Ho et al. 2020, eq. 14); with 'flow' under
the rectified flow it is Liu et al. 2022, eq. 1.
"""
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from veojax import sharding
from veojax.diffusion import predictions, timesteps, weighting
from veojax.diffusion.objective import Objective
from veojax.models import layers
from veojax.types import AUDIO, GIVEN, VIDEO, Tokens


@dataclasses.dataclass(frozen=True)
class LossConfig:
  timesteps: Literal['uniform', 'logit_normal'] = 'logit_normal'
  logit_mean: float = 0.0
  logit_std: float = 1.0
  video_shift: float = 1.0  # t → s t / (1 + (s - 1) t); more noise for s > 1
  audio_shift: float = 1.0
  joint: bool = True        # sound and picture of a clip drawn at one time, before their own shifts
  audio_lag: float = 0.0    # joint: of that time, how far the sound is behind the picture, where both are made
  video_weight: float = 1.0
  audio_weight: float = 1.0
  mean_over: Literal['clips', 'tokens'] = 'clips'  # a clip of many tokens weighs as one, or as many
  weighting: Literal['none', 'min_snr'] = 'none'  # of the noise levels
  min_snr_gamma: float = 5.0

  def __post_init__(self):
    timesteps.check_lag(self.audio_lag)
    if self.audio_lag and not self.joint:
      raise ValueError(f'audio_lag={self.audio_lag} with joint=False, which draws sound and picture each for itself; leave '
                       'one of them out')


def draw_levels(key: PRNGKeyArray, tokens: Tokens, config: LossConfig) -> Float[Array, 'b g']:
  """A noise level for every group: the time of its `group_level`, shifted for its modality; 0 for what is given, for
  text and for padding. Where the sound lags, 1 for sound that has not begun and 0 for picture that is done."""
  B, G = tokens.group_modality.shape
  spec = sharding.in_force(sharding.B)
  if config.timesteps == 'uniform':
    u_BG = timesteps.uniform(key, (B, G), out_sharding=spec)
  else:
    u_BG = timesteps.logit_normal(key, (B, G), config.logit_mean, config.logit_std, out_sharding=spec)
  if config.joint:
    u_BG = layers.take(u_BG, jnp.maximum(tokens.group_level, 0), sharding.B)
    if config.audio_lag:
      lag_BG = config.audio_lag * both_made(tokens)
      u_BG = timesteps.within(u_BG, *timesteps.part(tokens.group_modality == AUDIO, lag_BG))
  video, audio = (timesteps.shift(u_BG, s) for s in (config.video_shift, config.audio_shift))
  level_BG = jnp.where(tokens.group_modality == VIDEO, video, jnp.where(tokens.group_modality == AUDIO, audio, 0.0))
  return jnp.where(tokens.group_level == GIVEN, 0.0, level_BG)


def both_made(tokens: Tokens) -> Bool[Array, 'b g']:
  """Whether both sound and picture are made, in some part, of the segment that a group belongs to."""
  made_BG = tokens.group_level != GIVEN
  same_BGG = jnp.equal(tokens.group_segment[:, :, None], tokens.group_segment[:, None, :])
  of = lambda modality: (same_BGG & (made_BG & (tokens.group_modality == modality))[:, None]).any(-1)
  return of(VIDEO) & of(AUDIO)


def diffusion_loss(model, tokens: Tokens, key: PRNGKeyArray, config: LossConfig, objective: Objective):
  """(loss, metrics). Means are over clips or tokens, and channels, of each modality; tokens at noise 0 are given and
  cost nothing, nor do those at noise 1, whose time has not come."""
  process = objective.make_process()
  key_t, key_eps = jax.random.split(key)
  noise_BG = draw_levels(key_t, tokens, config)
  t_BL1 = layers.take(noise_BG, tokens.group, sharding.BL)[..., None]
  x0_BLC = jnp.asarray(tokens.latent, jnp.float32)
  eps_BLC = jax.random.normal(key_eps, x0_BLC.shape, out_sharding=sharding.in_force(sharding.BLD))
  x_BLC = process.add_noise(x0_BLC, eps_BLC, t_BL1)
  output_BLC = model(tokens._replace(latent=process.input_scale(t_BL1) * x_BLC), noise_BG)
  target_BLC = predictions.target(objective.prediction, process, x0_BLC, eps_BLC, t_BL1)
  error_BLC = jnp.square(output_BLC - target_BLC)
  if config.weighting == 'min_snr':
    error_BLC *= weighting.min_snr(objective.prediction, process, t_BL1, config.min_snr_gamma)
  metrics, loss = {}, 0.0
  for name, modality, channels, weight in (('video', VIDEO, model.config.video_channels, config.video_weight),
                                           ('audio', AUDIO, model.config.audio_channels, config.audio_weight)):
    mask_BL = ((tokens.modality == modality) & (t_BL1[..., 0] > 0) & (t_BL1[..., 0] < 1)).astype(jnp.float32)
    share_BL = mask_BL if config.mean_over == 'tokens' else shares(mask_BL, tokens)
    mean = jnp.sum(error_BLC[..., :channels].mean(-1) * share_BL) / jnp.maximum(jnp.sum(share_BL), 1.0)
    metrics[f'{name}_loss'] = mean
    loss += weight * mean
  return loss, metrics


def shares(mask_BL: Float[Array, 'b l'], tokens: Tokens) -> Float[Array, 'b l']:
  """The mask with each segment's ones made to sum to 1."""
  # A row has fewer segments than groups.
  segment_BLG = jax.nn.one_hot(tokens.segment, tokens.group_segment.shape[1])
  count_BG = jnp.einsum('bl,blg->bg', mask_BL, segment_BLG, out_sharding=sharding.in_force(sharding.B))
  return mask_BL / jnp.maximum(layers.take(count_BG, tokens.segment, sharding.BL), 1.0)
