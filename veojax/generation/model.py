"""A model as a person has it: one folder, and `generate`.

The folder holds model.json (sizes, objective, defaults), weights.safetensors (the transformer with its text encoder and
heads), video_vae.safetensors and audio_vae.safetensors (the codecs; either may be absent) and text.model
(sentencepiece).
"""
import dataclasses
import functools
import json
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import numpy as np

from veojax import config as door
from veojax import files, sharding
from veojax.data import latent_clip, packing
from veojax.data.tokenizer import Tokenizer
from veojax.diffusion.objective import Objective
from veojax.generation import cascade, codecs, joining, published_model, rows, sampling, tasks, tree
from veojax.generation import prompts as prompting
from veojax.generation.canvas import Canvas
from veojax.generation.cascade import Cascade
from veojax.generation.export import Sample
from veojax.generation.published_model import PublishedModel
from veojax.generation.sampling import SamplingConfig
from veojax.generation.wanted import Wanted
from veojax.models import codec_file, run_checkpoint, weights
from veojax.models.audio_codec import AudioCodec
from veojax.models.dit import DiT, DiTConfig
from veojax.models.patched_codec import patched
from veojax.models.picture_codec import PictureCodec
from veojax.types import Tokens

TOKENIZER, WEIGHTS = 'text.model', 'weights.safetensors'


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """The clip that `generate` makes unless asked otherwise: the sizes the model has seen most."""
  num_frames: int = 17
  height: int = 64
  width: int = 64
  fps: float = 16.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """model.json: everything that is not an array."""
  dit: DiTConfig
  objective: Objective = Objective()
  sampling: SamplingConfig = SamplingConfig()
  clip: ClipConfig = ClipConfig()
  max_text: int = 64
  video_patch: int = 1  # latents of height and of width that are one token


