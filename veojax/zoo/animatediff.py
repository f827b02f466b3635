"""AnimateDiff (Guo et al. 2023): text to video by motion modules on Stable Diffusion 1.5, with changes of the motion
(MotionLoRA) and with given frames (SparseCtrl, Guo et al. 2023).

A run is made of Stable Diffusion and of a motion adapter, of either diffusers' folder or the makers' file (`veojax
convert --source SD --motion_adapter ADAPTER [--controlnet SPARSECTRL]`), or of a folder that AnimateDiffPipeline has
saved, whose U-Net holds the motion modules. As published: 16 frames of 512 × 512, DDIM on linear betas from .00085 to
.012 with steps spaced evenly over all 1000 ('linspace') and no clipping, guidance 7.5. A saved pipeline has its own
scheduler.
"""
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from veojax import processes, sharding
from veojax.diffusion import guidance
from veojax.models import layers
from veojax.zoo import animatediff_unet as unet
from veojax.zoo import clip_text, ddim, kl_vae, lora, motion_module, sparse_control, stable_diffusion
from veojax.zoo.animatediff_unet import MotionUNet, MotionUNetConfig
from veojax.zoo.clip_tokenizer import ClipTokenizer
from veojax.zoo.ddim import Plan, Schedule
from veojax.zoo.kl_codec import KLCodec
from veojax.zoo.kl_vae import KLVAE, KLVAEConfig
from veojax.zoo.motion_module import MotionConfig, MotionModules
from veojax.zoo.published import Original, Part, Published, Run
from veojax.zoo.sparse_control import SparseControl, SparseControlConfig


@dataclasses.dataclass(frozen=True)
class AnimateDiffSettings:
  """What `generate` takes. lora: {path: weight} of MotionLoRA's files, or one path. dtype: of U-Net and text encoder.
  chunk: frames decoded at once."""
  num_frames: int = 16
  height: int = 512
  width: int = 512
  fps: float = 8.0
  num_inference_steps: int = 50
  guidance_scale: float = 7.5
  negative_prompt: str = ''
  lora: dict | str = dataclasses.field(default_factory=dict)
  dtype: Literal['float32', 'bfloat16'] = 'bfloat16'
  chunk: int = 4

  def __post_init__(self):
    if isinstance(self.lora, str):
      object.__setattr__(self, 'lora', {self.lora: 1.0} if self.lora else {})
    if not isinstance(self.lora, Mapping) or not all(isinstance(w, (int, float)) for w in self.lora.values()):
      raise ValueError(f'lora={self.lora!r}; give a path, or a mapping of paths to weights')
    if min(self.height, self.width) < 8 or self.height % 8 or self.width % 8:
      raise ValueError(f'height={self.height}, width={self.width}; give multiples of 8')
    if not self.fps > 0 or min(self.num_frames, self.num_inference_steps, self.chunk) < 1:
      raise ValueError(f'num_frames={self.num_frames}, fps={self.fps}, num_inference_steps={self.num_inference_steps}, '
                       f'chunk={self.chunk}; give positive numbers')


@dataclasses.dataclass(frozen=True)
class SparseControlSettings(AnimateDiffSettings):
  """conditioning_scale: of what the given frames add."""
  conditioning_scale: float = 1.0


