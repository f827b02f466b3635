"""Make-A-Video as a person has it (`zoo.make_a_video`): a folder that holds as many of its parts as have been trained.

The folder holds cascade.json (sizes, defaults), a safetensors file for each part (embedder, decoder, interpolation,
super_resolution_0, super_resolution_1, ...) and text.model (sentencepiece). Pictures alone come of a decoder of
pictures.

Clips are made in pieces of the frames that a network was trained on: those of frame interpolation share the given
frames at their ends; those of super-resolution lie beside each other. All noise of a clip is drawn from its own key.
"""
import dataclasses
import functools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from veojax import config as door
from veojax import files, processes, sharding
from veojax.data.tokenizer import Tokenizer
from veojax.diffusion import timesteps
from veojax.generation import tasks, tree
from veojax.generation.export import Sample
from veojax.models import weights
from veojax.zoo import make_a_video, make_a_video_prior, make_a_video_unet
from veojax.zoo.make_a_video import CascadeSettings, PartConfig
from veojax.zoo.make_a_video_prior import Embedder, EmbedderConfig

RECORD, TOKENIZER, EMBEDDER = 'cascade.json', 'text.model', 'embedder'
DECODER, INTERPOLATION, SUPER_RESOLUTION = 'decoder', 'interpolation', 'super_resolution'
SAMPLER_KEYS = 1000  # numbers of keys; noise has those below


@dataclasses.dataclass(frozen=True)
class CascadeConfig:
  """cascade.json: everything that is not an array. fps: frames a second that the decoder is told unless asked
  otherwise."""
  embedder: EmbedderConfig
  decoder: PartConfig
  interpolation: PartConfig | None = None
  super_resolution: tuple[PartConfig, ...] = ()
  max_text: int = 64
  fps: float = 4.0
  settings: CascadeSettings = CascadeSettings()

  @property
  def parts(self) -> dict[str, PartConfig]:
    """The U-Nets by the names of their files, in the order in which they work."""
    between = {INTERPOLATION: self.interpolation} if self.interpolation else {}
    larger = {f'{SUPER_RESOLUTION}_{i}': part for i, part in enumerate(self.super_resolution)}
    return {DECODER: self.decoder, **between, **larger}

  @property
  def last(self) -> PartConfig:
    """Whose height and width a clip has."""
    return list(self.parts.values())[-1]

  @property
  def frame_factor(self) -> int:
    """Frames of a clip to one of the decoder's."""
    return self.interpolation.factor if self.interpolation else 1

  @property
  def num_frames(self) -> int:
    return (self.decoder.num_frames - 1) * self.frame_factor + 1


