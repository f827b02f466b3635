"""Stage three: the transformer learns to denoise packed rows of the codecs' latents under their captions."""
import dataclasses
from typing import Literal

import jax
import numpy as np

from veojax import processes
from veojax.data import datasets, mixing, packing, pipeline
from veojax.data.mixing import DataConfig
from veojax.data.packing import PackConfig
from veojax.data.tasks import TaskConfig
from veojax.data.tokenizer import Tokenizer
from veojax.diffusion.objective import Objective
from veojax.generation import model as models
from veojax.generation import codecs
from veojax.generation.model import ClipConfig, ModelConfig
from veojax.generation.sampling import SamplingConfig
from veojax.models import codec_file, dit, layers, run_checkpoint, weights
from veojax.models.dit import DiT, DiTConfig
from veojax.models.patched_codec import patched
from veojax.sharding import MeshConfig
from veojax.training import heldout, latents, losses, optimizer, samples
from veojax.training.loop import LoopConfig
from veojax.training.losses import LossConfig
from veojax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TransformerRun:
  """configs/*.py as a dataclass.

  video_codec, audio_codec: a codec that comes with the package ('world'); or a codec's config file, trained first
  inside the run; or the folder of a finished codec run; or a codec.safetensors. An empty audio_codec makes a model
  without sound.
  video_patch: latents of height and of width that are one token.
  start: the folder of a model whose weights, and whose tokenizer, this one begins with; empty: random weights.
  data: a prepared data set; or several, [{'path': ..., 'weight': ...}, ...], of pictures or sound alone too. The first
  one's tokenizer reads all captions, and it trains the codecs that are trained inside the run.
  latents: 'cached' encodes every clip once, before the training; 'on_the_fly' whenever it is read.
  """
  stage: Literal['transformer']
  video_codec: str
  audio_codec: str
  video_patch: int = 1
  data: str | tuple[DataConfig, ...] = ''
  start: str = ''
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
    if self.video_patch < 1:
      raise ValueError(f'video_patch={self.video_patch}; give 1 or more')
    if not 0 <= self.caption_dropout <= 1:
      raise ValueError(f'caption_dropout={self.caption_dropout}; give a share in [0, 1]')
    if self.latents == 'on_the_fly' and self.loop.num_workers:
      raise ValueError(f'loop.num_workers={self.loop.num_workers} with latents=on_the_fly, which this process alone '
                       'can encode; set loop.num_workers=0, or latents=cached')

  def check_tokenizer(self, tokenizer: Tokenizer):
    """Raises ValueError where captions have more pieces than the text encoder has embeddings for."""
    if tokenizer.vocab_size > self.dit.text.vocab_size:
      raise ValueError(f'the data\'s tokenizer has {tokenizer.vocab_size} pieces, dit.text.vocab_size is '
                       f'{self.dit.text.vocab_size}; raise it to at least that')

  def check_channels(self, kind: str, channels: int):
    """Raises ValueError where a codec, 'video' or 'audio', makes tokens of other channels than the model's."""
    mine = getattr(self.dit, f'{kind}_channels')
    if channels != mine:
      raise ValueError(f'dit.{kind}_channels={mine}, but the {kind} codec has {channels} latent channels; set it to '
                       f'{channels}')


class TransformerStep:
  """What initialising and stepping need: the config alone."""
  name, changes = 'transformer', ()

  def __init__(self, config: TransformerRun):
    self.config = config

  def blank(self):
    """A row of the batch, empty."""
    return packing.empty_row(self.config.pack)

  def make_model(self, key) -> DiT:
    return DiT(self.config.dit, rngs=layers.Rngs(key))

  def make_optimizer(self):
    return optimizer.make(self.config.optimizer, self.config.loop.num_steps)

  def batch_spec(self, batch):
    return dit.TOKEN_SPECS

  def loss(self, model, tokens, key, step=None):
    return losses.diffusion_loss(model, tokens, key, self.config.loss, self.config.objective)


