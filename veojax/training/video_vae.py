"""Stage one: the video VAE learns to reconstruct random crops of a data set's pictures.

Loss: L2 + l1_weight · L1 of the pixels in [-1, 1], plus kl_weight times the posterior's KL divergence from N(0, 1),
per element of the latents; plus, where their weights are not 0, what errors cost the motion of objects (motion.py),
LPIPS of every frame in a network that the user gives (models/perceptual.py) and an adversarial and feature-matching loss
against a discriminator trained beside the codec (adversarial.py).
"""
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from veojax import files, processes, sharding
from veojax.data import datasets, pipeline
from veojax.generation import codecs, export
from veojax.models import codec_file, conv, layers, perceptual, video_codec
from veojax.models.discriminator import VideoDiscriminator, VideoDiscriminatorConfig
from veojax.models.perceptual import PerceptualConfig
from veojax.models.video_codec import VideoCodec
from veojax.models.video_vae import VideoVAE, VideoVAEConfig
from veojax.sharding import MeshConfig
from veojax.training import adversarial, decoder_only, distortion, heldout, motion, optimizer, samples
from veojax.training.adversarial import AdversarialConfig
from veojax.training.loop import LoopConfig
from veojax.training.optimizer import OptimizerConfig
from veojax.types import Clip


@dataclasses.dataclass(frozen=True)
class CropConfig:
  num_frames: int = 17
  height: int = 64
  width: int = 64


@dataclasses.dataclass(frozen=True)
class VideoVAERun:
  """configs/*_video_vae.py as a dataclass."""
  stage: Literal['video_vae']
  data: str = ''
  start: str = ''  # a codec, by name, folder or file, whose weights this one begins with; empty: random ones
  learn: Literal['all', 'decoder'] = 'all'  # 'decoder': the latents stay those of `start`
  seed: int = 0
  model: VideoVAEConfig = VideoVAEConfig()
  crop: CropConfig = CropConfig()
  l1_weight: float = 0.05
  motion_weight: float = 0.0
  kl_weight: float = 1e-5
  perceptual: PerceptualConfig = PerceptualConfig()
  adversarial: AdversarialConfig = AdversarialConfig()
  discriminator: VideoDiscriminatorConfig = VideoDiscriminatorConfig()
  tile: int = 64     # pixels; frames up to this side are encoded and decoded in one piece, larger ones in tiles
  overlap: int = 16  # of the tiles, pixels
  evaluation_clips: int = 16
  optimizer: OptimizerConfig = OptimizerConfig()
  loop: LoopConfig = LoopConfig()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self):
    decoder_only.check(self)
    tc, sc, crop = self.model.temporal_compression, self.model.spatial_compression, self.crop
    if (crop.num_frames - 1) % tc or crop.height % sc or crop.width % sc:
      raise ValueError(f'crop of {crop.num_frames} frames of {crop.height}x{crop.width} pixels does not divide; '
                       f'with this model give 1 + k·{tc} frames and sides that are multiples of {sc}')
    largest = motion.SIDES[-1]
    if self.motion_weight and (crop.num_frames < 3 or crop.height % largest or crop.width % largest):
      raise ValueError(f'motion_weight={self.motion_weight} with a crop of {crop.num_frames} frames of {crop.height}x'
                       f'{crop.width} pixels; give at least 3 frames, and sides that are multiples of {largest}')
    patch = self.discriminator.patch_size
    if self.adversarial.weight and (crop.height % patch or crop.width % patch):
      raise ValueError(f'discriminator.patch_size={patch} does not divide the crop of {crop.height}x{crop.width} '
                       'pixels; give one that does')