class Cascade:
  """What `veojax.load` gives for a run of configs/make_a_video.py. `modules`: parts that are in memory already."""
  takes_prompt = True
  video_codec = audio_codec = None  # it makes pixels

  def __init__(self, config: CascadeConfig, tokenizer: Tokenizer, folder=None, modules: dict | None = None,
               name: str = ''):
    self.config, self.tokenizer, self.folder, self.name = config, tokenizer, folder, name
    self._modules = dict(modules or {})

  def module(self, name: str):
    """A part, laid out over the mesh in force; read when it is first asked for."""
    mesh = jax.sharding.get_mesh()
    if name not in self._modules:
      self._modules[name] = weights.replace(self.shapes(name), self.flat(name))
    if any(getattr(x.sharding, 'mesh', None) != mesh if isinstance(x, jax.Array) else True
           for x in jax.tree.leaves(self._modules[name])):
      self._modules[name] = jax.tree.map(
          lambda x, s: jax.device_put(np.asarray(x, s.dtype), sharding.named(mesh, s.sharding.spec)),
          self._modules[name], self.shapes(name))
    return self._modules[name]

  def flat(self, name: str) -> dict[str, np.ndarray]:
    """A part's weights by their names, as they lie in its file."""
    return weights.load(self.folder / f'{name}.safetensors')[0]

  def shapes(self, name: str):
    if name == EMBEDDER:
      return weights.abstract(lambda rngs: Embedder(self.config.embedder, rngs=rngs))
    part = self.config.parts[name]
    return weights.abstract(lambda rngs: make_a_video_unet.make(part.unet, part.num_frames, rngs))

  @property
  def clip_sizes(self) -> dict[str, Any]:
    """Of a clip unless asked otherwise."""
    config = self.config
    return {'num_frames': config.num_frames, 'height': config.last.height, 'width': config.last.width,
            'fps': config.fps * config.frame_factor}

  def generate(self, prompt: str | list[str], *, num_frames: int | None = None, height: int | None = None,
               width: int | None = None, fps: float | int | None = None, seed: int = 0, first_index: int = 0,
               given: list[tasks.Given] | None = None, **options) -> Sample | list[Sample]:
    """A silent clip for a prompt, or a list of them for a list of prompts.

    num_frames and fps: of the finished clip. options: fields of `CascadeSettings`. given: of each clip nothing, which
    this model takes. Clip i, counted from `first_index` on, is made with the key fold_in(seed, i). Raises ValueError for
    sizes that the parts do not make and for unknown options.
    """
    prompts, config = [prompt] if isinstance(prompt, str) else list(prompt), self.config
    if not prompts or not any(prompts):
      raise ValueError('there is no prompt; give a text or a list of at least one')
    if any(one.named() for one in given or ()):
      raise ValueError(f'{self.name} makes clips of a text alone; give nothing else of them')
    settings = self.sampling(options)
    sizes = config.last.height, config.last.width
    if (height or sizes[0], width or sizes[1]) != sizes:
      raise ValueError(f'height={height}, width={width}; this model makes {sizes[0]}x{sizes[1]}: give those, or train '
                       'super-resolution to others')
    num_frames, factor = num_frames or config.num_frames, config.frame_factor
    fps = float(fps or config.fps * factor)
    if num_frames < 1 or not fps > 0 or (num_frames > 1 and config.decoder.num_frames == 1):
      raise ValueError(f'num_frames={num_frames}, fps={fps}; give positive numbers'
                       + (', of frames 1: only pictures have been trained' if config.decoder.num_frames == 1 else ''))
    base = math.ceil((num_frames - 1) / factor) + 1
    if config.interpolation and num_frames > 1:
      base = max(base, (config.interpolation.num_frames - 1) // factor + 1)
    with sharding.default_mesh(len(prompts)):
      keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), first_index + np.arange(len(prompts)))
      videos = _Making(self, settings, keys, fps / factor).clips(prompts, base, num_frames)
    info = {'model': self.name, 'seed': seed, **dataclasses.asdict(settings)}
    clips = [Sample(video, fps=fps, text=text, info={**info, 'index': first_index + i})
             for i, (video, text) in enumerate(zip(videos, prompts, strict=True))]
    return clips[0] if isinstance(prompt, str) else clips

  def sampling(self, options: dict) -> CascadeSettings:
    """The model's settings with some others. ValueError for unknown ones."""
    known = {f.name for f in dataclasses.fields(CascadeSettings)}
    for name in options:
      if name not in known:
        others = {'seed', 'num_frames', 'height', 'width', 'fps'}
        raise ValueError(f'unknown option {name}={options[name]!r}; {door.nearest(name, known | others)}')
    return door.build(CascadeSettings, {**door.to_tree(self.config.settings), **options}, 'generate')

  def network_calls(self, settings: CascadeSettings) -> int:
    """Evaluations of all networks for a clip that each of them makes at once."""
    guided = lambda scale: 1 if scale == 1 else 2
    towards = 1 + (self.config.interpolation is not None)  # the embedding
    calls = towards * guided(settings.guidance_scale) + len(self.config.super_resolution)
    each = settings.num_inference_steps * (2 if settings.sampler == 'heun' else 1)
    return settings.prior_steps * guided(settings.prior_guidance_scale) + each * calls

  @functools.cached_property
  def fingerprint(self) -> str:
    """Sixteen hex digits that change with any weight and with the config."""
    parts = {f'{part}.{name}': array for part in (EMBEDDER, *self.config.parts)
             for name, array in (weights.names(self._modules[part]) if part in self._modules else self.flat(part)).items()}
    return weights.fingerprint(parts, door.to_tree(self.config))

  def info(self) -> dict:
    """What the model is: its parts, sizes, defaults."""
    config = self.config
    rows = {'name': self.name, 'model': 'Make-A-Video', 'tasks': 'text to video' if config.decoder.num_frames > 1 else
            'text to image', 'sizes': f'{config.num_frames} frames of {config.last.height} × {config.last.width}',
            'frames a second': config.fps * config.frame_factor, 'defaults': dataclasses.asdict(config.settings)}
    count = lambda name: sum(x.size for x in jax.tree.leaves(self.shapes(name)))
    rows[EMBEDDER] = {'parameters': count(EMBEDDER), 'embedding': config.embedder.embedding_dim}
    for name, part in config.parts.items():
      kind = 'frames alone' if part.num_frames == 1 else f'{part.num_frames} frames at once'
      rows[name] = {'parameters': count(name), 'makes': f'{part.height} × {part.width}, {kind}',
                    'objective': f'{part.objective.prediction}, {part.objective.process}'}
    return rows

  def __repr__(self):
    """The tree of its parameters; none of them is read."""
    return tree.text(f'Cascade {self.name!r}', ((name, self.shapes(name)) for name in (EMBEDDER, *self.config.parts)))

  def save(self, folder):
    """The folder as `load` reads it: what is in memory is written, what is not is copied."""
    folder, first = files.path(folder), processes.is_first()
    for name in (EMBEDDER, *self.config.parts):
      if name in self._modules:
        weights.save(folder / f'{name}.safetensors', self._modules[name], {'kind': name})
      elif first:
        files.write(folder / f'{name}.safetensors', (self.folder / f'{name}.safetensors').read_bytes())
    if first:
      self.tokenizer.save(folder / TOKENIZER)
      files.write(folder / RECORD, json.dumps(door.to_tree(self.config), indent=2).encode())