class TransformerStage(TransformerStep):

  def __init__(self, config: TransformerRun, workdir, video_codec, audio_codec):
    super().__init__(config)
    self.video_codec, self.audio_codec = patched(video_codec, config.video_patch), audio_codec
    self.parts = mixing.parts(config.data)
    self.dataset = datasets.open_dataset(self.parts[0].path)
    self._start = models.outline(config.start) if config.start else None
    self.tokenizer = self._start.tokenizer if self._start else Tokenizer.load(self.dataset.tokenizer_path)
    self._check(workdir)
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

  def _check(self, workdir):
    config = self.config
    config.check_tokenizer(self.tokenizer)
    for name, codec in (('video', self.video_codec), ('audio', self.audio_codec)):
      if codec is not None:
        config.check_channels(name, codec.latent_channels)
    if run_checkpoint.steps(workdir):
      self._check_same(workdir)
    for kind in codecs.KINDS if self._start else ():
      theirs, ours = (codec and codec.hash() for codec in (getattr(x, f'{kind}_codec') for x in (self._start, self)))
      if theirs != ours:
        raise ValueError(f'start={config.start} was trained on the latents of another {kind} codec ({theirs}, this run '
                         f'has {ours}); set {kind}_codec={codec_file.of(weights.locate(config.start), kind)}, '
                         f'video_patch={self._start.config.video_patch}')

  def _check_same(self, workdir):
    """Raises ValueError where a run would go on with other codecs or another tokenizer than it has trained with."""
    for kind in codecs.KINDS:
      path, codec = codec_file.of(workdir, kind), getattr(self, f'{kind}_codec')
      if not path.exists():
        continue
      theirs = codecs.load(path, kind)
      theirs = (patched(theirs, self.config.video_patch) if kind == 'video' else theirs).hash()
      ours = 'none' if codec is None else codec.hash()
      if theirs != ours:
        raise ValueError(f'{workdir} has trained on the latents of another {kind} codec ({theirs}, this one is {ours}'
                         f'); set {kind}_codec={path}, or give another --workdir')
    path = workdir / models.TOKENIZER
    if path.exists() and Tokenizer.load(path).hash() != self.tokenizer.hash():
      raise ValueError(f'{workdir} has trained with another tokenizer than that of {self.parts[0].path}; prepare the '
                       f'data with --tokenizer={path}, or give another --workdir')

  def begin(self, model):
    if self._start is None:
      return model
    return weights.like(model, models.read_weights(self.config.start, self._start.dit))

  def evaluate(self, ema) -> dict[str, float]:
    return heldout.losses(ema, self, self._loss)

  def model(self, ema, name='') -> models.Model:
    return models.Model(self.described, ema, self.video_codec, self.audio_codec, self.tokenizer, name)

  @property
  def described(self) -> ModelConfig:
    config = self.config
    return ModelConfig(config.dit, config.objective, config.sampling, config.clip, config.pack.max_text,
                       config.video_patch)

  def draw(self, ema, step: int, workdir):
    """Clips of the config's prompts."""
    if self.config.prompts:
      samples.write(self.model(ema, str(workdir)).generate(list(self.config.prompts)), workdir, step)

  def export(self, ema, workdir):
    """The folder as `veojax.load` reads it."""
    self.describe(workdir)
    weights.save(workdir / models.WEIGHTS, ema, {'kind': 'transformer'})

  def describe(self, workdir):
    """All of a model's folder but its weights; with it the checkpoints of a run that goes on can be read."""
    if processes.is_first():
      models.write_config(workdir, self.described)
      self.tokenizer.save(workdir / models.TOKENIZER)
    for name, codec in (('video', self.video_codec), ('audio', self.audio_codec)):
      if codec is not None:
        codec.save(codec_file.of(workdir, name))

  def clips(self, row: int) -> list[str]:
    """The clips in a row by their names, each with its data set."""
    places = map(self.source.latents.place, self.source.clips_of(row))
    return [f'{self.parts[number].path}: {datasets.open_dataset(self.parts[number].path).id(clip)}'
            for number, clip in places]


def _latents(workdir, number, dataset, config, video_codec, audio_codec):
  """A data set's latents; its cache is latents/SPLIT in the work directory, latents/SPLIT_1 for the second, ..."""
  num_stills = config.tasks.num_stills
  if config.latents == 'on_the_fly':
    return latents.EncodedSource(dataset, video_codec, audio_codec, num_stills)
  path = workdir / 'latents' / (f'{dataset.split}_{number}' if number else dataset.split)
  return latents.cached(path, dataset, video_codec, audio_codec, num_stills=num_stills)