class Model:
  """What `veojax.load` gives."""
  takes_prompt = True

  def __init__(self, config: ModelConfig, dit: DiT, video_codec: PictureCodec | None, audio_codec: AudioCodec | None,
               tokenizer: Tokenizer, name: str = ''):
    self.config, self.dit, self.tokenizer, self.name = config, dit, tokenizer, name
    self.video_codec, self.audio_codec = video_codec, audio_codec

  @property
  def clip_sizes(self) -> dict[str, Any]:
    """Of a clip unless asked otherwise."""
    return vars(self.config.clip)

  def generate(self, prompt: str | list[str], *, negative_prompt: str = '', num_frames: int | None = None,
               height: int | None = None, width: int | None = None, fps: float | int | None = None, seed: int = 0,
               first_index: int = 0, given: list[tasks.Given] | None = None, paste: bool = False,
               expand: prompting.Expand | None = None, **options) -> Sample | list[Sample]:
    """A clip with sound for a prompt, or a list of them for a list of prompts.

    options: what is given of the clip, as `tasks.Given` names it (image, last_image, keyframes, references, video, audio,
    mask, task), and fields of `SamplingConfig` (num_inference_steps, guidance_scale, sampler, strength, ...). What is
    given comes back as the codecs have it; `paste` puts the given pixels and samples themselves over it. `given`, one for
    each prompt, is for clips of which different things are given. `expand` makes of each prompt what the model is told.
    Clip i, counted from `first_index` on, is made with the key fold_in(seed, i), whatever clips are made beside it.
    Several devices, those of the mesh in force or else all, share the work; the clip is the same. Raises ValueError for
    sizes that are not positive, for what does not go together and for unknown options.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
      raise ValueError('there is no prompt; give a text or a list of at least one')
    sizes = {'num_frames': num_frames, 'height': height, 'width': width, 'fps': fps}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    tasks.check({**sizes, 'seed': seed, 'first_index': first_index})
    if options.get('task') in joining.TASKS:
      made = [joining.generate(self, text, seed=seed, first_index=first_index + i, negative_prompt=negative_prompt,
                               num_frames=num_frames, height=height, width=width, fps=fps, expand=expand, **options)
              for i, text in enumerate(prompts)]
      return made[0] if isinstance(prompt, str) else made
    if given is None:
      given = [tasks.Given(**{name: options.pop(name) for name in tasks.NAMES if name in options})] * len(prompts)
    if len(given) != len(prompts):
      raise ValueError(f'{len(prompts)} prompts and {len(given)} given; give one a prompt')
    options |= {name: float(size) if name == 'fps' else size for name, size in sizes.items()}
    clips = self.make([Wanted(text, seed, first_index + i, one, options)
                       for i, (text, one) in enumerate(zip(prompts, given))], negative_prompt, paste, expand)
    return clips[0] if isinstance(prompt, str) else clips

  def make(self, wanted: Sequence[Wanted], negative_prompt: str = '', paste: bool = False,
           expand: prompting.Expand | None = None) -> list[Sample]:
    """The clips in one call of the sampler, each as `generate` makes it. Raises ValueError as `generate` does, and
    where the clips differ in more than `kind` allows."""
    sizes, configs = zip(*(self._settings(w.options) for w in wanted))
    if len({(tuple(own.items()), sampling.kind(config)) for own, config in zip(sizes, configs)}) > 1:
      raise ValueError('clips made together have one size, and differ in no setting but scales and shifts, which none '
                       'of them may lack; make the others apart')
    with sharding.default_mesh(len(wanted) * (1 + len(sampling.away_from(configs[0])))):
      given = {id(w.given): w.given for w in wanted}  # drawn once for what is given of several
      drawn = {key: self.canvas(one, sizes[0], configs[0]) for key, one in given.items()}
      canvases, latents = zip(*(drawn[id(w.given)] for w in wanted))
      configs = [sampling.for_clip(latents[0], config) for config in configs]
      told = prompting.expanded([w.prompt for w in wanted], expand)
      evaluations = self.rows(latents, told, negative_prompt, configs[0])
      seeds = jax.numpy.stack([jax.random.key(w.seed) for w in wanted])
      keys = jax.vmap(jax.random.fold_in)(seeds, np.array([w.index for w in wanted]))
      made = sampling.sample(self.laid_out(), evaluations, keys, objective=self.config.objective, configs=configs)
      row = lambda i: Tokens(*(x[i] for x in evaluations[0]))._replace(latent=made[i])
      info = lambda i: {'model': self.name, 'seed': wanted[i].seed, **dataclasses.asdict(configs[i]),
                        'index': wanted[i].index, **({'told': told[i]} if expand else {})}
      clips = [self._decode(row(i), canvases[i], latents[i], w.prompt, info(i)) for i, w in enumerate(wanted)]
    if paste:
      for clip, canvas in zip(clips, canvases):
        canvas.paste(clip, clip.sample_rate)
    return clips

  def kind(self, wanted: Wanted) -> Hashable:
    """Equal for clips that `make` makes in one call: of one size, with the same things given and one
    `sampling.kind`."""
    sizes, config = self._settings(wanted.options)
    return tuple(sizes.items()), tuple(wanted.given.named()), sampling.kind(config)

  def _settings(self, options: dict) -> tuple[dict, SamplingConfig]:
    """Sizes that are asked for, and settings of the sampler."""
    sizes = {name: options[name] for name in self.clip_sizes if name in options}
    return sizes, self.sampling({name: value for name, value in options.items() if name not in sizes})

  def canvas(self, given: tasks.Given, asked: dict, config: SamplingConfig) -> tuple[Canvas, latent_clip.LatentClip]:
    """What is known of a clip, as pixels and samples and as latents. asked: as of `tasks.canvas`."""
    canvas = tasks.canvas(self, given, asked, edit=config.strength < 1)
    return canvas, canvas.latents(self.video_codec, self.audio_codec, keep_unknown=config.strength < 1)

  def sampling(self, options: dict) -> SamplingConfig:
    """The model's settings for sampling with some others. ValueError for unknown ones."""
    known = {f.name for f in dataclasses.fields(SamplingConfig)}
    for name in options:
      if name not in known:
        others = {'prompt', 'negative_prompt', 'seed', 'paste', 'expand', *tasks.NAMES,
                  *(f.name for f in dataclasses.fields(ClipConfig))}
        raise ValueError(f'unknown option {name}={options[name]!r}; {door.nearest(name, known | others)}')
    return door.build(SamplingConfig, {**door.to_tree(self.config.sampling), **options}, 'generate')

  def network_calls(self, config: SamplingConfig) -> int:
    """Evaluations of the network for a clip."""
    return sampling.network_calls(config)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Sixteen hex digits that change with any weight of the transformer and with the config."""
    return weights.fingerprint(self.dit, door.to_tree(self.config))

  def num_samples(self, num_frames: int, fps: float) -> int:
    return round(num_frames / fps * self.audio_codec.sample_rate)

  def laid_out(self) -> DiT:
    """The transformer over the mesh in force, where it stays until another mesh asks for it."""
    mesh = jax.sharding.get_mesh()
    lies_on = lambda x: getattr(x.sharding, 'mesh', None) if isinstance(x, jax.Array) else None
    if any(lies_on(x) != mesh for x in jax.tree.leaves(self.dit)):
      layout = weights.abstract(lambda rngs: DiT(self.config.dit, rngs=rngs))
      self.dit = jax.tree.map(lambda x, s: weights.put(x, sharding.named(mesh, s.sharding.spec)), self.dit, layout)
    return self.dit

  def rows(self, latents: Sequence[latent_clip.LatentClip], prompts: list[str], negative_prompt: str,
           config: SamplingConfig) -> list[Tokens]:
    """What is evaluated for clips of one size, each under its prompt: `rows.evaluations`."""
    if len(lengths := {latent.num_tokens for latent in latents}) > 1:
      raise ValueError(f'the clips have {sorted(lengths)} tokens; what is given of each must be of one kind and size, so '
                       'that none depends on the others: make the others apart')
    away = sampling.away_from(config)
    pack = rows.pack_config(away, self.config.max_text, self.config.dit.channels, lengths.pop())
    *ids, negative = (self.tokenizer.encode(text, self.config.max_text) for text in [*prompts, negative_prompt])
    return rows.evaluations(latents, ids, negative, away, pack)

  def _decode(self, row: Tokens, canvas: Canvas, latent: latent_clip.LatentClip, text: str, info: dict) -> Sample:
    shapes = (None if x is None else x.shape for x in (latent.video, latent.audio))
    video, audio = packing.unpack(row, 1, *shapes)
    out = Sample(text=text, info=info, fps=canvas.fps)
    if video is not None:
      out.video = self.video_codec.decode(video, *canvas.video.shape[:3])
    if audio is not None:
      out.audio, out.sample_rate = self.audio_codec.decode(audio, len(canvas.audio)), self.audio_codec.sample_rate
    return out

  def info(self) -> dict:
    """What the model is: sizes, shapes, defaults."""
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    rows = {'name': self.name, 'transformer parameters': count(self.dit),
            'of these the text encoder': count(self.dit.text_encoder),
            'objective': dataclasses.asdict(self.config.objective),
            'default clip': dataclasses.asdict(self.config.clip), 'sampling': dataclasses.asdict(self.config.sampling),
            'text tokens': self.config.max_text, 'vocabulary': self.tokenizer.vocab_size}
    if (video := self.video_codec) is not None:
      rows['video codec'] = {'parameters': count(video.vae), 'latent channels': video.latent_channels,
                             'compression': f'{video.temporal_compression}x{video.spatial_compression}x'
                                            f'{video.spatial_compression}', 'hash': video.hash()}
    if (audio := self.audio_codec) is not None:
      rows['audio codec'] = {'parameters': count(audio.vae), 'latent channels': audio.latent_channels,
                             'sample rate': audio.sample_rate, 'channels': audio.channels,
                             'latents a second': audio.latent_rate, 'hash': audio.hash()}
    return rows

  def __repr__(self):
    """The tree of its parameters."""
    parts = [('transformer', self.dit)] + [(name, codec.vae) for name, codec in (
        ('video codec', self.video_codec), ('audio codec', self.audio_codec)) if codec is not None]
    return tree.text(f'Model {self.name!r}', parts)


def load(name) -> Model | PublishedModel | Cascade:
  """A model by its folder, or by its name where it comes with the package ('world'); RUN/checkpoints/STEP, of a run that
  may go on: the first average of the weights at that step. A transformer stays on the host until `laid_out` puts it on
  devices. Raises ValueError where there is none, or the files do not belong together."""
  folder = weights.locate(name)
  if published_model.is_converted(folder):
    return published_model.load(folder)
  if cascade.is_cascade(folder):
    return cascade.load(folder)
  model = outline(name)
  model.dit = read_weights(name, model.dit)
  return model


def outline(name) -> Model:
  """A model whose transformer is shapes alone; its folder's other files are read. Raises ValueError as `load` does."""
  folder = weights.locate(name)
  run = run_checkpoint.run_of(folder)
  if not ((run or folder) / 'model.json').exists():
    raise ValueError(f'{name} holds no model (no model.json in it); '
                     'give the folder of a run that `veojax train` or `veojax convert` has made' if run is None else
                     f'{name} is a checkpoint of {run}, which has no model.json: of other runs than the transformer\'s '
                     'checkpoints hold no whole model, so give the run; the transformer\'s has one as soon as its '
                     'training is started again')
  if run is not None:
    name, folder = f'{run}@{folder.name}', run
  config = read_config(folder)
  dit = weights.abstract(lambda rngs: DiT(config.dit, rngs=rngs))
  # The codecs belong to no mesh, so that they can be called anywhere.
  video, audio = (codecs.load(path, kind) if (path := codec_file.of(folder, kind)).exists() else None
                  for kind in codecs.KINDS)
  video = patched(video, config.video_patch)
  return Model(config, dit, video, audio, Tokenizer.load(folder / TOKENIZER), name=str(name))


def read_weights(name, dit: DiT) -> DiT:
  """`dit` with the weights of a model's folder or checkpoint, as float32 arrays of this host. Raises ValueError as
  `load` does."""
  folder = weights.locate(name)
  if run_checkpoint.run_of(folder) is not None:
    flat = run_checkpoint.average(folder)
  elif run_checkpoint.steps(folder) and not weights.found(folder / WEIGHTS):
    raise ValueError(f'{name} is not finished, and has no {WEIGHTS} yet; give one of its checkpoints: '
                     f'{run_checkpoint.told(folder)}')
  else:
    flat, _ = weights.load(folder / WEIGHTS)
  return jax.tree.map(lambda x: np.asarray(x, np.float32), weights.replace(dit, flat))  # float16 in the package


def read_config(folder) -> ModelConfig:
  try:
    return door.build(ModelConfig, json.loads((folder / 'model.json').read_text()), 'model')
  except (json.JSONDecodeError, OSError) as error:
    raise ValueError(f'{folder / "model.json"} cannot be read ({error}); copy the run again') from None


def write_config(folder, config: ModelConfig):
  files.write(folder / 'model.json', json.dumps(door.to_tree(config), indent=2).encode())