class _Making:
  """Of clips under one mesh; frames are numpy, float32 in [-1, 1], between the parts."""

  def __init__(self, model: Cascade, settings: CascadeSettings, keys, fps: float):
    self.model, self.settings, self.keys, self.fps = model, settings, keys, fps

  def clips(self, prompts: list[str], base: int, num_frames: int) -> list[np.ndarray]:
    """uint8[T, H, W, 3] of each prompt; base: frames of the decoder."""
    config = self.model.config
    condition_BE = self.embeddings(prompts)
    x = self.decoded(condition_BE, base)
    if config.interpolation and base > 1:
      x = self.interpolated(x, condition_BE)
    for number, part in enumerate(config.super_resolution):
      x = self.larger(x[:, :num_frames], f'{SUPER_RESOLUTION}_{number}', part, 3 + 2 * number)
    return list(np.round((x[:, :num_frames] + 1) * 127.5).astype(np.uint8))

  def noise(self, number: int, shape) -> np.ndarray:
    """Normal, of each clip's key; every use has a number of its own."""
    return np.asarray(jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(self.keys))

  def embeddings(self, prompts: list[str]) -> np.ndarray:
    config, settings = self.model.config, self.settings
    ids = np.stack([text_row(self.model.tokenizer, text, config.max_text) for text in prompts])
    noise = self.noise(0, (config.embedder.embedding_dim,))
    made = make_a_video_prior.sample(
        self.model.module(EMBEDDER), sharding.fill_rows(ids), sharding.fill_rows(noise), settings.prior_guidance_scale,
        settings.prior_steps, config.decoder.dtype)
    return np.asarray(made)[:len(prompts)]

  def decoded(self, condition_BE: np.ndarray, num_frames: int) -> np.ndarray:
    part = self.model.config.decoder
    noise = self.noise(1, (num_frames, part.height, part.width, 3))
    return self.run(DECODER, part, noise, None, condition_BE, self.fps, np.arange(len(noise)))

  def interpolated(self, x: np.ndarray, condition_BE: np.ndarray) -> np.ndarray:
    part = self.model.config.interpolation
    B, T, *sizes = x.shape
    total, n, step = (T - 1) * part.factor + 1, part.num_frames, part.factor
    given = np.arange(total) % step == 0
    whole = np.zeros((B, total, *sizes), np.float32)
    whole[:, given] = x
    starts = np.unique(np.append(np.arange(0, total - n + 1, n - 1), total - n))
    noise = self.noise(2, (total, *sizes))
    piece = lambda frames: np.concatenate([frames[:, start:start + n] for start in starts])
    owner = np.tile(np.arange(B), len(starts))
    told = make_a_video.masked(place(piece(whole)), jnp.asarray(given[:n]))
    made = self.run(INTERPOLATION, part, piece(noise), np.asarray(told), condition_BE[owner], self.fps * step, owner)
    for i in reversed(range(len(starts))):
      between = ~given[starts[i]:starts[i] + n]
      whole[:, starts[i]:starts[i] + n][:, between] = made[i * B:(i + 1) * B][:, between]
    return whole

  def larger(self, x: np.ndarray, name: str, part: PartConfig, number: int) -> np.ndarray:
    """number: of its noise, and of the noise in what it is given. Frames made alone begin at the same noise."""
    B, T = x.shape[:2]
    n, alone = min(part.num_frames, T), part.num_frames == 1
    level, process = self.settings.given_noise, part.objective.make_process()
    shape = (1 if alone else T, part.height, part.width, 3)
    noise = np.broadcast_to(self.noise(number, shape), (B, T, *shape[1:]))
    noises = np.broadcast_to(self.noise(number + 1, (shape[0], *x.shape[2:])), x.shape)
    noisy = process.add_noise(jnp.asarray(x), jnp.asarray(noises), level)
    given = np.asarray(make_a_video.enlarged(noisy, part.factor))
    starts = np.minimum(np.arange(0, T, n), T - n)
    piece = lambda frames: np.concatenate([frames[:, start:start + n] for start in starts])
    owner = np.tile(np.arange(B), len(starts))
    told = make_a_video_unet.noise_vector(jnp.full((len(owner),), level), part.unet.condition_dim, part.dtype)
    rate = self.fps * self.model.config.frame_factor
    made = self.run(name, part, piece(noise), piece(given), np.asarray(told), rate, owner)
    out = np.zeros(given.shape, np.float32)
    for i, start in enumerate(starts):
      out[:, start:start + n] = made[i * B:(i + 1) * B]
    return out

  def run(self, name: str, part: PartConfig, noise, given, condition, fps: float, owner: np.ndarray) -> np.ndarray:
    """All steps of pieces of clips, `settings.rows` of them at once. owner: the clip of each."""
    settings, rows = self.settings, min(self.settings.rows, len(noise))
    guided = settings.guidance_scale != 1 and not name.startswith(SUPER_RESOLUTION)
    levels = timesteps.levels(settings.num_inference_steps)
    steps, network = [], self.model.module(name)
    # Of a stochastic sampler a clip's pieces, and frames made alone, draw the same noise too.
    number = SAMPLER_KEYS + list(self.model.config.parts).index(name)
    keys = np.asarray(jax.random.key_data(jax.vmap(lambda key: jax.random.fold_in(key, number))(self.keys)))
    for start in range(0, len(noise), rows):
      at = np.minimum(np.arange(start, start + rows), len(noise) - 1)
      at = sharding.fill_rows(at)
      made = make_a_video.sample(
          network, noise[at], None if given is None else place(given[at]), place(condition[at]).astype(part.dtype),
          place(np.full(len(at), fps, np.float32)), levels, settings.guidance_scale,
          jax.random.wrap_key_data(place(keys[owner[at]])), part.objective, settings.sampler, guided)
      steps.append(np.asarray(made)[:min(rows, len(noise) - start)])
    made = np.concatenate(steps)
    if not np.isfinite(made).all():
      raise FloatingPointError(f'the frames of {name} are not finite: the model has diverged')
    return made


