"""Fine-tuning of Stable Video Diffusion: a converted run's U-Net goes on learning, on clips of one's own.

Loss: E |v(x, sigma) - v|², v of x = x_0 + sigma eps, log sigma ~ N(mean, std²); it is the loss of Karras et al. 2022,
eq. 8, with data of unit variance. Latents of the clips are scaled. The first frame is told as it is in sampling: CLIP's
vector of it, and its latents under noise, whose deviation is log-normal too (Blattmann et al. 2023, appendix D); both
are left out together, as guidance leaves them out. Autoencoder and CLIP are frozen, and run before training.
"""
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from veojax import sharding
from veojax.diffusion import predictions
from veojax.diffusion.process import EDM
from veojax.models import layers, weights
from veojax.sharding import MeshConfig
from veojax.training import latents, samples, svd_conditions
from veojax.training.loop import LoopConfig
from veojax.training.optimizer import OptimizerConfig
from veojax.training.published import PublishedSource, PublishedStage, PublishedStep, large_enough, middle
from veojax.training.svd_conditions import Conditions
from veojax.zoo import svd, svd_vae
from veojax.zoo.svd import SVDSettings
from veojax.zoo.svd_unet import SVDUNet, SVDUNetConfig
from veojax.zoo.svd_vae import SVDVAE, SVDVAEConfig

PROCESS = EDM(sigma_min=0.002, sigma_max=700.0, sigma_data=1.0)


@dataclasses.dataclass(frozen=True)
class SVDRun:
  """configs/*.py as a dataclass.

  model: a converted run; unet and vae: its sizes, and what is rematerialised. num_frames, height, width: of the clips,
  in pixels. dtype: of the computation; parameters are float32. image_dropout: share of rows that are told nothing of
  the first frame. sigma_mean, sigma_std: of log sigma; noise_mean, noise_std: of the log deviation of a first frame's
  noise, of which each clip has num_noises. motion_bucket_id: what all clips are said to be.
  """
  stage: Literal['svd']
  model: str = ''
  data: str = ''
  seed: int = 0
  unet: SVDUNetConfig = SVDUNetConfig()
  vae: SVDVAEConfig = SVDVAEConfig()
  num_frames: int = 14
  height: int = 576
  width: int = 1024
  image_dropout: float = 0.1
  sigma_mean: float = 0.7
  sigma_std: float = 1.6
  noise_mean: float = -3.0
  noise_std: float = 0.5
  num_noises: int = 4
  motion_bucket_id: int = 127
  dtype: Literal['float32', 'bfloat16'] = 'bfloat16'
  settings: SVDSettings = SVDSettings()  # of clips drawn during training, and of `veojax compile --stage generate`
  images: tuple[str, ...] = ()           # drawn from during training
  optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5)
  loop: LoopConfig = LoopConfig()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self):
    SVDSettings(self.num_frames, self.height, self.width)  # the sizes are those that it can make
    if not 0 <= self.image_dropout <= 1 or self.num_noises < 1 or not (self.sigma_std > 0 and self.noise_std >= 0):
      raise ValueError(f'image_dropout={self.image_dropout}, num_noises={self.num_noises}, sigma_std={self.sigma_std}, '
                       f'noise_std={self.noise_std}; give a share in [0, 1] and positive numbers')

  @property
  def latent_shape(self) -> tuple[int, int, int, int]:
    sc = self.vae.spatial_compression
    return self.num_frames, self.height // sc, self.width // sc, self.vae.latent_channels


