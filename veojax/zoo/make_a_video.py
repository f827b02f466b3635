"""Make-A-Video (Singer et al. 2022): text to video that was learned from pictures with captions and from video without.

  y = SR_h ∘ SR_l^t ∘ ↑F ∘ D^t ∘ P (text), section 3: the prior makes a picture's embedding of the text
  (`make_a_video_prior`), the decoder small frames at a low rate, frame interpolation the frames between them, and
  super-resolution larger ones; first over space and time, then over space alone, from the same noise for every frame,
  so that what it makes up is the same in each (3.2).

All are U-Nets of pixels (`make_a_video_unet`). Frame interpolation (3.3) is given every `factor`-th frame, and a
channel that says which; they come back as they were. Super-resolution is given the small frames, enlarged, with a
little noise, whose level it is told (Ho et al. 2021, cascades).

There are no published weights; `veojax train --config configs/make_a_video.py` makes each part.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from veojax import sharding
from veojax.diffusion import guidance, predictions, samplers
from veojax.diffusion.objective import Objective
from veojax.models import conv, layers
from veojax.models.conv import Video
from veojax.zoo.make_a_video_unet import CHANNELS, UNetConfig

SAMPLERS = {'ddim': samplers.ddim, 'ddpm': samplers.ddpm, 'heun': samplers.heun, 'dpmpp_2m': samplers.dpmpp_2m}
Network = Callable[..., Array]  # as of ImageUNet
GIVEN = {'decoder': 0, 'interpolation': CHANNELS + 1, 'super_resolution': CHANNELS}  # channels


@dataclasses.dataclass(frozen=True)
class PartConfig:
  """One network. num_frames, height, width: of the clips that it makes; of one frame it is a network of frames alone.
  factor: frames of interpolation to one that it is given, or pixels of a side of super-resolution to one that it is
  given. dtype: of its computation."""
  kind: Literal['decoder', 'interpolation', 'super_resolution']
  unet: UNetConfig
  num_frames: int
  height: int
  width: int
  factor: int = 1
  objective: Objective = Objective('vp_cosine', 'eps')
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    if min(self.num_frames, self.height, self.width, self.factor) < 1:
      raise ValueError(f'num_frames={self.num_frames}, height={self.height}, width={self.width}, factor={self.factor}; '
                       'give positive numbers')
    if self.height % self.unet.stride or self.width % self.unet.stride:
      raise ValueError(f'height={self.height}, width={self.width}; {len(self.unet.widths)} stages take multiples of '
                       f'{self.unet.stride}')
    if self.unet.given_channels != GIVEN[self.kind]:
      raise ValueError(f'given_channels={self.unet.given_channels}; a network for {self.kind} has {GIVEN[self.kind]}')
    if self.kind == 'interpolation' and (self.factor < 2 or self.num_frames < 2 or (self.num_frames - 1) % self.factor):
      raise ValueError(f'interpolation of num_frames={self.num_frames} with factor={self.factor}; give 1 + a multiple of '
                       'the factor, which is at least 2')
    if self.kind == 'super_resolution' and (self.factor < 2 or self.height % self.factor or self.width % self.factor):
      raise ValueError(f'super_resolution of height={self.height}, width={self.width} with factor={self.factor}; give '
                       'multiples of the factor, which is at least 2')


@dataclasses.dataclass(frozen=True)
class CascadeSettings:
  """What `generate` takes. guidance_scale: of the decoder and of interpolation towards the embedding; prior_guidance_scale:
  of the prior towards the text. given_noise: level of the noise in what super-resolution is given. rows: clips, or
  pieces of them, that a network makes at once."""
  num_inference_steps: int = 50
  guidance_scale: float = 3.0
  prior_steps: int = 32
  prior_guidance_scale: float = 1.0
  sampler: Literal['ddim', 'ddpm', 'heun', 'dpmpp_2m'] = 'ddim'
  given_noise: float = 0.0
  rows: int = 8

  def __post_init__(self):
    if min(self.num_inference_steps, self.prior_steps, self.rows) < 1 or not 0 <= self.given_noise < 1:
      raise ValueError(f'num_inference_steps={self.num_inference_steps}, prior_steps={self.prior_steps}, '
                       f'rows={self.rows}, given_noise={self.given_noise}; give positive numbers, and a level in [0, 1)')


def check_objective(objective: Objective):
  """ValueError where sampling could not begin at noise."""
  predictions.check_sampling(objective.prediction, objective.make_process(), jnp.asarray([1.0, 0.0]))


def masked(frames_BTHWC: Float[Array, 'b t h w 3'], given_T: Bool[Array, 't']) -> Float[Array, 'b t h w 4']:
  """What interpolation is given: the frames, zeros for those to be made; and where they are."""
  mask_1T111 = given_T.astype(frames_BTHWC.dtype)[None, :, None, None, None]
  where = jnp.broadcast_to(mask_1T111, (*frames_BTHWC.shape[:-1], 1),
                           out_sharding=sharding.in_force(sharding.B))
  return jnp.concatenate([frames_BTHWC * mask_1T111, where], -1)


def reduced(x_BTHWC: Video, factor: int) -> Video:
  """Means over squares of pixels."""
  B, T, H, W, C = x_BTHWC.shape
  return conv.reshape(x_BTHWC, B, T, H // factor, factor, W // factor, factor, C).mean((3, 5))


def enlarged(x_BTHWC: Video, factor: int) -> Video:
  """Each pixel as a square of them."""
  B, T, H, W, C = x_BTHWC.shape
  x = jnp.broadcast_to(x_BTHWC[:, :, :, None, :, None], (B, T, H, factor, W, factor, C))
  return conv.reshape(x, B, T, H * factor, W * factor, C)


def predict(network: Network, process, x, given, level_B, condition_BE, fps_B) -> Float[Array, 'b t h w 3']:
  """The raw prediction of noisy frames, with what is given of them."""
  scaled = process.input_scale(level_B[:, None, None, None, None]) * x
  return network(scaled if given is None else jnp.concatenate([scaled, given], -1), level_B, condition_BE, fps_B)


@functools.partial(jax.jit, static_argnames=('objective', 'sampler', 'guided'))
def sample(network: Network, noise: Float[Array, 'b t h w 3'], given: Float[Array, 'b t h w g'] | None,
           condition_BE: Float[Array, 'b e'], fps_B: Float[Array, 'b'], levels: Float[Array, 'n'],
           scale: Float[Array, ''] | float, key_B: Key[Array, 'b'], objective: Objective, sampler: str,
           guided: bool) -> Float[Array, 'b t h w 3']:
  """Frames in [-1, 1]: all steps from the noise on, as one program. Guidance leads away from no condition; what the
  frames are taken for at each step stays within their range."""
  process, rows = objective.make_process(), sharding.in_force(sharding.B)

  def evaluate(x, t):
    level_B = jnp.broadcast_to(t, (len(x),), out_sharding=rows)
    shares = (1.0, 0.0) if guided else (1.0,)
    return [predict(network, process, x, given, level_B, (share * condition_BE).astype(condition_BE.dtype), fps_B)
            for share in shares]
  denoise = guidance.guided_by(evaluate, (scale,) if guided else ())

  def clean(x, t):
    return jnp.clip(predictions.to_x0(objective.prediction, process, x, t, denoise(x, t)), -1, 1)
  x = process.sigma(levels[0]) * layers.reshard(noise, sharding.B)
  return SAMPLERS[sampler](clean, x, levels, process=process, prediction='x0', key=key_B)
