"""What is compiled: the functions that training and generation run, with abstract arguments laid out over a mesh."""
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec as P

from veojax import config as door
from veojax import sharding
from veojax.compiling import model_flops
from veojax.generation import sampling
from veojax.models import audio_codec, codec_file, dit, split_codec, video_codec, weights
from veojax.models.audio_vae import AudioVAE
from veojax.models.dit import DiT
from veojax.models.video_vae import VideoVAE, VideoVAEConfig
from veojax.training import run, step
from veojax.training.audio_vae import AudioVAERun
from veojax.training.transformer import TransformerRun
from veojax.training.video_vae import VideoVAERun


@dataclasses.dataclass(frozen=True)
class Work:
  """function(*arguments, **options) under the config's mesh, or one of the work's own.

  flops: the model's own, of all devices together; None where nothing is counted. units: how many of what a call
  handles.
  """
  function: Callable
  arguments: tuple
  parameters: int
  units: dict[str, float]
  flops: dict[str, float] | None = None
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  mesh: Mesh | None = None

  def under(self):
    """A context with its own mesh in force, or with the one that is."""
    return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def train(config, mesh) -> Work:
  """One step of the config's stage: losses, gradients, optimizer, averages."""
  stage, loop = run.STEPS[config.stage](config), config.loop
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  if loop.batch_size % parts:
    raise ValueError(f'loop.batch_size={loop.batch_size} rows over data x fsdp = {parts} parts of the mesh; give a '
                     'multiple')
  tx = stage.make_optimizer()
  key = jax.random.key(0)
  with jax.set_mesh(mesh):
    state = jax.eval_shape(lambda key: step.init(stage.make_model, tx, key, len(loop.ema_decays)), key)
  blank = stage.blank()
  size = loop.accumulate, loop.batch_size
  batch = jax.tree.map(lambda x, spec: abstract(mesh, (*size, *x.shape), x.dtype, sharding.stacked(spec)), blank,
                       stage.batch_spec(blank))
  rows = loop.accumulate * loop.batch_size
  units, flops = {'rows a step': rows}, None
  if isinstance(config, TransformerRun):
    units['tokens a step'] = rows * config.pack.row_tokens
    flops = _scaled(model_flops.forward(config.dit, config.pack.row_tokens), model_flops.TRAINING * rows)
  return Work(step.make(stage.loss, tx, loop.ema_decays), (placed(mesh, state), placed(mesh, key), batch),
              count(state.model), units, flops)


def generate(config, mesh) -> Work:
  """All steps of the sampler, for one full row of the config's packing on each part of the mesh that takes rows."""
  if not isinstance(config, TransformerRun):
    return _sampling(config, mesh)
  key, B = jax.random.key(0), mesh.shape['data'] * mesh.shape['fsdp']
  L, G, C = config.pack.row_tokens, config.pack.num_groups, config.pack.channels
  with jax.set_mesh(mesh):
    model = weights.abstract(lambda rngs: DiT(config.dit, rngs=rngs))
  blank = run.STEPS['transformer'](config).blank()
  rows = lambda shape, dtype, spec: abstract(mesh, (B, *shape), dtype, sharding.whole_rows(spec))
  tokens = jax.tree.map(lambda x, spec: rows(x.shape, x.dtype, spec), blank, dit.TOKEN_SPECS)
  first, x = rows((G,), jnp.int32, sharding.B), rows((L, C), jnp.float32, sharding.BLD)
  settings = config.sampling
  evaluations = 1 + len(sampling.away_from(settings))
  levels = abstract(mesh, (settings.num_inference_steps + 1, B, L, 1), jnp.float32,
                    sharding.stacked(sharding.whole_rows(sharding.BLD)))
  calls = sampling.network_calls(settings)
  with jax.set_mesh(mesh):
    scales = jax.eval_shape(lambda modality_BL: sampling.scales(modality_BL, [settings] * B), tokens.modality)
  keys = jax.eval_shape(lambda key: jax.random.split(key, B), key)
  keys = abstract(mesh, keys.shape, keys.dtype, sharding.REPLICATED)
  arguments = (placed(mesh, model), [tokens] * evaluations, [first] * evaluations, x, levels, placed(mesh, scales),
               keys)
  return Work(sampling.sample_rows, arguments, count(model), {'rows': B, 'tokens': B * L, 'network calls': calls},
              _scaled(model_flops.forward(config.dit, L), B * calls),
              {'objective': config.objective, 'config': sampling.program(settings)})


def _sampling(config, mesh) -> Work:
  """What the stage of a published pipeline says that it samples with."""
  stage = run.STEPS[config.stage](config)
  if not hasattr(stage, 'sampling'):
    raise ValueError(f'stage generate of a config of {config.stage!r}; give the config of a transformer')
  function, arguments, options, units = stage.sampling(mesh)
  return Work(function, arguments, count(arguments[0]), units, None, options)


def encode(config, mesh) -> Work:
  """A later chunk of a clip, from pixels to latents: of a transformer's config the clip that it makes, over the devices
  of one host as its codec shares it out; of a codec's or a published model's config one tile on one device; of an audio
  codec's a chunk of sound there."""
  if isinstance(config, AudioVAERun):
    vae, chunk = _audio_vae(config)
    return _codec(audio_codec.encode_chunk, vae, *[_array(1, chunk * vae.cfg.hop, vae.cfg.channels)] * 2,
                  _alone(mesh), _sound(vae, chunk))
  codec = _video_codec(config)
  tc, own = codec.vae.cfg.temporal_compression, _shared(config, codec, mesh)
  video = lambda t: jax.ShapeDtypeStruct((own.shape['tile'], t, *codec.sides, 3), jnp.uint8)
  t = tc * codec.chunk * own.shape['time']
  if own.size > 1:
    return _codec(split_codec.encode_parts, codec.vae, video(t), video(t), own, _frames(codec, own))
  return _codec(video_codec.encode_tile, codec.vae, video(t - (tc - 1)), video(t), _alone(mesh), _frames(codec, own))