class VideoVAEStep:
  """What initialising and stepping need: the config, and the network of the perceptual loss where it has a weight."""
  name = 'video VAE'

  def __init__(self, config: VideoVAERun):
    self.config = config
    self.changes = (config.adversarial.start,) if config.adversarial.weight else ()
    if config.perceptual.weight:
      self.lpips = perceptual.load(config.perceptual.weights, config.perceptual.heads)

  def blank(self):
    """A row of the batch, black."""
    crop = self.config.crop
    return {'video': np.zeros((crop.num_frames, crop.height, crop.width, 3), np.uint8)}

  def make_model(self, key):
    """A VideoVAE, or the `adversarial.pair` of it and its discriminator."""
    return adversarial.pair(
        self.config.adversarial, VideoVAE(self.config.model, rngs=layers.Rngs(key)),
        lambda: VideoDiscriminator(self.config.discriminator, rngs=layers.Rngs(jax.random.fold_in(key, 1))))

  def make_optimizer(self):
    codec_tx = optimizer.make(self.config.optimizer, self.config.loop.num_steps)
    return adversarial.optimizer(self.config.adversarial, decoder_only.optimizer(self.config, codec_tx))

  def batch_spec(self, batch):
    return {'video': sharding.B}

  def loss(self, model, batch, key, step):
    config, video = self.config, batch['video'].astype(jnp.float32) / 127.5 - 1
    vae = adversarial.codec_of(config.adversarial, model)
    latent, kl = decoder_only.latent(config, vae, key, video)
    output = vae.decode(latent)
    if config.adversarial.weight:
      loss, metrics = adversarial.loss(config.adversarial, model['discriminator'],
                                       lambda x: self.reconstruction(x, video), output, video, step)
    else:
      loss, metrics = self.reconstruction(output, video)
    return loss + config.kl_weight * kl, metrics | {'kl': kl}

  def reconstruction(self, output, video):
    """(loss, metrics) of the decoder's output; 0 where it is the video."""
    error = output - video
    l1, l2 = jnp.mean(jnp.abs(error)), jnp.mean(jnp.square(error))
    loss, metrics = l2 + self.config.l1_weight * l1, {'l1': l1, 'psnr': 10 * jnp.log10(4 / l2)}
    if self.config.motion_weight:
      moved = motion.motion_error(error)
      loss, metrics = loss + self.config.motion_weight * moved, metrics | {'motion': moved}
    if not self.config.perceptual.weight:
      return loss, metrics
    frames = [conv.reshape(x, -1, *x.shape[2:]) for x in (output, video)]
    lpips = jnp.mean(self.lpips(*frames))
    return loss + self.config.perceptual.weight * lpips, metrics | {'lpips': lpips}


class VideoVAEStage(VideoVAEStep):

  def __init__(self, config: VideoVAERun):
    super().__init__(config)
    self.dataset = datasets.open_dataset(config.data)
    self.source = pipeline.CropSource(self.dataset, config.crop.num_frames, config.crop.height, config.crop.width,
                                      config.seed)
    self.start = codecs.load(config.start, 'video') if config.start else None

  def begin(self, model):
    if not self.start:
      return model
    own = adversarial.codec_of(self.config.adversarial, model)
    return adversarial.with_codec(self.config.adversarial, model, decoder_only.begin(self.config, own, self.start.vae))

  def codec(self, model) -> VideoCodec:
    config = self.config
    return decoder_only.codec(config, self.start, adversarial.codec_of(config.adversarial, model), self.measured,
                              tile=config.tile, overlap=config.overlap)

  def measured(self, vae, **settings) -> VideoCodec:
    batches = [np.stack([self.source[row]['video'] for row in range(i, i + 8)]) for i in range(0, 64, 8)]
    return VideoCodec(vae, *video_codec.statistics(vae, batches), **settings)

  def evaluate(self, ema) -> dict[str, float]:
    """PSNR in dB of held-out clips, whole, through the codec."""
    codec = self.codec(ema)
    clips = heldout.clips(self.config.data, 'num_frames', self.config.evaluation_clips)
    return {'psnr': distortion.psnr((clip.video, codec.reconstruct(clip.video)) for clip in clips)}

  def draw(self, ema, step: int, workdir):
    """Frames of a held-out clip over their reconstructions."""
    codec, clip = self.codec(ema), next(iter(heldout.clips(self.config.data, 'num_frames', 1)))
    out = Clip(video=codec.reconstruct(clip.video), fps=clip.fps)
    if not processes.is_first():
      return
    sheet = np.concatenate([export.contact_sheet(clip), export.contact_sheet(out)], 0)
    files.write(samples.folder(workdir) / f'{step:07d}.png', export.png(sheet))

  def export(self, ema, workdir):
    self.codec(ema).save(workdir / codec_file.NAME)

  def clips(self, row: int) -> list[str]:
    """The name of the clip in a row."""
    return [self.dataset.id(clip) for clip in self.source.clips_of(row)]
