"""Stage three: the transformer learns to denoise packed rows of the codecs' latents under their captions."""
import dataclasses
import pathlib
import shutil
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from veojax.data import datasets, latents as latent_cache, mixing, packing, pipeline
from veojax.data.mixing import DataConfig
from veojax.data.packing import PackConfig
from veojax.data.tasks import TaskConfig
from veojax.data.tokenizer import Tokenizer
from veojax.diffusion.objective import Objective
from veojax.generation import model as models
from veojax.generation import export
from veojax.generation.model import ClipConfig, ModelConfig
from veojax.generation.sampling import SamplingConfig
from veojax.models import dit, weights
from veojax.models.dit import DiT, DiTConfig
from veojax.sharding import MeshConfig
from veojax.training import heldout, latents, loop, losses, optimizer
from veojax.training.loop import LoopConfig
from veojax.training.losses import LossConfig
from veojax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TransformerRun:
  """configs/*.py as a dataclass.

  video_codec, audio_codec: a codec that comes with the package ('world'); or a codec's config file, trained first
  inside the run; or the folder of a finished codec run; or a codec.safetensors. An empty audio_codec makes a model
  without sound.
  data: a prepared data set; or several, [{'path': ..., 'weight': ...}, ...], of pictures or sound alone too. The first
  one's tokenizer reads all captions, and it trains the codecs that are trained inside the run.
  latents: 'cached' encodes every clip once, before the training; 'on_the_fly' whenever it is read.
  """
  stage: Literal['transformer']
  video_codec: str
  audio_codec: str
  data: str | tuple[DataConfig, ...] = ''
  seed: int = 0
  dit: DiTConfig = DiTConfig()
  objective: Objective = Objective()
  loss: LossConfig = LossConfig()
  pack: PackConfig = PackConfig()
  caption_dropout: float = 0.1
  tasks: TaskConfig = TaskConfig()
  latents: Literal['cached', 'on_the_fly'] = 'cached'
  sampling: SamplingConfig = SamplingConfig()
  clip: ClipConfig = ClipConfig()
  prompts: tuple[str, ...] = ()  # drawn during training
  optimizer: OptimizerConfig = OptimizerConfig()
  loop: LoopConfig = LoopConfig()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self):
    if self.pack.channels != self.dit.channels:
      raise ValueError(f'pack.channels={self.pack.channels}, but the widest modality has {self.dit.channels} channels; '
                       f'set pack.channels={self.dit.channels}')
    if not 0 <= self.caption_dropout <= 1:
      raise ValueError(f'caption_dropout={self.caption_dropout}; give a share in [0, 1]')


class TransformerStep:
  """What initialising and stepping need: the config alone."""
  name = 'transformer'

  def __init__(self, config: TransformerRun):
    self.config = config

  def blank(self):
    """A row of the batch, empty."""
    return packing.empty_row(self.config.pack)

  def make_model(self, key) -> DiT:
    return DiT(self.config.dit, rngs=nnx.Rngs(key))

  def make_optimizer(self):
    return optimizer.make(self.config.optimizer, self.config.loop.num_steps)

  def batch_spec(self, batch):
    return dit.TOKEN_SPECS

  def loss(self, model, tokens, key, step=None):
    return losses.diffusion_loss(model, tokens, key, self.config.loss, self.config.objective)


