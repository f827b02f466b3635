"""Fine-tuning of AnimateDiff's motion modules on clips of one's own; the image model stays as it is (Guo et al. 2023).

Loss: E |eps(x_i, i) - eps|², x_i = sqrt(alphabar_i) x_0 + sqrt(1 - alphabar_i) eps, i uniform over the N steps (Ho et
al. 2020, eq. 14). Autoencoder and text encoder are frozen too: latents of every clip are cached in the work directory,
and text features, unless `veojax prepare --embed` has stored them with the data. Clips of one size: of each the first
frames and the middle of the frame; clips that are smaller are left out.

The model of a step is a MotionUNet whose image half has no gradient, no moments and no float32: it is kept in the dtype
of the computation.
"""
import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from veojax import sharding
from veojax.data import text_features
from veojax.models import layers, weights
from veojax.sharding import MeshConfig
from veojax.training import latents, samples
from veojax.training.loop import LoopConfig
from veojax.training.optimizer import OptimizerConfig
from veojax.training.published import PublishedSource, PublishedStage, PublishedStep, large_enough, middle
from veojax.zoo import animatediff, animatediff_unet
from veojax.zoo.animatediff import AnimateDiffSettings
from veojax.zoo.animatediff_unet import ImageUNet, ImageUNetConfig, MotionUNet
from veojax.zoo.ddim import Schedule
from veojax.zoo.kl_vae import KLVAE, KLVAEConfig
from veojax.zoo.motion_module import MotionConfig, MotionModules

SD_VAE = KLVAEConfig(down_block_types=('DownEncoderBlock2D',) * 4, up_block_types=('UpDecoderBlock2D',) * 4,
                     block_out_channels=(128, 256, 512, 512), layers_per_block=2)


@dataclasses.dataclass(frozen=True)
class AnimateDiffRun:
  """configs/*.py as a dataclass.

  model: a converted run, of Stable Diffusion and a motion adapter or of a saved pipeline; unet, motion, vae: its
  sizes, and what is rematerialised. num_frames, height, width: of the clips, in pixels. dtype: of the computation and
  of the image model; motion modules are float32. text_tokens: of a caption. schedule: of the noise.
  """
  stage: Literal['animatediff']
  model: str = ''
  data: str = ''
  seed: int = 0
  unet: ImageUNetConfig = ImageUNetConfig()
  motion: MotionConfig = MotionConfig()
  vae: KLVAEConfig = SD_VAE
  schedule: Schedule = animatediff.SCHEDULE
  num_frames: int = 16
  height: int = 256
  width: int = 256
  text_tokens: int = 77
  caption_dropout: float = 0.1
  dtype: Literal['float32', 'bfloat16'] = 'bfloat16'
  settings: AnimateDiffSettings = AnimateDiffSettings()  # of clips drawn during training, and of `veojax compile`
  prompts: tuple[str, ...] = ()                          # drawn during training
  optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4)
  loop: LoopConfig = LoopConfig()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self):
    AnimateDiffSettings(self.num_frames, self.height, self.width)  # the sizes are those that it can make
    animatediff_unet.check_fits(self.motion, self.unet)
    if self.num_frames > self.motion.motion_max_seq_length:
      raise ValueError(f'num_frames={self.num_frames}; the motion modules count up to '
                       f'{self.motion.motion_max_seq_length} frames')
    if not 0 <= self.caption_dropout <= 1:
      raise ValueError(f'caption_dropout={self.caption_dropout}; give a share in [0, 1]')

  @property
  def latent_shape(self) -> tuple[int, int, int, int]:
    sc = self.vae.spatial_compression
    return self.num_frames, self.height // sc, self.width // sc, self.unet.in_channels


