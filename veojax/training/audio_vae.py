"""Stage two: the audio VAE learns to reconstruct random stretches of a data set's sound.

The objective is that of `audio_losses`; plus, where its weight is not 0, an adversarial and feature-matching
loss against a discriminator trained beside the codec (adversarial.py).
"""
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from veojax import files, processes, sharding
from veojax.data import datasets, pipeline
from veojax.generation import codecs, export
from veojax.models import audio_codec, codec_file, layers
from veojax.models.audio_codec import AudioCodec
from veojax.models.audio_vae import AudioVAE, AudioVAEConfig
from veojax.models.discriminator import AudioDiscriminator, AudioDiscriminatorConfig
from veojax.sharding import MeshConfig
from veojax.training import adversarial, audio_losses, decoder_only, distortion, heldout, optimizer, samples
from veojax.training.adversarial import AdversarialConfig
from veojax.training.audio_losses import AudioLossConfig
from veojax.training.loop import LoopConfig
from veojax.training.optimizer import OptimizerConfig
from veojax.types import Clip


@dataclasses.dataclass(frozen=True)
class AudioVAERun:
  """configs/*_audio_vae.py as a dataclass."""
  stage: Literal['audio_vae']
  data: str = ''
  start: str = ''  # a codec, by name, folder or file, whose weights this one begins with; empty: random ones
  learn: Literal['all', 'decoder'] = 'all'  # 'decoder': the latents stay those of `start`
  seed: int = 0
  model: AudioVAEConfig = AudioVAEConfig()
  num_latents: int = 24                 # of a training crop
  loss: AudioLossConfig = AudioLossConfig()
  adversarial: AdversarialConfig = AdversarialConfig()
  discriminator: AudioDiscriminatorConfig = AudioDiscriminatorConfig()
  evaluation_clips: int = 16
  optimizer: OptimizerConfig = OptimizerConfig()
  loop: LoopConfig = LoopConfig()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self):
    decoder_only.check(self)


class AudioVAEStep:
  """What initialising and stepping need: the config alone."""
  name = 'audio VAE'

  def __init__(self, config: AudioVAERun):
    self.config = config
    self.changes = (config.adversarial.start,) if config.adversarial.weight else ()

  def blank(self):
    """A row of the batch, silent."""
    model = self.config.model
    return {'audio': np.zeros((self.config.num_latents * model.hop, model.channels), np.float32)}

  def make_model(self, key):
    """An AudioVAE, or the `adversarial.pair` of it and its discriminator."""
    config = self.config
    return adversarial.pair(
        config.adversarial, AudioVAE(config.model, rngs=layers.Rngs(key)),
        lambda: AudioDiscriminator(config.model.channels, config.discriminator,
                                   rngs=layers.Rngs(jax.random.fold_in(key, 1))))

  def make_optimizer(self):
    codec_tx = optimizer.make(self.config.optimizer, self.config.loop.num_steps)
    return adversarial.optimizer(self.config.adversarial, decoder_only.optimizer(self.config, codec_tx))

  def batch_spec(self, batch):
    return {'audio': sharding.B}

  def loss(self, model, batch, key, step):
    config, audio = self.config, batch['audio']
    vae = adversarial.codec_of(config.adversarial, model)
    latent, kl = decoder_only.latent(config, vae, key, audio)
    output = vae.decode(latent)
    if not config.adversarial.weight:
      terms = {'kl': kl} | self.reconstruction(output, audio)[1]
      return audio_losses.weighted(terms, config.loss), terms
    loss, metrics = adversarial.loss(config.adversarial, model['discriminator'],
                                     lambda x: self.reconstruction(x, audio), output, audio, step)
    return loss + config.loss.kl * kl, metrics | {'kl': kl}

  def reconstruction(self, output, audio):
    """(loss, metrics) of the decoder's output; 0 where it is the audio."""
    terms = audio_losses.reconstruction_terms(output, audio, self.config.model.sample_rate, self.config.loss)
    return audio_losses.weighted(terms, self.config.loss), terms


class AudioVAEStage(AudioVAEStep):

  def __init__(self, config: AudioVAERun):
    super().__init__(config)
    self.dataset = datasets.open_dataset(config.data)
    model = config.model
    self.source = pipeline.SoundSource(self.dataset, config.num_latents * model.hop, model.channels,
                                       model.sample_rate, config.seed)
    self.start = codecs.load(config.start, 'audio') if config.start else None

  def begin(self, model):
    if not self.start:
      return model
    own = adversarial.codec_of(self.config.adversarial, model)
    return adversarial.with_codec(self.config.adversarial, model, decoder_only.begin(self.config, own, self.start.vae))

  def codec(self, model) -> AudioCodec:
    config = self.config
    return decoder_only.codec(config, self.start, adversarial.codec_of(config.adversarial, model), self.measured)

  def measured(self, vae) -> AudioCodec:
    batches = [np.stack([self.source[row]['audio'] for row in range(i, i + 8)]) for i in range(0, 64, 8)]
    return AudioCodec(vae, *audio_codec.statistics(vae, batches))

  def evaluate(self, ema) -> dict[str, float]:
    """Signal-to-distortion ratio in dB and log-mel distance of held-out clips."""
    codec, pairs = self.codec(ema), []
    for clip in heldout.clips(self.config.data, 'num_samples', self.config.evaluation_clips):
      audio = pipeline.mix(clip.audio, codec.channels)
      pairs.append((audio, codec.reconstruct(audio)))
    rows = [[audio_losses.as_rows(jnp.asarray(x[None])) for x in pair] for pair in pairs]
    mel = [float(audio_losses.log_mel_distance(made, true, codec.sample_rate)) for true, made in rows]
    return {'sdr': distortion.sdr(pairs), 'log_mel': float(np.mean(mel))}

  def draw(self, ema, step: int, workdir):
    """A held-out sound and its reconstruction, one after the other, as wav and as spectrogram."""
    codec, clip = self.codec(ema), next(iter(heldout.clips(self.config.data, 'num_samples', 1)))
    audio = pipeline.mix(clip.audio, codec.channels)
    both = np.concatenate([audio, codec.reconstruct(audio)])
    if not processes.is_first():
      return
    folder = samples.folder(workdir)
    sample = export.Sample(**vars(Clip(audio=both, sample_rate=codec.sample_rate)))
    with files.writing(folder / f'{step:07d}.wav') as draft:
      sample.save(draft)
    files.write(folder / f'{step:07d}.png', export.spectrogram(sample))

  def export(self, ema, workdir):
    self.codec(ema).save(workdir / codec_file.NAME)

  def clips(self, row: int) -> list[str]:
    """The name of the clip in a row."""
    return [self.dataset.id(clip) for clip in self.source.clips_of(row)]
