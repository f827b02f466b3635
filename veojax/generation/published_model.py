"""A converted model as a person has it: the same `generate` and `info` as of a model that was trained here."""
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from veojax import config as door
from veojax import sharding
from veojax.data import media
from veojax.generation import tasks, tree
from veojax.generation.export import Sample
from veojax.zoo import convert, part_checkpoint, published
from veojax.zoo.published import Pipeline, Run


class PublishedModel:
  """What `veojax.load` gives for the output of `veojax convert`."""
  video_codec = audio_codec = None  # by which others' clips could be measured

  def __init__(self, run: Run, name: str = ''):
    self.run, self.name = run, name
    self.pipeline: Pipeline = run.published.pipeline(run)

  @property
  def takes_prompt(self) -> bool:
    return self.pipeline.takes_prompt

  @property
  def clip_sizes(self) -> dict[str, Any]:
    """Of a clip unless asked otherwise."""
    return {name: getattr(self.pipeline.settings, name) for name in ('num_frames', 'height', 'width', 'fps')}

  def generate(self, prompt: str | list[str] = '', *, seed: int = 0, first_index: int = 0,
               given: list[tasks.Given] | None = None, **options) -> Sample | list[Sample]:
    """A clip for a prompt, or a list of them for a list of prompts.

    options: fields of the pipeline's settings (num_frames, height, width, num_inference_steps, guidance_scale, ...; the
    published ones by default) and what it takes of a clip (image). `given`, one for each prompt, is for clips of which
    different things are given, which are made one by one. Clip i, counted from `first_index` on, is made from normal
    noise of the key fold_in(seed, i). Raises ValueError for what cannot be and for unknown options.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts or (self.takes_prompt and not any(prompts)):
      raise ValueError('there is no prompt; give a text or a list of at least one')
    if any(told := [self._taken(one) for one in given or ()]):
      return [self.generate(text, seed=seed, first_index=first_index + i, **options, **more)
              for i, (text, more) in enumerate(zip(prompts, told, strict=True))]
    of_clip = self._given(options)
    settings = self.sampling(options)
    indices = range(first_index, first_index + len(prompts))

    def draw(use, shape):
      return jnp.stack([jax.random.normal(jax.random.fold_in(jax.random.key(seed), use + i), shape) for i in indices])
    with sharding.default_mesh(len(prompts)):
      videos = self.pipeline(prompts, draw(0, self.pipeline.noise_shape(settings)), settings, draw, **of_clip)
    info = {'model': self.name, 'seed': seed, **dataclasses.asdict(settings)}
    clips = [Sample(video, fps=settings.fps, text=text, info={**info, 'index': i})
             for i, video, text in zip(indices, videos, prompts, strict=True)]
    return clips[0] if isinstance(prompt, str) else clips

  def _taken(self, given: tasks.Given) -> dict[str, Any]:
    """What is given of a clip, as options of `generate`. ValueError for what the model does not take."""
    for name in given.named():
      if name not in self.pipeline.given:
        takes = ', '.join(self.pipeline.given) or 'a text alone'
        raise ValueError(f'{self.run.published.name} takes no {name}; it takes {takes}')
    return given.named()

  def _given(self, options: dict) -> dict[str, np.ndarray | dict]:
    """What is given of the clip, taken out of the options and read."""
    given = {name: options.pop(name) for name in self.pipeline.given if options.get(name) is not None}
    for name, needed in self.pipeline.given.items():
      if needed and name not in given:
        raise ValueError(f'{self.run.published.name} makes a clip of an {name}; give {name}=...')
    return {name: _pictures(value) for name, value in given.items()}

  def sampling(self, options: dict):
    """The published settings with those that were asked for; ValueError names the nearest known one."""
    settings = self.pipeline.settings
    published_ones = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    for name, value in options.items():
      if name not in published_ones:
        known = {*published_ones, *self.pipeline.given, 'seed'}
        raise ValueError(f'unknown option {name}={value!r}; {door.nearest(name, known)}')
    asked = {name: value for name, value in options.items() if value is not None}
    return door.build(type(settings), {**published_ones, **asked}, self.run.published.name)

  def network_calls(self, settings) -> int:
    """Evaluations of the network for a clip."""
    return settings.num_inference_steps * (2 if settings.guidance_scale > 1 else 1)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Sixteen hex digits that change with any file of the model (sha256)."""
    digest, run = hashlib.sha256(), self.run
    folders = [published.part_folder(run.folder, run.record, name) for name in run.parts]
    for folder, names in [(run.folder, run.record['copied']), *((folder, sorted(
        str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())) for folder in folders)]:
      for name in names:
        with open(folder / name, 'rb') as file:
          digest.update(name.encode() + hashlib.file_digest(file, 'sha256').digest())
    return digest.hexdigest()[:16]

  def info(self) -> dict:
    """What the model is: tasks, sizes, licence, defaults, and where it comes from."""
    run = self.run
    rows = {'name': self.name, 'model': f'{run.published.name} ({run.record["class_name"]})',
            'licence': run.record['licence'], 'tasks': ', '.join(run.published.tasks), 'source': run.record['source'],
            **self.pipeline.sizes(), 'defaults': dataclasses.asdict(self.pipeline.settings)}
    for name, part in self._stored():
      leaves = part.values()
      rows[name] = {'class': run.record['parts'][name]['class_name'], 'parameters': sum(x.size for x in leaves),
                    'dtype': ', '.join(sorted({str(x.dtype) for x in leaves}))}
    return rows

  def _stored(self) -> Iterator[tuple[str, dict[str, jax.ShapeDtypeStruct]]]:
    """(name, shapes by path) of each part, from its checkpoint's own description: a model need not fit this machine to
    be told of."""
    for name in self.run.parts:
      folder = published.part_folder(self.run.folder, self.run.record, name)
      yield name, part_checkpoint.stored(folder / 'weights')

  def __repr__(self):
    """The tree of its parameters; none of them is read."""
    return tree.text(f'PublishedModel {self.name!r}', self._stored())


def _pictures(value):
  """A picture, or {seconds: picture}."""
  return {at: _picture(one) for at, one in value.items()} if isinstance(value, Mapping) else _picture(value)


def _picture(value) -> np.ndarray:
  """uint8[H, W, 3] of a path or an array."""
  if isinstance(value, (str, os.PathLike)):
    clip = media.read(value)
    if clip.video is None:
      raise ValueError(f'{value} has no picture; give an image')
    return clip.video[0]
  value = np.asarray(value)
  if value.dtype != np.uint8 or value.ndim != 3 or value.shape[-1] != 3:
    raise ValueError(f'a picture is {value.dtype}{list(value.shape)}; give a path or uint8[H, W, 3]')
  return value


def is_converted(folder) -> bool:
  return (pathlib.Path(folder) / published.RECORD).exists()


def load(folder) -> PublishedModel:
  """The model of a folder that `veojax convert` has made. ValueError where it is damaged."""
  record, description = convert.open_record(folder)
  return PublishedModel(published.load(folder, description, record), name=str(folder))
