"""Fine-tuning of Mochi 1: a converted run's transformer goes on learning the flow, on a data set of one's own.

Loss: E |v(x_t, t) - (eps - x_0)|², x_t = (1 - t) x_0 + t eps (Liu et al. 2022, eq. 1). Autoencoder and text encoder are
frozen: latents of every clip are cached in the work directory, and text features too, unless `veojax prepare --embed`
has stored them with the data. Clips of one size: of each the first frames and the middle of the frame; clips that are
smaller are left out.
"""
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from veojax import sharding
from veojax.data import text_features
from veojax.diffusion import timesteps
from veojax.diffusion.process import RectifiedFlow
from veojax.models import layers, weights
from veojax.sharding import MeshConfig
from veojax.training import latents, samples
from veojax.training.loop import LoopConfig
from veojax.training.optimizer import OptimizerConfig
from veojax.training.published import PublishedSource, PublishedStage, PublishedStep, large_enough, middle
from veojax.zoo import mochi
from veojax.zoo.mochi import MochiSettings
from veojax.zoo.mochi_transformer import MochiTransformer, MochiTransformerConfig
from veojax.zoo.mochi_vae import MochiVAE, MochiVAEConfig


@dataclasses.dataclass(frozen=True)
class MochiRun:
  """configs/*.py as a dataclass.

  model: a converted run; transformer and vae: its sizes, and what is rematerialised. num_frames, height, width: of the
  clips, in pixels. dtype: of the computation; parameters are float32. tile: of the frames that are encoded, in pixels.
  text_tokens: of a caption, at most. logit_mean, logit_std, shift: of the noise levels.
  """
  stage: Literal['mochi']
  model: str = ''
  data: str = ''
  seed: int = 0
  transformer: MochiTransformerConfig = MochiTransformerConfig()
  vae: MochiVAEConfig = MochiVAEConfig()
  num_frames: int = 37
  height: int = 480
  width: int = 848
  text_tokens: int = 256
  caption_dropout: float = 0.1
  logit_mean: float = 0.0
  logit_std: float = 1.0
  shift: float = 1.0
  dtype: Literal['float32', 'bfloat16'] = 'bfloat16'
  tile: int = 256
  settings: MochiSettings = MochiSettings()  # of clips drawn during training, and of `veojax compile --stage generate`
  prompts: tuple[str, ...] = ()              # drawn during training
  optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)
  loop: LoopConfig = LoopConfig()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self):
    MochiSettings(self.num_frames, self.height, self.width)  # the sizes are those that it can make
    if not 0 <= self.caption_dropout <= 1:
      raise ValueError(f'caption_dropout={self.caption_dropout}; give a share in [0, 1]')

  @property
  def latent_shape(self) -> tuple[int, int, int, int]:
    tc, sc = self.vae.temporal_compression, self.vae.spatial_compression
    return 1 + (self.num_frames - 1) // tc, self.height // sc, self.width // sc, self.vae.latent_channels


class MochiStep(PublishedStep):
  name = 'Mochi 1'

  def blank(self):
    """A row of the batch, empty."""
    S, E = self.config.text_tokens, self.config.transformer.text_embed_dim
    return {'latent': np.zeros(self.config.latent_shape, np.float32), 'text': np.zeros((S, E), np.float32),
            'mask': np.zeros(S, bool)}

  def make_model(self, key) -> MochiTransformer:
    return MochiTransformer(self.config.transformer, rngs=layers.Rngs(key))

  def loss(self, model, batch, key, step=None):
    config, process = self.config, RectifiedFlow()
    key_t, key_eps = jax.random.split(key)
    rows = sharding.in_force(sharding.B)
    x0 = jnp.asarray(batch['latent'], jnp.float32)
    t_B = timesteps.logit_normal(key_t, (len(x0),), config.logit_mean, config.logit_std, out_sharding=rows)
    t_B = timesteps.shift(t_B, config.shift)
    eps = jax.random.normal(key_eps, x0.shape, out_sharding=rows)
    x_t = process.add_noise(x0, eps, t_B[:, None, None, None, None])
    velocity = model(x_t, t_B, batch['text'].astype(config.dtype), batch['mask'])
    loss = jnp.mean(jnp.square(velocity - (eps - x0)))
    return loss, {'flow_loss': loss}

  def sampling(self, mesh):
    """(function, abstract arguments, its options, counts) of all steps of one clip on each part of the mesh that takes
    rows."""
    config, B = self.config, mesh.shape['data'] * mesh.shape['fsdp']
    abstract = lambda shape, dtype, spec=sharding.B: jax.ShapeDtypeStruct(
        shape, dtype, sharding=sharding.named(mesh, spec))
    latent, blank = self.sampled_shape(), self.blank()
    text = tuple(abstract((B, *blank[name].shape), blank[name].dtype) for name in ('text', 'mask'))
    steps = config.settings.num_inference_steps
    arguments = (self.abstract_model(mesh), abstract((B, *latent), jnp.float32), text, text,
                 abstract((steps + 1,), jnp.float32, P()), abstract((), jnp.float32, P()))
    tokens = int(np.prod(latent[:3])) // config.transformer.patch_size ** 2
    return mochi.sample, arguments, {'dtype': config.dtype}, {
        'rows': B, 'tokens of a clip': tokens, 'network calls': 2 * steps}

  def codec(self):
    """(abstract autoencoder, (height, width) in pixels of what is decoded at once, latent frames of a chunk)."""
    vae = weights.abstract(lambda rngs: MochiVAE(self.config.vae, rngs=rngs))
    settings = self.config.settings
    side = lambda size: min(settings.tile or size, size)
    return vae, (side(settings.height), side(settings.width)), settings.chunk


class MochiSource(PublishedSource):

  def __init__(self, config: MochiRun, clips, cache, features: text_features.TextFeatures, caption_dropout: float):
    super().__init__(config, clips)
    self.cache, self.features, self.caption_dropout = cache, features, caption_dropout

  def __getitem__(self, row: int):
    clip, = self.clips_of(row)
    S, E = self.config.text_tokens, self.config.transformer.text_embed_dim
    text, mask = np.zeros((S, E), np.float32), np.zeros(S, bool)
    if np.random.default_rng((self.config.seed, row)).random() >= self.caption_dropout:
      features = self.features[clip][:S]
      text[:len(features)], mask[:len(features)] = features, True
    return {'latent': middle(self.cache[clip].video, self.config.latent_shape), 'text': text, 'mask': mask}


class MochiStage(PublishedStage, MochiStep):
  published, part, sizes = (mochi.MOCHI,), 'transformer', {'transformer': 'transformer', 'vae': 'vae'}

  def rows(self, workdir, dataset, held_out) -> MochiSource:
    clips = large_enough(self.config, dataset)
    codec = mochi.codec_of(self.run.parts['vae'], self.config.tile)
    cache = latents.cached(workdir / 'latents' / dataset.split, dataset, codec, None)
    features = self.features(workdir, dataset, self._encode, self.config.transformer.text_embed_dim)
    return MochiSource(self.config, clips, cache, features, 0.0 if held_out else self.config.caption_dropout)

  def _encode(self, texts: list[str]) -> list[np.ndarray]:
    features, mask = self.pipeline.embed(texts, self.config.dtype)
    return [f[m] for f, m in zip(features, mask)]

  def draw(self, ema, step: int, workdir):
    """Clips of the config's prompts."""
    if self.config.prompts:
      samples.write(self.made(ema, workdir, list(self.config.prompts)), workdir, step)
