"""Stage one: the video VAE learns to reconstruct random crops of a data set's pictures.

Loss: L2 + l1_weight · L1 of the pixels in [-1, 1], plus kl_weight times the posterior's KL divergence from N(0, 1), per element
of the latents.
"""
import dataclasses
import pathlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from veojax import sharding
from veojax.data import datasets, pipeline
from veojax.generation import export
from veojax.models import video_codec
from veojax.models.video_codec import VideoCodec
from veojax.models.video_vae import VideoVAE, VideoVAEConfig
from veojax.sharding import MeshConfig
from veojax.training import audio_losses, heldout
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
  seed: int = 0
  model: VideoVAEConfig = VideoVAEConfig()
  crop: CropConfig = CropConfig()
  l1_weight: float = 0.05
  kl_weight: float = 1e-5
  tile: int = 64     # pixels; frames up to this side are encoded and decoded in one piece, larger ones in tiles
  overlap: int = 16  # of the tiles, pixels
  evaluation_clips: int = 16
  optimizer: OptimizerConfig = OptimizerConfig()
  loop: LoopConfig = LoopConfig()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self):
    tc, sc, crop = self.model.temporal_compression, self.model.spatial_compression, self.crop
    if (crop.num_frames - 1) % tc or crop.height % sc or crop.width % sc:
      raise ValueError(f'crop of {crop.num_frames} frames of {crop.height}x{crop.width} pixels does not divide; with this model '
                       f'give 1 + k·{tc} frames and sides that are multiples of {sc}')


class VideoVAEStage:
  name = 'video VAE'

  def __init__(self, config: VideoVAERun):
    self.config = config
    self.dataset = datasets.open_dataset(config.data)
    self.source = pipeline.CropSource(self.dataset, config.crop.num_frames, config.crop.height, config.crop.width, config.seed)

  def make_model(self, key) -> VideoVAE:
    return VideoVAE(self.config.model, rngs=nnx.Rngs(key))

  def batch_spec(self, batch):
    return {'video': sharding.B}

  def loss(self, vae, batch, key):
    video = batch['video'].astype(jnp.float32) / 127.5 - 1
    mean, logvar = vae.encode(video)
    noise = jax.random.normal(key, mean.shape, out_sharding=sharding.in_force(sharding.B))
    error = vae.decode(mean + jnp.exp(0.5 * logvar) * noise) - video
    l1, l2, kl = jnp.mean(jnp.abs(error)), jnp.mean(jnp.square(error)), audio_losses.kl_to_normal(mean, logvar)
    return l2 + self.config.l1_weight * l1 + self.config.kl_weight * kl, {'l1': l1, 'psnr': 10 * jnp.log10(4 / l2), 'kl': kl}

  def codec(self, vae) -> VideoCodec:
    batches = [np.stack([self.source[row]['video'] for row in range(i, i + 8)]) for i in range(0, 64, 8)]
    return VideoCodec(vae, *video_codec.statistics(vae, batches), tile=self.config.tile, overlap=self.config.overlap)

  def evaluate(self, ema) -> dict[str, float]:
    """PSNR in dB of held-out clips, whole, through the codec; by the mean squared error over all of them."""
    codec, errors = self.codec(ema), []
    for clip in heldout.clips(self.config.data, 'num_frames', self.config.evaluation_clips):
      out = codec.decode(codec.encode(clip.video), *clip.video.shape[:3])
      errors.append(np.mean(np.square(out.astype(np.float32) - clip.video)))
    return {'psnr': float(10 * np.log10(255 ** 2 / np.mean(errors)))}

  def draw(self, ema, step: int, folder: pathlib.Path):
    """Frames of a held-out clip over their reconstructions."""
    codec, clip = self.codec(ema), next(iter(heldout.clips(self.config.data, 'num_frames', 1)))
    out = Clip(video=codec.decode(codec.encode(clip.video), *clip.video.shape[:3]), fps=clip.fps)
    folder.mkdir(exist_ok=True)
    sheet = np.concatenate([export.contact_sheet(clip), export.contact_sheet(out)], 0)
    (folder / f'{step:07d}.png').write_bytes(export.png(sheet))

  def export(self, ema, workdir: pathlib.Path):
    self.codec(ema).save(workdir / 'codec.safetensors')