class AnimateDiffPipeline:
  """A converted AnimateDiff; `zoo.published.Pipeline` says what is asked of it."""
  settings = AnimateDiffSettings()
  given = {}
  takes_prompt = True

  def __init__(self, run: Run):
    self.run = run
    self.tokenizer = ClipTokenizer.load(run.folder / 'tokenizer')
    self.schedule = schedule_of(run)
    config = run.configs['unet']
    self.image, self.motion = (config.image, config.motion) if isinstance(config, MotionUNetConfig) else (
        config, run.configs['motion_adapter'])
    unet.check_fits(self.motion, self.image)
    if self.image.in_channels != self.image.out_channels:
      raise ValueError(f'a U-Net of {self.image.in_channels} channels in and {self.image.out_channels} out paints over '
                       'pictures; give one that makes them')
    self._merged = None, None

  def sizes(self) -> dict[str, str]:
    return {'sizes': f'num_frames up to {self.motion.motion_max_seq_length}, trained at 16; height and width multiples '
                     'of 8, trained at 512 × 512'}

  def noise_shape(self, settings: AnimateDiffSettings) -> tuple[int, int, int, int]:
    if settings.num_frames > self.motion.motion_max_seq_length:
      raise ValueError(f'num_frames={settings.num_frames}; the motion modules count up to '
                       f'{self.motion.motion_max_seq_length} frames')
    sc = self.run.configs['vae'].spatial_compression
    return settings.num_frames, settings.height // sc, settings.width // sc, self.image.in_channels

  def __call__(self, prompts: Sequence[str], noise: Float[Array, 'b t h w c'], settings: AnimateDiffSettings, draw,
               **given) -> np.ndarray:
    """uint8[B, T, H, W, 3]."""
    plan, network = self.schedule.plan(settings.num_inference_steps), self.network(settings.lora)
    control, condition, scale = self.control(settings, **given)
    texts = [list(prompts)]
    if settings.guidance_scale != 1:
      texts.append([settings.negative_prompt] * len(prompts))
    text_KBSE = np.stack([sharding.fill_rows(self.embed(some, settings.dtype)) for some in texts])
    latents = sample(network, control, sharding.fill_rows(np.asarray(noise)), text_KBSE, condition, plan,
                     settings.guidance_scale, scale, settings.dtype)
    return self.decode(processes.fetch(latents)[:len(prompts)], settings)

  def control(self, settings):
    """(network, condition, scale) of what is given: nothing."""
    return None, None, 0.0

  def embed(self, texts: Sequence[str], dtype: str) -> np.ndarray:
    """CLIP's features float32[B, S, E] of all tokens."""
    with sharding.default_mesh():
      return clip_text.encode(self.run.parts['text_encoder'], self.tokenizer, texts, dtype)

  def network(self, changes: Mapping[str, float] = {}) -> MotionUNet:
    """The U-Net with its motion modules, and with low-rank changes added, which are kept for the next call."""
    parts = {name: self.run.parts[name] for name in ('unet', 'motion_adapter') if name == 'unet' or not self.is_one}
    wanted = jax.sharding.get_mesh(), tuple(changes.items())
    if changes and self._merged[0] != wanted:
      tables = {name: self.run.published.parts[name].table(self.run.configs[name]) for name in parts}
      self._merged = wanted, lora.merged({name: (parts[name], tables[name]) for name in parts}, list(changes.items()))
    if changes:
      parts = self._merged[1]
    return parts['unet'] if self.is_one else MotionUNet(parts['unet'], parts['motion_adapter'])

  @property
  def is_one(self) -> bool:
    """Whether the U-Net's file holds the motion modules."""
    return isinstance(self.run.configs['unet'], MotionUNetConfig)

  def codec(self, chunk: int) -> KLCodec:
    return KLCodec.of(self.run.parts['vae'], chunk)

  def decode(self, latents: np.ndarray, settings: AnimateDiffSettings) -> np.ndarray:
    codec = self.codec(settings.chunk)
    return np.stack([codec.decode(latent, settings.num_frames, settings.height, settings.width) for latent in latents])