class SVDStep(PublishedStep):
  name = 'Stable Video Diffusion'

  def blank(self):
    """A row of the batch, empty."""
    shape, zeros = self.config.latent_shape, lambda *shape: np.zeros(shape, np.float32)
    return {'latent': zeros(*shape), 'first': zeros(*shape[1:]), 'conditions': zeros(3),
            'vector': zeros(self.config.unet.each('cross_attention_dim')[0])}

  def make_model(self, key) -> SVDUNet:
    return SVDUNet(self.config.unet, rngs=layers.Rngs(key))

  def loss(self, model, batch, key, step=None):
    config, rows = self.config, sharding.in_force(sharding.B)
    key_sigma, key_eps = jax.random.split(key)
    x0 = jnp.asarray(batch['latent'], jnp.float32)
    log_sigma = config.sigma_mean + config.sigma_std * jax.random.normal(key_sigma, (len(x0),), out_sharding=rows)
    level_B = jnp.clip(PROCESS.level(jnp.exp(log_sigma)), 0, 1)
    level, eps = level_B[:, None, None, None, None], jax.random.normal(key_eps, x0.shape, out_sharding=rows)
    x = PROCESS.add_noise(x0, eps, level)
    v = svd.denoised(model, PROCESS, x, level_B, batch['first'], batch['vector'].astype(config.dtype),
                     batch['conditions'])
    loss = jnp.mean(jnp.square(v + predictions.target('edm', PROCESS, x0, eps, level)))
    return loss, {'v_loss': loss}

  def sampling(self, mesh):
    """(function, abstract arguments, its options, counts) of all steps of one clip on each part of the mesh that takes
    rows."""
    config, B = self.config, mesh.shape['data'] * mesh.shape['fsdp']
    abstract = lambda shape, spec=P(): jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding.named(mesh, spec))
    shape = self.sampled_shape()
    rows = [abstract((B, *size), sharding.B) for size in (shape, shape[1:], self.blank()['vector'].shape, (3,))]
    steps = config.settings.num_inference_steps
    arguments = (self.abstract_model(mesh), *rows, abstract((steps + 1,)), abstract(shape[:1]))
    return svd.sample, arguments, {'process': PROCESS, 'dtype': config.dtype}, {
        'rows': B, 'frames of a clip': shape[0], 'network calls': 2 * steps}

  def codec(self):
    """(abstract autoencoder, (height, width) in pixels and frames of what is decoded at once)."""
    vae = weights.abstract(lambda rngs: SVDVAE(self.config.vae, rngs=rngs))
    settings = self.config.settings
    return vae, (settings.height, settings.width), settings.chunk or settings.num_frames


class SVDSource(PublishedSource):

  def __init__(self, config: SVDRun, clips, dataset, cache, conditions: Conditions, image_dropout: float):
    super().__init__(config, clips)
    self.dataset, self.cache, self.conditions, self.image_dropout = dataset, cache, conditions, image_dropout

  def __getitem__(self, row: int):
    clip, = self.clips_of(row)
    rng = np.random.default_rng((self.config.seed, row))
    kept, k = np.float32(rng.random() >= self.image_dropout), rng.integers(self.config.num_noises)
    fps, conditions = float(self.dataset.index['fps'][clip]), self.conditions
    return {'latent': middle(self.cache[clip].video, self.config.latent_shape),
            'first': kept * conditions.first[clip, k].astype(np.float32), 'vector': kept * conditions.vector[clip],
            'conditions': np.asarray([fps - 1, self.config.motion_bucket_id, conditions.noise[clip, k]], np.float32)}


class SVDStage(PublishedStage, SVDStep):
  published, part, sizes = (svd.SVD,), 'unet', {'unet': 'unet', 'vae': 'vae'}

  def rows(self, workdir, dataset, held_out) -> SVDSource:
    clips = large_enough(self.config, dataset)
    codec = svd_vae.codec_of(self.run.parts['vae'])
    cache = latents.cached(workdir / 'latents' / dataset.split, dataset, codec, None)
    conditions = svd_conditions.opened(workdir / 'conditions' / dataset.split, dataset, clips, self.pipeline,
                                       self.config)
    return SVDSource(self.config, clips, dataset, cache, conditions, 0.0 if held_out else self.config.image_dropout)

  def draw(self, ema, step: int, workdir):
    """A clip of each of the config's pictures."""
    samples.write([self.made(ema, workdir, [''], image=image)[0] for image in self.config.images], workdir, step)
