"""Rows of tokens denoised together: the sampler, the guidance and the network meet here.

Every token has a schedule of its own: text and given tokens stay at 0, sound and picture fall from 1 to 0 along levels
shifted for their modality. Guidance compares evaluations of the same media tokens in the same places: see `rows`.
Every row has scales and shifts of its own; what else there is of settings is one for all rows of a batch (`kind`).
"""
import dataclasses
import functools
from collections.abc import Hashable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from veojax import processes, sharding
from veojax.data.latent_clip import LatentClip
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
  modality_guidance_scale: float = 1.0  # above 1, picture and sound follow each other more closely
  guidance_in_turn: bool = False  # evaluations one after another, not in one batch: less memory
  guidance_rescale: float = 0.0
  guidance_interval: tuple[float, float] | None = None  # noise levels (low, high] that are guided; None: all
  video_shift: float = 1.0
  audio_shift: float = 1.0
  audio_lag: float = 0.0  # of the time, how far the sound is behind the picture, where both are made
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
    timesteps.check_lag(self.audio_lag)
    if not 0 <= self.guidance_rescale <= 1:
      raise ValueError(f'guidance_rescale={self.guidance_rescale}; give 0 (none) to 1')


def schedule(tokens: Tokens, configs: Sequence[SamplingConfig]) -> Float[Array, 'steps b l 1']:
  """Levels of every token of numpy rows; 0 all along for what is given and for what is not sound or picture. configs:
  one a row, of one `kind`."""
  modality_BL1 = np.asarray(tokens.modality)[..., None]
  given_BL1 = np.take_along_axis(np.asarray(tokens.group_level), np.asarray(tokens.group), 1)[..., None] == GIVEN
  audio_B11, video_B11, lag_B11 = (np.array([getattr(config, name) for config in configs], np.float32)[:, None, None]
                                   for name in ('audio_shift', 'video_shift', 'audio_lag'))
  one, shift = configs[0], np.where(modality_BL1 == AUDIO, audio_B11, video_B11)
  made = timesteps.levels(one.num_inference_steps, shift, one.spacing, *timesteps.part(modality_BL1 == AUDIO, lag_B11))
  return jnp.where(((modality_BL1 >= AUDIO) & ~given_BL1)[None], one.strength * made, 0.0)


def away_from(config: SamplingConfig) -> dict[str, tuple[float, float]]:
  """The evaluations that guidance leads away from, of `rows`, with its scales for picture and sound."""
  audio = config.guidance_scale if config.audio_guidance_scale is None else config.audio_guidance_scale
  both = {'text': (config.guidance_scale, audio), 'modality': (config.modality_guidance_scale,) * 2}
  return {name: scales for name, scales in both.items() if scales != (1, 1)}


def scales(modality_BL, configs: Sequence[SamplingConfig]) -> list[Float[Array, 'b l 1']]:
  """For each of `away_from` the guidance scale of every token. configs: one a row, of one `kind`."""
  away = [away_from(config) for config in configs]
  pairs_B2 = [np.array([of_row[name] for of_row in away], np.float32) for name in away[0]]
  return [guidance.by_modality(modality_BL, video=pair_B2[:, :1], audio=pair_B2[:, 1:]) for pair_B2 in pairs_B2]


def for_clip(clip: LatentClip, config: SamplingConfig) -> SamplingConfig:
  """The config without guidance between picture and sound where a clip does not have both, and without a lag of the
  sound where not both are made."""
  parts = (clip.video, clip.video_given), (clip.audio, clip.audio_given)
  if any(latent is None for latent, _ in parts):
    config = dataclasses.replace(config, modality_guidance_scale=1.0)
  made = all(latent is not None and (given is None or not given.all()) for latent, given in parts)
  return config if made else dataclasses.replace(config, audio_lag=0.0)


def network_calls(config: SamplingConfig) -> int:
  """Evaluations of the network for a row."""
  return config.num_inference_steps * (2 if config.sampler == 'heun' else 1) * (1 + len(away_from(config)))


def program(config: SamplingConfig) -> SamplingConfig:
  """What of the config is compiled in. The rest is data, or the shape of data: no scale or shift compiles anew."""
  return SamplingConfig(config.sampler, guidance_rescale=config.guidance_rescale,
                        guidance_interval=config.guidance_interval, guidance_in_turn=config.guidance_in_turn)


def kind(config: SamplingConfig) -> Hashable:
  """Equal for configs whose rows one call may denoise: all of a config but how large its scales and shifts are."""
  own = {'guidance_scale': 1., 'audio_guidance_scale': None, 'modality_guidance_scale': 1., 'video_shift': 1.,
         'audio_shift': 1., 'audio_lag': 0.}
  return dataclasses.replace(config, **own), tuple(away_from(config))


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