class SparseControlPipeline(AnimateDiffPipeline):
  """With frames that are given: the first, the last, and others by their seconds."""
  settings = SparseControlSettings()
  given = {'image': False, 'last_image': False, 'keyframes': False}

  def control(self, settings: SparseControlSettings, image=None, last_image=None, keyframes=None):
    pictures = {} if image is None else {0: image}
    if last_image is not None:
      pictures[settings.num_frames - 1] = last_image
    for seconds, picture in (keyframes or {}).items():
      frame = round(float(seconds) * settings.fps)
      if not 0 <= frame < settings.num_frames:
        raise ValueError(f'a keyframe at {seconds} s lies outside the clip, which ends at '
                         f'{settings.num_frames / settings.fps:.3f} s; give a time within it')
      pictures[frame] = picture
    if not pictures:
      return None, None, 0.0
    return self.run.parts['controlnet'], self.condition(pictures, settings), settings.conditioning_scale

  def condition(self, pictures: Mapping[int, np.ndarray], settings: SparseControlSettings
                ) -> Float[np.ndarray, '1 t h w c']:
    """What the control network reads of these frames: latents or pixels, zeros elsewhere; and where they are."""
    config: SparseControlConfig = self.run.configs['controlnet']
    frames = [fitted(picture, settings.height, settings.width) for picture in pictures.values()]
    if config.use_simplified_condition_embedding:
      values = self.codec(1).encode(np.stack(frames))
    else:
      values = np.stack(frames).astype(np.float32) / 255
    condition = np.zeros((1, settings.num_frames, *values.shape[1:3], config.condition_channels), np.float32)
    if values.shape[-1] != config.conditioning_channels:
      raise ValueError(f'a control network that reads {config.conditioning_channels} channels, for pictures of '
                       f'{values.shape[-1]}; give one for pictures')
    condition[0, list(pictures), ..., :values.shape[-1]] = values
    if config.concat_conditioning_mask:
      condition[0, list(pictures), ..., -1] = 1
    return condition


def fitted(picture: np.ndarray, height: int, width: int) -> np.ndarray:
  """uint8[height, width, 3], resized where it has other sides."""
  if picture.shape[:2] == (height, width):
    return picture
  resized = jax.image.resize(jnp.asarray(picture, jnp.float32), (height, width, 3), 'lanczos3')
  return np.asarray(jnp.clip(jnp.round(resized), 0, 255), np.uint8)


_SCHEDULER = 'scheduler/scheduler_config.json'
# What motion modules are trained with.
SCHEDULE = Schedule(beta_start=0.00085, beta_end=0.012, set_alpha_to_one=False, steps_offset=1,
                    timestep_spacing='linspace')


def schedule_of(run: Run) -> Schedule:
  """The scheduler of a saved pipeline; of a Stable Diffusion, SCHEDULE with what its folder says of the ends."""
  tree, path = run.json(_SCHEDULER), run.folder / _SCHEDULER
  if 'AnimateDiff' in run.record['class_name']:
    if tree.get('_class_name') != 'DDIMScheduler':
      raise ValueError(f'{path} is that of a {tree.get("_class_name")}, and veojax samples AnimateDiff by '
                       'DDIM; save the pipeline with a DDIMScheduler')
    return Schedule.read(tree, str(path))
  names = 'num_train_timesteps', 'beta_start', 'beta_end', 'set_alpha_to_one', 'prediction_type', 'trained_betas'
  kept = {key: tree[key] for key in names if key in tree}
  return Schedule.read({**dataclasses.asdict(SCHEDULE), **kept}, str(path))