def place(rows: np.ndarray) -> jax.Array:
  return jax.device_put(rows, sharding.named(jax.sharding.get_mesh(), sharding.B))


def text_row(tokenizer: Tokenizer, text: str, max_text: int) -> np.ndarray:
  """int32[max_text]: ids, and -1 behind them."""
  ids = tokenizer.encode(text, max_text)
  return np.pad(np.asarray(ids, np.int32), (0, max_text - len(ids)), constant_values=-1)


def is_cascade(folder) -> bool:
  return (files.path(folder) / RECORD).exists()


def load(folder) -> Cascade:
  """The model of a run's folder. ValueError where it is damaged."""
  folder = files.path(folder)
  if not is_cascade(folder):
    raise ValueError(f'{folder} holds no parts of Make-A-Video; give the folder of a run of configs/make_a_video.py')
  try:
    config = door.build(CascadeConfig, json.loads((folder / RECORD).read_text()), 'cascade')
  except (OSError, json.JSONDecodeError) as error:
    raise ValueError(f'{folder / RECORD} cannot be read ({error}); copy the run again') from None
  missing = [name for name in (EMBEDDER, *config.parts) if not (folder / f'{name}.safetensors').exists()]
  if missing:
    raise ValueError(f'{folder} lacks {", ".join(missing)}; copy the run again, whole')
  return Cascade(config, Tokenizer.load(folder / TOKENIZER), folder, name=str(folder))
