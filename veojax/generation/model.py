"""A model as a person has it: one folder, and `generate`.

The folder holds model.json (sizes, objective, defaults), weights.safetensors (the transformer with its text encoder and
heads), video_vae.safetensors and audio_vae.safetensors (the codecs; either may be absent) and text.model
(sentencepiece).
"""
import dataclasses
import json
import pathlib

import jax
import numpy as np
from flax import nnx

from veojax import config as door
from veojax import sharding
from veojax.data import packing
from veojax.data.tokenizer import Tokenizer
from veojax.diffusion.objective import Objective
from veojax.generation import codecs, sampling, tasks
from veojax.generation.canvas import Canvas
from veojax.generation.export import Sample
from veojax.generation.sampling import SamplingConfig
from veojax.models import weights
from veojax.models.audio_codec import AudioCodec
from veojax.models.dit import DiT, DiTConfig
from veojax.models.picture_codec import PictureCodec
from veojax.types import Tokens

ROW_STEP = 32  # rows are this many tokens or a multiple: clips of near sizes share a compilation


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


class Model:
  """What `veojax.load` gives."""

  def __init__(self, config: ModelConfig, dit: DiT, video_codec: PictureCodec | None, audio_codec: AudioCodec | None,
               tokenizer: Tokenizer, name: str = ''):
    self.config, self.dit, self.tokenizer, self.name = config, dit, tokenizer, name
    self.video_codec, self.audio_codec = video_codec, audio_codec

  def generate(self, prompt: str | list[str], *, negative_prompt: str = '', num_frames: int | None = None,
               height: int | None = None, width: int | None = None, fps: float | int | None = None, seed: int = 0,
               paste: bool = False, **options) -> Sample | list[Sample]:
    """A clip with sound for a prompt, or a list of them for a list of prompts.

    options: what is given of the clip, as `tasks.Given` names it (image, last_image, keyframes, references, video, audio,
    mask, task), and fields of `SamplingConfig` (num_inference_steps, guidance_scale, sampler, strength, ...). What is
    given comes back as the codecs have it; `paste` puts the given pixels and samples themselves over it. Clip i is made
    with the key fold_in(seed, i). Raises ValueError for sizes that are not positive, for what does not go together and
    for unknown options.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
      raise ValueError('there is no prompt; give a text or a list of at least one')
    given = tasks.Given(**{name: options.pop(name) for name in tasks.NAMES if name in options})
    config = self._sampling(options)
    asked = {'num_frames': num_frames, 'height': height, 'width': width, 'fps': None if fps is None else float(fps)}
    canvas = tasks.canvas(self, given, {k: v for k, v in asked.items() if v is not None}, edit=config.strength < 1)
    with sharding.default_mesh():
      latent = canvas.latents(self.video_codec, self.audio_codec, keep_unknown=config.strength < 1)
      rows, unguided = self._rows(prompts, negative_prompt, latent)
      noise = np.stack([jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), rows.latent.shape[1:])
                        for i in range(len(prompts))])
      made = sampling.sample(self.dit, rows, unguided, noise, jax.random.key(seed), objective=self.config.objective,
                             config=config)
      info = {'model': self.name, 'seed': seed, **dataclasses.asdict(config)}
      clips = [self._decode(Tokens(*(x[i] for x in rows._replace(latent=made))), canvas, latent, text,
                            {**info, 'index': i}) for i, text in enumerate(prompts)]
    if paste:
      for clip in clips:
        canvas.paste(clip, clip.sample_rate)
    return clips[0] if isinstance(prompt, str) else clips

  def _sampling(self, options) -> SamplingConfig:
    known = {f.name for f in dataclasses.fields(SamplingConfig)}
    for name in options:
      if name not in known:
        others = {f.name for f in dataclasses.fields(ClipConfig)} | {'negative_prompt', 'seed', 'paste', *tasks.NAMES}
        raise ValueError(f'unknown option {name}={options[name]!r}; {door.nearest(name, known | others)}')
    return dataclasses.replace(self.config.sampling, **options)

  def num_samples(self, num_frames: int, fps: float) -> int:
    return round(num_frames / fps * self.audio_codec.sample_rate)

  def _rows(self, prompts, negative_prompt, latent: packing.LatentClip) -> tuple[Tokens, Tokens]:
    """One row a prompt, and the same rows under the negative prompt, with media tokens in the same places."""
    length = self.config.max_text + latent.num_tokens
    pack = packing.PackConfig(row_tokens=-(-length // ROW_STEP) * ROW_STEP, text_tokens=self.config.max_text,
                              max_clips=1, max_text=self.config.max_text, channels=self.config.dit.channels)
    ids = [self.tokenizer.encode(text, self.config.max_text) for text in [*prompts, negative_prompt]]
    rows = [_at_end(packing.pack([latent._replace(text_ids=i)], pack)) for i in ids]
    guided, unguided = rows[:-1], rows[-1:] * len(prompts)
    return tuple(Tokens(*(np.stack(x) for x in zip(*part))) for part in (guided, unguided))

  def _decode(self, row: Tokens, canvas: Canvas, latent: packing.LatentClip, text: str, info: dict) -> Sample:
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
    return f'Model({self.name!r}, {json.dumps(self.info(), indent=2, default=str)})'


def _at_end(row: Tokens) -> Tokens:
  """The row with its padding in front: media tokens then stand in the same places whatever the text before them."""
  shift = int(np.sum(row.segment == 0))
  per_token = {name: np.roll(getattr(row, name), shift, 0)
               for name in ('latent', 'modality', 'segment', 'position', 'extent', 'group', 'text_index')}
  return row._replace(**per_token)


def load(name) -> Model:
  """A model by its folder. Raises ValueError where there is none, or the files do not belong together."""
  folder = pathlib.Path(name)
  if not (folder / 'model.json').exists():
    raise ValueError(f'{name} holds no model (no model.json in it); '
                     'give the folder of a run that `veojax train` has made')
  config = read_config(folder)
  flat, _ = weights.load(folder / 'weights.safetensors')
  dit = weights.replace(jax.eval_shape(lambda key: DiT(config.dit, rngs=nnx.Rngs(key)), jax.random.key(0)), flat)
  with sharding.default_mesh():
    dit = jax.tree.map(jax.numpy.asarray, dit)
  # The codecs belong to no mesh, so that they can be called anywhere.
  both = [codecs.load(path, kind) if (path := folder / f'{kind}_vae.safetensors').exists() else None
          for kind in codecs.KINDS]
  return Model(config, dit, *both, Tokenizer.load(folder / 'text.model'), name=str(name))


def read_config(folder: pathlib.Path) -> ModelConfig:
  try:
    return door.build(ModelConfig, json.loads((folder / 'model.json').read_text()), 'model')
  except (json.JSONDecodeError, OSError) as error:
    raise ValueError(f'{folder / "model.json"} cannot be read ({error}); copy the run again') from None


def write_config(folder: pathlib.Path, config: ModelConfig):
  (folder / 'model.json').write_text(json.dumps(door.to_tree(config), indent=2))
