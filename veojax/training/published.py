"""What the fine-tuning of one published pipeline has in common with that of another: the converted run that it begins
with, clips of one size and their captions' features, evaluation, and the run that it leaves.

Of each clip the first frames and the middle of the frame are taken; clips that are smaller are left out.
"""
import abc
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from veojax import files, sharding
from veojax.data import datasets, pipeline, text_features
from veojax.generation.export import Sample
from veojax.generation.published_model import PublishedModel
from veojax.models import weights
from veojax.training import heldout, optimizer
from veojax.zoo import convert, published, text_encoders
from veojax.zoo.published import Published

RUN_HERE = frozenset(('remat', 'dtype', 'latents_mean', 'latents_std', 'scaling_factor'))  # not of a network's sizes


class PublishedStep:
  """What initialising and stepping need: the config alone."""
  changes = ()

  def __init__(self, config):
    self.config = config

  def make_optimizer(self):
    return optimizer.make(self.config.optimizer, self.config.loop.num_steps)

  def batch_spec(self, batch):
    return {name: sharding.B for name in batch}

  def abstract_model(self, mesh):
    """The network as shapes, laid out over the mesh, in the dtype of sampling."""
    with jax.set_mesh(mesh):
      model = jax.eval_shape(lambda: self.make_model(jax.random.key(0)))
    dtype = jnp.dtype(self.config.dtype)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding), model)

  def sampled_shape(self) -> tuple[int, int, int, int]:
    """(t, h, w, C) of the latents of a clip of the config's settings."""
    sizes = {name: getattr(self.config.settings, name) for name in ('num_frames', 'height', 'width')}
    return dataclasses.replace(self.config, **sizes).latent_shape


class PublishedSource:
  """Rows of the clips with these numbers, one in each, in an order of their own in every epoch."""

  def __init__(self, config, numbers: np.ndarray):
    self.config, self.numbers, self.rows_per_epoch = config, numbers, len(numbers)

  def clips_of(self, row: int) -> list[int]:
    return [pipeline.one_clip(self.numbers, self.config.seed, row)]


class PublishedStage(abc.ABC):
  """To be inherited before a step: `part` of a converted run goes on learning, all others stay as they are.

  published: pipelines whose runs it takes. sizes: parts of the run whose configs the stage's config has too, by the
  names there.
  """
  published: tuple[Published, ...]
  part: str
  sizes: dict[str, str]

  def __init__(self, config, workdir):
    super().__init__(config)
    files.on_disk(workdir, f'a fine-tuned {self.name}')
    if jax.process_count() > 1:
      raise ValueError(f'{self.name} is fine-tuned in one process, not in {jax.process_count()}; start one process that '
                       'has all devices')
    if not config.model:
      raise ValueError(f'config.model is empty; give the folder of a converted {self.name}: --config.model=RUN')
    record, description = convert.open_record(config.model)
    if description not in self.published:
      raise ValueError(f'{config.model} is a {description.name}; give a converted '
                       f'{" or ".join(model.name for model in self.published)}')
    self.run = published.load(config.model, description, record)
    self.pipeline = description.pipeline(self.run)
    self._check()
    self._loss = jax.jit(self.loss)
    self.dataset = datasets.open_dataset(config.data)
    self.source = self.rows(pathlib.Path(workdir), self.dataset, held_out=False)
    self.held_out = self.rows(pathlib.Path(workdir), heldout.split(config.data), held_out=True)

  @abc.abstractmethod
  def rows(self, workdir: pathlib.Path, dataset, held_out: bool) -> PublishedSource:
    """The source of training's rows, or of those that are measured on, of which nothing is dropped."""

  def features(self, workdir: pathlib.Path, dataset, encode: text_features.Encode, width: int
               ) -> text_features.TextFeatures:
    """Of the captions: what `veojax prepare --embed` has stored with the data, else what `encode` gives, which is kept
    in the work directory. ValueError where they are not of `width`."""
    stored = text_encoders.place(self.config.data, dataset.split)
    if text_features.read_record(stored) is not None:
      found = text_features.TextFeatures.open(stored)
    else:
      texts = [dataset.text(i) for i in range(len(dataset))]
      found = text_features.write(workdir / 'text_features' / dataset.split, texts, encode, str(self.config.model))
    if found.record['width'] != width:
      raise ValueError(f'the text features at {found.path} have width {found.record["width"]}, the model takes {width}; '
                       'make them with its own text encoder')
    return found

  def published_sizes(self) -> dict[str, Any]:
    """Configs of the run's networks that the stage's config has too, by the names there."""
    return {name: self.run.configs[part] for name, part in self.sizes.items()}

  def learned(self, model) -> dict[str, nnx.Module]:
    """The run's parts that are another with the model of a step."""
    return {self.part: model}

  def _check(self):
    for name, theirs in self.published_sizes().items():
      ours = getattr(self.config, name)
      for field in dataclasses.fields(theirs):
        if field.name not in RUN_HERE and getattr(ours, field.name) != getattr(theirs, field.name):
          raise ValueError(f'{name}.{field.name}={getattr(ours, field.name)}, but that of {self.config.model} is '
                           f'{getattr(theirs, field.name)}; set it to that')

  def make_model(self, key):
    """Zeros: a program that draws each parameter of a network takes long to compile, and `begin` gives the run's."""
    return jax.tree.map(jnp.zeros_like, super().make_model(key))

  def begin(self, model):
    return weights.like(model, self.run.parts[self.part])

  def evaluate(self, ema) -> dict[str, float]:
    return heldout.losses(ema, self, self._loss)

  def clips(self, row: int) -> list[str]:
    return [self.dataset.id(clip) for clip in self.source.clips_of(row)]

  def made(self, ema, workdir, prompts: list[str], **given) -> list[Sample]:
    """Clips of these prompts in the config's settings, by the fine-tuned model, which is named after the work
    directory."""
    model = PublishedModel(dataclasses.replace(self.run, parts={**self.run.parts, **self.learned(ema)}), str(workdir))
    return model.generate(prompts, **dataclasses.asdict(self.config.settings), **given)

  def export(self, ema, workdir):
    """A converted run of the fine-tuned part; the others stay where they are."""
    convert.derive(self.run, pathlib.Path(workdir), self.learned(ema))


def large_enough(config, dataset) -> np.ndarray:
  """Numbers of the clips that have the config's frames and pixels. ValueError where there is none."""
  names = 'num_frames', 'height', 'width'
  clips = np.flatnonzero(np.all([dataset.index[name] >= getattr(config, name) for name in names], 0))
  if not len(clips):
    raise ValueError(f'no clip of {len(dataset)} has {config.num_frames} frames of {config.height}x{config.width}; set '
                     'num_frames, height and width of the config to what the data has, or prepare larger clips')
  return clips


def middle(latent_THWC: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """float32 of the first frames and the middle of the frame."""
  t, h, w, _ = shape
  y, x = (latent_THWC.shape[1] - h) // 2, (latent_THWC.shape[2] - w) // 2
  return np.asarray(latent_THWC[:t, y:y + h, x:x + w], np.float32)
