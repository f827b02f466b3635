"""Make-A-Video (Singer et al. 2022), part by part: from pictures with captions, then from video without.

  image             an embedding that pictures and captions share, the prior, which makes the picture's of a caption,
                    and the decoder, which makes a picture of it; no other part reads captions
  video             the decoder with its layers along time, which begin as nothing: clips, each told the embedding of
                    one of its own frames, and its frame rate
  interpolation     the decoder goes on: given every `factor`-th frame it learns the others
  super_resolution  larger frames from small ones; of one frame for pictures (SR_h, or the beginning of SR_l^t), of
                    several for clips (SR_l^t)

Each `start`s from the run before it, takes its parts along, and is a model of all of them. In the paper the embedding
is a CLIP that was trained before; here it is trained beside prior and decoder, from which it has no gradient. Its loss
is CLIP's, the prior's that of DALL-E 2 (Ramesh et al. 2022, eq. 2), all others the process's E |f(x_t, t) - target|²
(`losses`), levels uniform.
"""
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

from veojax import sharding
from veojax.data import datasets, mixing
from veojax.data.mixing import DataConfig
from veojax.data.tokenizer import Tokenizer
from veojax.diffusion import predictions, timesteps
from veojax.diffusion.objective import Objective
from veojax.generation import cascade
from veojax.generation.cascade import Cascade, CascadeConfig
from veojax.models import layers, weights
from veojax.sharding import MeshConfig
from veojax.training import heldout, optimizer, samples
from veojax.training.loop import LoopConfig
from veojax.training.make_a_video_rows import ClipSource
from veojax.training.optimizer import OptimizerConfig
from veojax.zoo import make_a_video, make_a_video_prior, make_a_video_unet
from veojax.zoo.make_a_video import CascadeSettings, PartConfig
from veojax.zoo.make_a_video_prior import Embedder, EmbedderConfig
from veojax.zoo.make_a_video_unet import ImageUNet, UNetConfig

LARGE = UNetConfig(widths=(128, 256, 512, 768), attention=(False,) * 4, condition_dim=128,
                   given_channels=make_a_video.GIVEN['super_resolution'])


@dataclasses.dataclass(frozen=True)
class InterpolationConfig:
  """num_frames of a piece, 1 + a multiple of factor; of them every factor-th is given."""
  num_frames: int = 16
  factor: int = 5


@dataclasses.dataclass(frozen=True)
class SuperResolutionConfig:
  """num_frames of a piece, 1 for frames alone; height and width of what it makes, `factor` times those of what it is
  given. given_noise: the largest level of the noise in that."""
  unet: UNetConfig = LARGE
  num_frames: int = 16
  height: int = 256
  width: int = 256
  factor: int = 4
  given_noise: float = 0.3


@dataclasses.dataclass(frozen=True)
class MakeAVideoRun:
  """configs/*.py as a dataclass.

  part: what is trained. start: the run that it goes on from; of `image` none is needed. data: a prepared data set, or
  several, [{'path': ..., 'weight': ...}, ...]. unet, num_frames, height, width: of the decoder; its frames are those of
  `frame_skips`, frames of the data to one of the clip. dropout: share of rows that are told nothing. fps: what the
  decoder is told unless asked otherwise.
  """
  stage: Literal['make_a_video']
  part: Literal['image', 'video', 'interpolation', 'super_resolution']
  data: str | tuple[DataConfig, ...] = ''
  start: str = ''
  seed: int = 0
  embedder: EmbedderConfig = EmbedderConfig()
  unet: UNetConfig = UNetConfig()
  num_frames: int = 16
  height: int = 64
  width: int = 64
  interpolation: InterpolationConfig = InterpolationConfig()
  super_resolution: SuperResolutionConfig = SuperResolutionConfig()
  objective: Objective = Objective('vp_cosine', 'eps')
  dtype: Literal['float32', 'bfloat16'] = 'bfloat16'
  frame_skips: tuple[int, ...] = (1, 2, 4)
  max_text: int = 64
  dropout: float = 0.1
  fps: float = 4.0
  settings: CascadeSettings = CascadeSettings()
  prompts: tuple[str, ...] = ()  # drawn during training
  optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4)
  loop: LoopConfig = LoopConfig()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self):
    make_a_video.check_objective(self.objective)
    if self.unet.condition_dim != self.embedder.embedding_dim:
      raise ValueError(f'unet.condition_dim={self.unet.condition_dim}, but the embedding has '
                       f'{self.embedder.embedding_dim}; set it to that')
    if not 0 <= self.dropout <= 1 or not 0 <= self.super_resolution.given_noise < 1 or not self.fps > 0:
      raise ValueError(f'dropout={self.dropout}, super_resolution.given_noise={self.super_resolution.given_noise}, '
                       f'fps={self.fps}; give shares in [0, 1], and a rate above 0')
    if not self.frame_skips or min(self.frame_skips) < 1:
      raise ValueError(f'frame_skips={self.frame_skips}; give at least one number, of 1 or more')
    self.network  # its sizes are checked

  @property
  def network(self) -> PartConfig:
    """The U-Net that is trained."""
    sizes = {'height': self.height, 'width': self.width}
    own = {'objective': self.objective, 'dtype': self.dtype}
    if self.part in ('image', 'video'):
      if self.part == 'video' and self.num_frames < 2:
        raise ValueError(f'num_frames={self.num_frames}; video has at least 2')
      return PartConfig('decoder', self.unet, 1 if self.part == 'image' else self.num_frames, **sizes, **own)
    if self.part == 'interpolation':
      unet = dataclasses.replace(self.unet, given_channels=make_a_video.GIVEN['interpolation'])
      return PartConfig('interpolation', unet, **dataclasses.asdict(self.interpolation), **sizes, **own)
    large = self.super_resolution
    return PartConfig('super_resolution', large.unet, large.num_frames, large.height, large.width, large.factor, **own)

  @property
  def told(self) -> str:
    return {'image': 'text', 'super_resolution': ''}.get(self.part, 'picture')


