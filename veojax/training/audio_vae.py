"""Stage two: the audio VAE learns to reconstruct random stretches of a data set's sound.

The objective is `audio_losses.audio_vae_loss`.
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
from veojax.models import audio_codec
from veojax.models.audio_codec import AudioCodec
from veojax.models.audio_vae import AudioVAE, AudioVAEConfig
from veojax.sharding import MeshConfig
from veojax.training import audio_losses, heldout
from veojax.training.audio_losses import AudioLossConfig
from veojax.training.loop import LoopConfig
from veojax.training.optimizer import OptimizerConfig
from veojax.types import Clip


@dataclasses.dataclass(frozen=True)
class AudioVAERun:
  """configs/*_audio_vae.py as a dataclass."""
  stage: Literal['audio_vae']
  data: str = ''
  seed: int = 0
  model: AudioVAEConfig = AudioVAEConfig()
  num_latents: int = 24                 # of a training crop
  loss: AudioLossConfig = AudioLossConfig()
  evaluation_clips: int = 16
  optimizer: OptimizerConfig = OptimizerConfig()
  loop: LoopConfig = LoopConfig()
  mesh: MeshConfig = MeshConfig()


class AudioVAEStage:
  name = 'audio VAE'

  def __init__(self, config: AudioVAERun):
    self.config = config
    self.dataset = datasets.open_dataset(config.data)
    model = config.model
    self.source = pipeline.SoundSource(self.dataset, config.num_latents * model.hop, model.channels, model.sample_rate, config.seed)

  def make_model(self, key) -> AudioVAE:
    return AudioVAE(self.config.model, rngs=nnx.Rngs(key))

  def batch_spec(self, batch):
    return {'audio': sharding.B}

  def loss(self, vae, batch, key):
    return audio_losses.audio_vae_loss(vae, key, batch['audio'], self.config.loss)

  def codec(self, vae) -> AudioCodec:
    batches = [np.stack([self.source[row]['audio'] for row in range(i, i + 8)]) for i in range(0, 64, 8)]
    return AudioCodec(vae, *audio_codec.statistics(vae, batches))

  def evaluate(self, ema) -> dict[str, float]:
    """Signal-to-distortion ratio in dB (of the energies of all clips together) and log-mel distance, of held-out clips."""
    codec, signal, noise, mel = self.codec(ema), 0.0, 1e-12, []
    for clip in heldout.clips(self.config.data, 'num_samples', self.config.evaluation_clips):
      audio = pipeline.mix(clip.audio, codec.channels)
      out = codec.decode(codec.encode(audio), len(audio))
      signal, noise = signal + np.sum(np.square(audio)), noise + np.sum(np.square(out - audio))
      rows = [audio_losses.as_rows(jnp.asarray(x[None])) for x in (out, audio)]
      mel.append(float(audio_losses.log_mel_distance(*rows, codec.sample_rate)))
    return {'sdr': float(10 * np.log10(max(signal, 1e-12) / noise)), 'log_mel': float(np.mean(mel))}

  def draw(self, ema, step: int, folder: pathlib.Path):
    """A held-out sound and its reconstruction, one after the other, as wav and as spectrogram."""
    codec, clip = self.codec(ema), next(iter(heldout.clips(self.config.data, 'num_samples', 1)))
    audio = pipeline.mix(clip.audio, codec.channels)
    both = np.concatenate([audio, codec.decode(codec.encode(audio), len(audio))])
    folder.mkdir(exist_ok=True)
    sample = export.Sample(**vars(Clip(audio=both, sample_rate=codec.sample_rate)))
    sample.save(folder / f'{step:07d}.wav')
    (folder / f'{step:07d}.png').write_bytes(export.spectrogram(sample))

  def export(self, ema, workdir: pathlib.Path):
    self.codec(ema).save(workdir / 'codec.safetensors')