class TransformerStage(TransformerStep):

  def __init__(self, config: TransformerRun, workdir: pathlib.Path, video_codec, audio_codec):
    super().__init__(config)
    self.video_codec, self.audio_codec = video_codec, audio_codec
    self.parts = mixing.parts(config.data)
    self.dataset = datasets.open_dataset(self.parts[0].path)
    self.tokenizer = Tokenizer.load(self.dataset.tokenizer_path)
    self._check()
    self._loss = jax.jit(self.loss)
    self.source = self._rows(workdir, datasets.open_dataset, config.caption_dropout)
    self.held_out = self._rows(workdir, heldout.split, 0.0)

  def _rows(self, workdir, open_dataset, caption_dropout) -> pipeline.RowSource:
    """The rows of all data sets, each by its weight."""
    config = self.config
    sources = [_latents(workdir, i, open_dataset(part.path), config, self.video_codec, self.audio_codec)
               for i, part in enumerate(self.parts)]
    weights = np.repeat([part.weight for part in self.parts], [len(source) for source in sources])
    return pipeline.RowSource(mixing.JoinedLatents(sources), self.tokenizer, config.pack, config.seed, caption_dropout,
                              config.tasks, weights)

  def _check(self):
    config = self.config
    if self.tokenizer.vocab_size > config.dit.text.vocab_size:
      raise ValueError(f'the data\'s tokenizer has {self.tokenizer.vocab_size} pieces, dit.text.vocab_size is '
                       f'{config.dit.text.vocab_size}; raise it to at least that')
    for name, codec in (('video', self.video_codec), ('audio', self.audio_codec)):
      channels = getattr(config.dit, f'{name}_channels')
      if codec is not None and codec.latent_channels != channels:
        raise ValueError(f'dit.{name}_channels={channels}, but the {name} codec has {codec.latent_channels} '
                         f'latent channels; set it to {codec.latent_channels}')

  def evaluate(self, ema) -> dict[str, float]:
    """Loss of held-out rows, with noise that is the same at every evaluation."""
    rows, batch = self.held_out.rows_per_epoch, self.config.loop.batch_size
    totals = []
    for i in range(max(1, min(8, rows // batch))):
      tokens = pipeline.stack([self.held_out[(i * batch + j) % rows] for j in range(batch)])
      tokens = jax.tree.map(lambda x: x[0], loop.put(tokens, self))
      loss, metrics = self._loss(ema, tokens, jax.random.key(i))
      totals.append({'loss': float(loss), **{k: float(v) for k, v in metrics.items()}})
    return {name: float(np.mean([t[name] for t in totals])) for name in totals[0]}

  def model(self, ema, name='') -> models.Model:
    config = self.config
    return models.Model(ModelConfig(config.dit, config.objective, config.sampling, config.clip, config.pack.max_text),
                        ema, self.video_codec, self.audio_codec, self.tokenizer, name)

  def draw(self, ema, step: int, folder: pathlib.Path):
    """Clips of the config's prompts."""
    if self.config.prompts:
      folder.mkdir(exist_ok=True)
      for i, clip in enumerate(self.model(ema).generate(list(self.config.prompts))):
        clip.save(folder / f'{step:07d}_{i}.mp4')
        (folder / f'{step:07d}_{i}.png').write_bytes(export.png(export.contact_sheet(clip)))

  def export(self, ema, workdir: pathlib.Path):
    """The folder as `veojax.load` reads it."""
    models.write_config(workdir, self.model(ema).config)
    shutil.copyfile(self.dataset.tokenizer_path, workdir / 'text.model')
    for name, codec in (('video', self.video_codec), ('audio', self.audio_codec)):
      if codec is not None:
        codec.save(workdir / f'{name}_vae.safetensors')
    weights.save(workdir / 'weights.safetensors', ema, {'kind': 'transformer'})


def _latents(workdir, number, dataset, config, video_codec, audio_codec):
  """A data set's latents; its cache is latents/SPLIT in the work directory, latents/SPLIT_1 for the second, ..."""
  num_stills = config.tasks.num_stills
  if config.latents == 'on_the_fly':
    return latents.EncodedSource(dataset, video_codec, audio_codec, num_stills)
  path = workdir / 'latents' / (f'{dataset.split}_{number}' if number else dataset.split)
  latents.write(path, dataset, video_codec, audio_codec, num_stills=num_stills)
  hashes = [codec.hash() if codec is not None else '' for codec in (video_codec, audio_codec)]
  return latent_cache.LatentCache.open(path, *hashes)