class Pair(nnx.Module):
  """A U-Net, and what makes its condition of a picture or a text."""

  def __init__(self, embedder: Embedder, unet: ImageUNet):
    self.embedder, self.unet = embedder, unet


class MakeAVideoStep:
  """What initialising and stepping need: the config alone."""
  changes = ()

  def __init__(self, config: MakeAVideoRun):
    self.config, self.name = config, f'Make-A-Video, {config.part}'

  def blank(self):
    """A row of the batch, empty."""
    config, part = self.config, self.config.network
    row = {'video': np.zeros((part.num_frames, part.height, part.width, 3), np.uint8), 'fps': np.float32(1),
           'kept': np.float32(1)}
    if config.told == 'text':
      return {**row, 'text': np.zeros(config.max_text, np.int32)}
    return {**row, 'picture': row['video'][0]} if config.told else row

  def batch_spec(self, batch):
    return {name: sharding.B for name in batch}

  def make_model(self, key) -> Pair | ImageUNet:
    key_embedder, key_unet = jax.random.split(key)
    part = self.config.network
    unet = make_a_video_unet.make(part.unet, part.num_frames, layers.Rngs(key_unet))
    return Pair(Embedder(self.config.embedder, rngs=layers.Rngs(key_embedder)), unet) if self.config.told else unet

  def make_optimizer(self):
    """The embedder stays as it is once its pictures have been learned."""
    tx = optimizer.make(self.config.optimizer, self.config.loop.num_steps)
    return on_unet(tx) if self.config.told == 'picture' else tx

  def loss(self, model, batch, key, step=None):
    config = self.config
    x0 = pixels(batch['video'])
    key, key_prior, key_given = jax.random.split(key, 3)
    if not config.told:
      given, condition = self._small(x0, key_given)
      loss = diffusion_loss(model, config.network, x0, given, condition, batch['fps'], key)
      return loss, {'diffusion_loss': loss}
    kept_B1 = batch['kept'][:, None]
    if config.told == 'picture':
      embedder = jax.lax.stop_gradient(model.embedder)
      e_BE = embedder.picture(pixels(batch['picture']), config.dtype)
      given_T = np.arange(x0.shape[1]) % config.network.factor == 0 if config.part == 'interpolation' else None
      given = None if given_T is None else make_a_video.masked(x0, jnp.asarray(given_T))
      loss = diffusion_loss(model.unet, config.network, x0, given, kept_B1 * e_BE, batch['fps'], key,
                            None if given_T is None else ~given_T)
      return loss, {'diffusion_loss': loss}
    embedder = model.embedder
    e_BE = embedder.picture(x0[:, 0], config.dtype)
    caption_BE, features_BSD = embedder.caption(batch['text'], config.dtype)
    contrast = make_a_video_prior.contrast(e_BE, caption_BE, embedder.log_scale[...])
    e_BE, caption_BE = jax.lax.stop_gradient((e_BE, caption_BE))
    prior = make_a_video_prior.prior_loss(embedder.prior, e_BE, kept_B1 * caption_BE,
                                          kept_B1[..., None].astype(features_BSD.dtype) * features_BSD, key_prior)
    loss = diffusion_loss(model.unet, config.network, x0, None, kept_B1 * e_BE, batch['fps'], key)
    return contrast + prior + loss, {'diffusion_loss': loss, 'prior_loss': prior, 'contrast_loss': contrast}

  def sampled_shape(self) -> tuple[int, int, int, int]:
    """(t, h, w, C) of what the network makes at once."""
    part = self.config.network
    return part.num_frames, part.height, part.width, make_a_video_unet.CHANNELS

  def sampling(self, mesh):
    """(function, abstract arguments, its options, counts) of all steps of one piece of a clip on each part of the mesh
    that takes rows."""
    part, settings, B = self.config.network, self.config.settings, mesh.shape['data'] * mesh.shape['fsdp']
    abstract = lambda shape, dtype=jnp.float32, spec=P(): jax.ShapeDtypeStruct(
        shape, dtype, sharding=sharding.named(mesh, spec))
    row = lambda *shape, dtype=jnp.float32: abstract((B, *shape), dtype, sharding.B)
    with jax.set_mesh(mesh):
      network = weights.abstract(lambda rngs: make_a_video_unet.make(part.unet, part.num_frames, rngs))
    sides, given = self.sampled_shape()[:3], make_a_video.GIVEN[part.kind]
    keys = jax.eval_shape(lambda key: jax.random.split(key, B), jax.random.key(0))
    guided = bool(self.config.told) and settings.guidance_scale != 1
    arguments = (network, row(*self.sampled_shape()), row(*sides, given) if given else None,
                 row(part.unet.condition_dim, dtype=jnp.dtype(part.dtype)), row(),
                 abstract((settings.num_inference_steps + 1,)), abstract(()), row(dtype=keys.dtype))
    return make_a_video.sample, arguments, {
        'objective': part.objective, 'sampler': settings.sampler, 'guided': guided}, {
            'rows': B, 'frames of a piece': part.num_frames, 'network calls': settings.num_inference_steps * (1 + guided)
            * (2 if settings.sampler == 'heun' else 1)}

  def _small(self, x0, key):
    """(small frames with noise, enlarged; the vector that tells of the noise)."""
    part, rows = self.config.network, sharding.in_force(sharding.B)
    key_level, key_eps = jax.random.split(key)
    level_B = self.config.super_resolution.given_noise * timesteps.uniform(key_level, (len(x0),), out_sharding=rows)
    small = make_a_video.reduced(x0, part.factor)
    eps = jax.random.normal(key_eps, small.shape, out_sharding=rows)
    small = part.objective.make_process().add_noise(small, eps, level_B[:, None, None, None, None])
    return (make_a_video.enlarged(small, part.factor),
            make_a_video_unet.noise_vector(level_B, part.unet.condition_dim, jnp.dtype(part.dtype)))