class AnimateDiffStep(PublishedStep):
  name = 'AnimateDiff'

  def blank(self):
    """A row of the batch, empty."""
    S, E = self.config.text_tokens, self.config.unet.cross_attention_dim
    return {'latent': np.zeros(self.config.latent_shape, np.float32), 'text': np.zeros((S, E), np.float32)}

  def make_model(self, key) -> MotionUNet:
    key_image, key_motion = jax.random.split(key)
    image = ImageUNet(self.config.unet, rngs=layers.Rngs(key_image))
    image = jax.tree.map(lambda p: p.astype(self.config.dtype), image)
    return MotionUNet(image, MotionModules(self.config.motion, rngs=layers.Rngs(key_motion)))

  def make_optimizer(self):
    """Of the motion modules alone."""
    return on_motion(super().make_optimizer())

  def loss(self, model, batch, key, step=None):
    config, rows = self.config, sharding.in_force(sharding.B)
    key_i, key_eps = jax.random.split(key)
    x0 = jnp.asarray(batch['latent'], jnp.float32)
    i_B = jax.random.randint(key_i, (len(x0),), 0, config.schedule.num_train_timesteps, out_sharding=rows)
    alpha, sigma = (jnp.asarray(table).at[i_B].get(out_sharding=rows)[:, None, None, None, None] for table in
                    config.schedule.marginal(np.arange(config.schedule.num_train_timesteps)))
    eps = jax.random.normal(key_eps, x0.shape, out_sharding=rows)
    network = MotionUNet(jax.lax.stop_gradient(model.image), model.motion)
    answer = network(alpha * x0 + sigma * eps, i_B.astype(jnp.float32), batch['text'].astype(config.dtype))
    loss = jnp.mean(jnp.square(answer - eps))
    return loss, {'eps_loss': loss}

  def sampling(self, mesh):
    """(function, abstract arguments, its options, counts) of all steps of one clip on each part of the mesh that takes
    rows."""
    config, B = self.config, mesh.shape['data'] * mesh.shape['fsdp']
    abstract = lambda shape, dtype=jnp.float32, spec=P(): jax.ShapeDtypeStruct(
        shape, dtype, sharding=sharding.named(mesh, spec))
    latent = self.sampled_shape()
    steps = config.settings.num_inference_steps
    plan = jax.tree.map(lambda x: abstract(x.shape), config.schedule.plan(steps))
    noise, text = abstract((B, *latent), spec=sharding.B), abstract((2, B, *self.blank()['text'].shape),
                                                                    spec=sharding.stacked(sharding.B))
    arguments = (self.abstract_model(mesh), None, noise, text, None, plan, abstract(()), abstract(()))
    return animatediff.sample, arguments, {'dtype': config.dtype}, {
        'rows': B, 'frames of a clip': latent[0], 'network calls': 2 * steps}

  def codec(self):
    """(abstract autoencoder, (height, width) in pixels and frames of what is decoded at once)."""
    vae = weights.abstract(lambda rngs: KLVAE(self.config.vae, rngs=rngs))
    settings = self.config.settings
    return vae, (settings.height, settings.width), settings.chunk


def on_motion(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """`tx` of a MotionUNet's motion half; the other half does not change, and nothing is kept of it."""
  def update(updates, state, params):
    motion, state = tx.update(updates.motion, state, params.motion)
    return MotionUNet(jax.tree.map(jnp.zeros_like, updates.image), motion), state
  return optax.GradientTransformation(lambda params: tx.init(params.motion), update)


class AnimateDiffSource(PublishedSource):

  def __init__(self, config: AnimateDiffRun, clips, cache, features: text_features.TextFeatures, empty: np.ndarray,
               caption_dropout: float):
    """empty: the features of no text."""
    super().__init__(config, clips)
    self.cache, self.features, self.empty, self.caption_dropout = cache, features, empty, caption_dropout

  def __getitem__(self, row: int):
    clip, = self.clips_of(row)
    dropped = np.random.default_rng((self.config.seed, row)).random() < self.caption_dropout
    text = self.empty if dropped else self.features[clip]
    return {'latent': middle(self.cache[clip].video, self.config.latent_shape), 'text': np.asarray(text, np.float32)}


class AnimateDiffStage(PublishedStage, AnimateDiffStep):
  published, part, sizes = animatediff.ALL, 'motion_adapter', {'vae': 'vae'}

  def published_sizes(self):
    return {'unet': self.pipeline.image, 'motion': self.pipeline.motion, **super().published_sizes()}

  def learned(self, model: MotionUNet):
    """Of a saved pipeline the U-Net too, whose file holds the motion modules; its image half is what it was."""
    whole = {'unet': MotionUNet(self.run.parts['unet'].image, model.motion)} if self.pipeline.is_one else {}
    return {**super().learned(model.motion), **whole}

  def _check(self):
    super()._check()
    if self.config.text_tokens != self.run.configs['text_encoder'].max_position_embeddings:
      raise ValueError(f'text_tokens={self.config.text_tokens}, but rows of the text encoder have '
                       f'{self.run.configs["text_encoder"].max_position_embeddings}; set it to that')

  @functools.cached_property
  def empty(self) -> np.ndarray:
    """The features of no text."""
    return self.pipeline.embed([''], self.config.dtype)[0]

  def rows(self, workdir, dataset, held_out) -> AnimateDiffSource:
    clips = large_enough(self.config, dataset)
    cache = latents.cached(workdir / 'latents' / dataset.split, dataset, self.pipeline.codec(4), None)
    features = self.features(workdir, dataset, lambda texts: list(self.pipeline.embed(texts, self.config.dtype)),
                             self.config.unet.cross_attention_dim)
    if len(features[0]) != self.config.text_tokens:
      raise ValueError(f'the text features at {features.path} are of {len(features[0])} tokens a caption, the model '
                       f'takes {self.config.text_tokens}; make them with its own text encoder')
    return AnimateDiffSource(self.config, clips, cache, features, self.empty,
                             0.0 if held_out else self.config.caption_dropout)

  def begin(self, model):
    return weights.like(model, self.pipeline.network())

  def draw(self, ema, step: int, workdir):
    """Clips of the config's prompts."""
    if self.config.prompts:
      samples.write(self.made(ema, workdir, list(self.config.prompts)), workdir, step)