def decode(config, mesh) -> Work:
  """The same from latents."""
  if isinstance(config, AudioVAERun):
    vae, chunk = _audio_vae(config)
    return _codec(audio_codec.decode_chunk, vae, *[_array(1, chunk, vae.cfg.latent_channels)] * 2, _alone(mesh),
                  _sound(vae, chunk))
  codec = _video_codec(config)
  cfg, own = codec.vae.cfg, _shared(config, codec, mesh)
  cells = [side // cfg.spatial_compression for side in codec.sides]
  latent = _array(own.shape['tile'], codec.chunk * own.shape['time'], *cells, cfg.latent_channels)
  units = _frames(codec, own)
  function, own = (split_codec.decode_parts, own) if own.size > 1 else (video_codec.decode_tile, _alone(mesh))
  return _codec(function, codec.vae, latent, latent, own, units)


def _frames(codec: 'Codec', own: Mesh) -> dict[str, float]:
  """Pixel frames of a tile's size in one call."""
  frames = codec.vae.cfg.temporal_compression * codec.chunk * math.prod(own.shape[axis] for axis in ('tile', 'time'))
  return {'frames of {}x{}'.format(*codec.sides): frames}


def _sound(vae, chunk: int) -> dict[str, float]:
  return {'seconds of sound': chunk * vae.cfg.hop / vae.cfg.sample_rate}


def _codec(function, vae, first, chunk, mesh, units) -> Work:
  laid = functools.partial(_laid_out, mesh)
  with jax.set_mesh(mesh):
    _, state = jax.eval_shape(function, placed(mesh, vae), laid(first), None)
  return Work(function, (placed(mesh, vae), laid(chunk), placed(mesh, state)), count(vae), units, mesh=mesh)


def _laid_out(mesh, x):
  return abstract(mesh, x.shape, x.dtype, sharding.CLIP if mesh.axis_names == sharding.CLIP_AXES else P())


def _alone(mesh) -> Mesh:
  """The first of the mesh's devices by itself."""
  return Mesh(mesh.devices.reshape(-1)[:1].reshape((1,) * len(mesh.axis_names)), mesh.axis_names,
              axis_types=mesh.axis_types)


def _shared(config, codec: 'Codec', mesh) -> Mesh:
  """The mesh over which a codec shares out the clip that a transformer's config makes, of one host's devices."""
  devices = list(mesh.devices.flat)
  devices = [device for device in devices if device.process_index == devices[0].process_index]
  if not isinstance(config, TransformerRun):
    return sharding.clip_mesh(1, 1, 1, devices)
  clip, tc, sc = config.clip, codec.vae.cfg.temporal_compression, codec.vae.cfg.spatial_compression
  sides = tuple(side // sc for side in codec.sides)
  tiles = video_codec.Tiles(-(-clip.height // sc), -(-clip.width // sc), sides, codec.overlap // sc, scale=1)
  return video_codec.shared_mesh(tiles, 1 - (1 - clip.num_frames) // tc, codec.chunk, devices)


def _array(*shape) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def _audio_vae(config):
  """(abstract VAE, latents of a chunk)."""
  vae = weights.abstract(lambda rngs: AudioVAE(config.model, rngs=rngs))
  return vae, next(f.default for f in dataclasses.fields(audio_codec.AudioCodec) if f.name == 'chunk')


class Codec(NamedTuple):
  """An abstract VAE, height and width of a tile in pixels, latent frames of a chunk, pixels by which tiles overlap."""
  vae: Any
  sides: tuple[int, int]
  chunk: int
  overlap: int = 0


def _video_codec(config) -> Codec:
  """Of a codec's config, of the codec that a transformer's config names, or of a published pipeline's."""
  defaults = {f.name: f.default for f in dataclasses.fields(video_codec.VideoCodec)}
  if isinstance(config, TransformerRun) and config.video_codec.endswith('.py'):
    config = run.build(run.read_config(config.video_codec))
  if isinstance(config, VideoVAERun):
    sizes, settings = config.model, {'tile': config.tile, 'chunk': defaults['chunk'], 'overlap': config.overlap}
  elif isinstance(config, TransformerRun):
    _, stored = weights.load(codec_file.locate(config.video_codec, 'video'))
    sizes, settings = door.build(VideoVAEConfig, stored['config'], 'codec'), stored['settings']
  elif hasattr(stage := run.STEPS[config.stage](config), 'codec'):
    return Codec(*stage.codec())
  else:
    raise ValueError(f'stages encode and decode of a config of {config.stage!r}, which has no codec: it makes pixels; '
                     'give the config of a codec, or of a model that has one')
  return Codec(weights.abstract(lambda rngs: VideoVAE(sizes, rngs=rngs)), (settings['tile'],) * 2, settings['chunk'],
               settings['overlap'])


STAGES = {'train': train, 'generate': generate, 'encode': encode, 'decode': decode}


def abstract(mesh, shape, dtype, spec: P) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.named(mesh, spec))


def placed(mesh, tree):
  """Abstract values with the layout that their types name, or replicated."""
  spec = lambda x: getattr(getattr(x, 'sharding', None), 'spec', None) or P()
  return jax.tree.map(lambda x: abstract(mesh, x.shape, x.dtype, spec(x)), tree)


def count(tree) -> int:
  return sum(x.size for x in jax.tree.leaves(tree))


def _scaled(flops: dict[str, float], by: float) -> dict[str, float]:
  return {kind: value * by for kind, value in flops.items()}