def pixels(video):
  """uint8 as float32 in [-1, 1]."""
  return video.astype(jnp.float32) / 127.5 - 1


def diffusion_loss(unet, part: PartConfig, x0, given, condition_BE, fps_B, key, made_T: np.ndarray | None = None):
  """Mean of the squared error, over the frames `made_T` where there are such."""
  process, kind, rows = part.objective.make_process(), part.objective.prediction, sharding.in_force(sharding.B)
  key_t, key_eps = jax.random.split(key)
  level_B = timesteps.uniform(key_t, (len(x0),), out_sharding=rows)
  level = level_B[:, None, None, None, None]
  eps = jax.random.normal(key_eps, x0.shape, out_sharding=rows)
  x = process.add_noise(x0, eps, level)
  output = make_a_video.predict(unet, process, x, given, level_B, condition_BE.astype(part.dtype), fps_B)
  error_BT = jnp.mean(jnp.square(output - predictions.target(kind, process, x0, eps, level)), (2, 3, 4))
  return jnp.mean(error_BT if made_T is None else error_BT * (made_T / made_T.mean()).astype(np.float32)[None])


def on_unet(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """`tx` of a Pair's U-Net; the embedder does not change, and nothing is kept of it."""
  def update(updates, state, params):
    unet, state = tx.update(updates.unet, state, params.unet)
    return Pair(jax.tree.map(jnp.zeros_like, updates.embedder), unet), state
  return optax.GradientTransformation(lambda params: tx.init(params.unet), update)


class MakeAVideoStage(MakeAVideoStep):

  def __init__(self, config: MakeAVideoRun, workdir):
    super().__init__(config)
    if config.part != 'image' and not config.start:
      raise ValueError(f'part {config.part} goes on from another: --config.start=RUN, the run of the part before it')
    self.parts = mixing.parts(config.data)
    self._start = cascade.load(config.start) if config.start else None
    first = datasets.open_dataset(self.parts[0].path)
    self.tokenizer = self._start.tokenizer if self._start else Tokenizer.load(first.tokenizer_path)
    self.place, self.made = self._placed()
    self._loss = jax.jit(self.loss)
    rows = config.loop.num_steps * config.loop.batch_size * config.loop.accumulate
    self.source = self._rows(datasets.open_dataset, config.dropout, rows)
    self.held_out = self._rows(heldout.split, 0.0, 0)

  def _rows(self, open_dataset, dropout: float, num_rows: int) -> ClipSource:
    config, part = self.config, self.config.network
    return ClipSource([open_dataset(each.path) for each in self.parts], [each.weight for each in self.parts],
                      (part.num_frames, part.height, part.width), config.frame_skips, config.told, config.seed, dropout,
                      num_rows, self.tokenizer, config.max_text)

  def _placed(self) -> tuple[str, CascadeConfig]:
    """(name of the network that is trained, the cascade with it). ValueError where it does not fit those before it."""
    config, part = self.config, self.config.network
    if self.tokenizer.vocab_size > config.embedder.text.vocab_size:
      raise ValueError(f'the captions\' tokenizer has {self.tokenizer.vocab_size} pieces, embedder.text.vocab_size is '
                       f'{config.embedder.text.vocab_size}; raise it to at least that')
    if self._start is None:
      return cascade.DECODER, CascadeConfig(config.embedder, part, max_text=config.max_text, fps=config.fps,
                                            settings=config.settings)
    theirs = dataclasses.replace(self._start.config, settings=config.settings, fps=config.fps)
    for name in ('embedder', 'max_text'):
      if getattr(config, name) != getattr(theirs, name):
        raise ValueError(f'{name} is {getattr(config, name)}, but that of {config.start} {getattr(theirs, name)}; set it '
                         'to that')
    if part.kind != 'super_resolution' and (part.height, part.width) != (theirs.decoder.height, theirs.decoder.width):
      raise ValueError(f'height={part.height}, width={part.width}, but {config.start} makes {theirs.decoder.height}x'
                       f'{theirs.decoder.width}; set them to that')
    if config.part == 'interpolation':
      if theirs.decoder.num_frames == 1:
        raise ValueError(f'{config.start} makes pictures; train the part video first, and start from that')
      return cascade.INTERPOLATION, dataclasses.replace(theirs, interpolation=part)
    if part.kind == 'decoder':
      return cascade.DECODER, dataclasses.replace(theirs, decoder=part)
    # What has these sides already goes on; any other is the next.
    earlier = list(theirs.super_resolution)
    if earlier and (earlier[-1].height, earlier[-1].width) == (part.height, part.width):
      earlier.pop()
    before = earlier[-1] if earlier else theirs.decoder
    if (part.height, part.width) != (before.height * part.factor, before.width * part.factor):
      raise ValueError(f'super_resolution to {part.height}x{part.width} with factor={part.factor}, but what it is given '
                       f'has {before.height}x{before.width}; give {part.factor} times that')
    name = f'{cascade.SUPER_RESOLUTION}_{len(earlier)}'
    return name, dataclasses.replace(theirs, super_resolution=(*earlier, part))

  def begin(self, model):
    if self._start is None:
      return model
    earlier = self._start.config.parts
    name = self.place if self.place in earlier else {cascade.INTERPOLATION: cascade.DECODER}.get(self.place)
    unet = model.unet if self.config.told else model
    try:
      if name:
        unet = make_a_video_unet.begun_as(unet, self._start.flat(name))
      return Pair(make_a_video_unet.begun_as(model.embedder, self._start.flat(cascade.EMBEDDER)),
                  unet) if self.config.told else unet
    except ValueError as error:
      raise ValueError(f'start={self.config.start}: {error}; set the config\'s sizes to those of that run') from None

  def evaluate(self, ema) -> dict[str, float]:
    return heldout.losses(ema, self, self._loss)

  def clips(self, row: int) -> list[str]:
    return [self.source.name(clip) for clip in self.source.clips_of(row)]

  def model(self, ema, name='') -> Cascade:
    modules = {cascade.EMBEDDER: ema.embedder, self.place: ema.unet} if self.config.told else {self.place: ema}
    return Cascade(self.made, self.tokenizer, self._start.folder if self._start else None, modules, name)

  def draw(self, ema, step: int, workdir):
    """Clips of the config's prompts, by all parts."""
    if self.config.prompts:
      samples.write(self.model(ema, str(workdir)).generate(list(self.config.prompts)), workdir, step)

  def export(self, ema, workdir):
    """The folder as `veojax.load` reads it, with the parts before this one."""
    self.model(ema).save(workdir)