def split_denoiser(model, evaluations: list[Tokens], firsts_BG: list, process):
  """denoise(x, t) → a prediction of each of several evaluations, all as one batch of the network, whose rows the mesh
  splits. x, t and the predictions are small: they lie with all rows on every part, whatever their number."""
  num_rows = len(firsts_BG[0])

  def batch(arrays, spec):
    rows = jnp.concatenate([layers.reshard(x, sharding.whole_rows(spec)) for x in arrays])
    filling = -len(rows) % sharding.num_row_parts()
    return layers.reshard(jnp.concatenate([rows, *[rows[-1:]] * filling]), spec)
  tokens = Tokens(*(batch(arrays, spec) for arrays, spec in zip(zip(*evaluations), dit.TOKEN_SPECS)))
  network = denoiser(model, tokens, batch(firsts_BG, sharding.B), process)

  def denoise(x_BLC, t_BL1):
    out = network(*(batch([a] * len(evaluations), sharding.BLD) for a in (x_BLC, t_BL1)))
    out = layers.reshard(out, sharding.whole_rows(sharding.BLD))
    return tuple(out[i * num_rows:(i + 1) * num_rows] for i in range(len(evaluations)))
  return denoise


@functools.partial(jax.jit, static_argnames=('objective', 'config'))
def sample_rows(model, evaluations, firsts_BG, x_BLC, levels, scales, key_B, *, objective, config):
  """What `denoise` runs on the devices: all steps as one program. config: of `program`."""
  process = objective.make_process()
  of_rows = functools.partial(split_denoiser, model, process=process)
  if config.guidance_in_turn:
    each = [of_rows([rows], [first_BG]) for rows, first_BG in zip(evaluations, firsts_BG)]
    evaluate = lambda x, t: sum((one(x, t) for one in each), ())
  else:
    evaluate = of_rows(evaluations, firsts_BG)
  tokens = evaluations[0]
  denoise = guidance.guided_by(
      evaluate, scales, config.guidance_rescale, config.guidance_interval, group=tokens.group,
      num_groups=tokens.group_modality.shape[1], where=channels_of(tokens, model.config))
  return SAMPLERS[config.sampler](denoise, x_BLC, levels, process=process, prediction=objective.prediction, key=key_B)


def channels_of(tokens: Tokens, config) -> Array:
  """bool[B, L, C]: the channels that a token's modality has."""
  channel = jnp.arange(tokens.latent.shape[-1])[None, None]
  modality = tokens.modality[..., None]
  return (((modality == VIDEO) & (channel < config.video_channels))
          | ((modality == AUDIO) & (channel < config.audio_channels)))


def sample(model, evaluations: list[Tokens], key_B: Key[Array, 'b'], *, objective: Objective,
           configs: Sequence[SamplingConfig]) -> np.ndarray:
  """Denoises numpy rows: float32[B, L, C] latents of all media tokens.

  evaluations: of `rows.evaluations` with the names of `away_from`. configs: one a row, of one `kind`. All noise of a
  row is drawn from the row's own key, so that it does not depend on the rows beside it. Errors: as of `denoise`.
  """
  tokens = evaluations[0]
  noise_BLC = np.stack([jax.random.normal(key, tokens.latent.shape[1:]) for key in key_B])
  levels = schedule(tokens, configs)
  x_BLC = objective.make_process().add_noise(jnp.asarray(tokens.latent), jnp.asarray(noise_BLC), levels[0])
  return denoise(model, evaluations, np.asarray(x_BLC), np.asarray(levels), key_B, objective=objective,
                 configs=configs)


def denoise(model, evaluations: list[Tokens], x_BLC: np.ndarray, levels: np.ndarray, key_B: Key[Array, 'b'], *,
            objective: Objective, configs: Sequence[SamplingConfig]) -> np.ndarray:
  """x at levels[0] brought to levels[-1], float32[B, L, C]; levels: float32[steps + 1, B, L, 1]; configs: one a row,
  of one `kind`.

  Raises ValueError where sampler, process and prediction do not go together, and FloatingPointError where the result is
  not finite.
  """
  firsts_BG = [place(first_of_group(rows), sharding.B) for rows in evaluations]
  evaluations = [Tokens(*map(place, rows, dit.TOKEN_SPECS)) for rows in evaluations]
  spec = sharding.stacked(sharding.whole_rows(sharding.BLD))
  levels = jax.device_put(levels, sharding.named(jax.sharding.get_mesh(), spec))
  out = sample_rows(model, evaluations, firsts_BG, place(x_BLC, sharding.BLD), levels,
                    scales(evaluations[0].modality, configs), place(key_B, sharding.B), objective=objective,
                    config=program(configs[0]))
  out = processes.fetch(out)
  if not np.isfinite(out).all():
    raise FloatingPointError('the sampled latents are not finite: '
                             'the model has diverged, or the guidance is far too strong')
  return out


def place(x, spec):
  """Rows of the host on the devices of the mesh in force, all rows on every part that takes rows."""
  return jax.device_put(x, sharding.named(jax.sharding.get_mesh(), sharding.whole_rows(spec)))