@functools.partial(jax.jit, static_argnames='dtype')
def sample(network: MotionUNet, control: SparseControl | None, noise: Float[Array, 'b t h w c'] | np.ndarray,
           text_KBSE: Float[Array, 'k b s e'] | np.ndarray, condition: Float[Array, '1 t h2 w2 d'] | np.ndarray | None,
           plan: Plan, scale: Float[Array, ''] | float, conditioning_scale: Float[Array, ''] | float,
           dtype: str) -> Float[Array, 'b t h w c']:
  """All steps from noise to latents, as one program. text_KBSE: of the prompts, and of what guidance leads away from
  where there is guidance; one after another through the network, which stands in the program once."""
  x = layers.reshard(jnp.asarray(noise, jnp.float32), sharding.B)
  text_KBSE = layers.reshard(jnp.asarray(text_KBSE, dtype), sharding.stacked(sharding.B))
  B = x.shape[0]

  def predict(x, step, text_BSE):
    step_B = jnp.broadcast_to(step, (B,), out_sharding=sharding.in_force(sharding.B))
    residuals = None
    if control is not None:
      rows = jnp.broadcast_to(jnp.asarray(condition, dtype), (B, *condition.shape[1:]),
                              out_sharding=sharding.in_force(sharding.B))
      residuals = control(rows, step_B, text_BSE, conditioning_scale)
    return network(x, step_B, text_BSE, residuals)
  evaluate = lambda x, step: jax.lax.map(lambda text_BSE: predict(x, step, text_BSE), text_KBSE)
  if len(text_KBSE) == 1:
    return ddim.sample(lambda x, step: predict(x, step, text_KBSE[0]), x, plan)
  return ddim.sample(guidance.guided_by(evaluate, (scale,)), x, plan)


LICENCE = 'CreativeML OpenRAIL-M (Stable Diffusion 1.5), Apache-2.0 (AnimateDiff)'
_parts = {
    'vae': Part('AutoencoderKL', KLVAEConfig, lambda config, rngs: KLVAE(config, rngs=rngs), kl_vae.table,
                kl_vae.IGNORED, on_mesh=False, original=stable_diffusion.VAE),
    'text_encoder': dataclasses.replace(clip_text.PART, original=stable_diffusion.TEXT)}
_adapter = Part('MotionAdapter', MotionConfig, lambda config, rngs: MotionModules(config, rngs=rngs),
                motion_module.table,
                original=Original({}, motion_module.makers_table, motion_module.makers_config))
_two = {'unet': Part('UNet2DConditionModel', unet.ImageUNetConfig,
                     lambda config, rngs: unet.ImageUNet(config, rngs=rngs), unet.image_table, unet.IGNORED,
                     original=stable_diffusion.UNET),
        'motion_adapter': _adapter}
# Of a saved pipeline both are there, and the U-Net's file is what it runs; the adapter goes back as it came.
_one = {'unet': Part('UNetMotionModel', MotionUNetConfig, lambda config, rngs: MotionUNet(
    unet.ImageUNet(config.image, rngs=rngs), MotionModules(config.motion, rngs=rngs)), unet.table, unet.IGNORED),
        'motion_adapter': _adapter}
_control = {'controlnet': Part('SparseControlNetModel', SparseControlConfig,
                               lambda config, rngs: SparseControl(config, rngs=rngs), sparse_control.table,
                               sparse_control.IGNORED)}
_left_out = {'safety_checker': 'it judges pictures after they are made', 'image_encoder': 'no picture is read by it',
             'feature_extractor': 'it prepares pictures for the two others'}
_GIVEN = ('image to video', 'keyframes to video', 'frame interpolation')


def _published(name: str, class_name: str, parts, controlled: bool) -> Published:
  return Published(
      name=f'{name} with SparseCtrl' if controlled else name, class_names=(class_name,), licence=LICENCE,
      pipeline=SparseControlPipeline if controlled else AnimateDiffPipeline,
      tasks=('text to video', *(_GIVEN if controlled else ())), small=('tokenizer', 'scheduler'),
      left_out=_left_out, beside=stable_diffusion.BESIDE, in_code={_SCHEDULER: {}},
      parts={**parts, **_parts, **(_control if controlled else {})})


ANIMATEDIFF = _published('AnimateDiff', 'StableDiffusionPipeline', _two, False)
SPARSECTRL = _published('AnimateDiff', 'StableDiffusionPipeline', _two, True)
SAVED = _published('saved AnimateDiff', 'AnimateDiffPipeline', _one, False)
SAVED_SPARSECTRL = _published('saved AnimateDiff', 'AnimateDiffSparseControlNetPipeline', _one, True)
ALL = ANIMATEDIFF, SPARSECTRL, SAVED, SAVED_SPARSECTRL
