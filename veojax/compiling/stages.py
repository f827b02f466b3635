"""What is compiled: the functions that training and generation run, with abstract arguments laid out over a mesh."""
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from veojax import config as door
from veojax import sharding
from veojax.compiling import model_flops
from veojax.generation import sampling
from veojax.models import codec_file, dit, video_codec, weights
from veojax.models.dit import DiT
from veojax.models.video_vae import VideoVAE, VideoVAEConfig
from veojax.training import run, step
from veojax.training.transformer import TransformerRun
from veojax.training.video_vae import VideoVAERun


@dataclasses.dataclass(frozen=True)
class Work:
  """function(*arguments, **options) under a mesh.

  flops: the model's own, of all devices together; None where nothing is counted. units: how many of what a call
  handles.
  """
  function: Callable
  arguments: tuple
  parameters: int
  units: dict[str, int]
  flops: dict[str, float] | None = None
  options: dict[str, Any] = dataclasses.field(default_factory=dict)


def train(config, mesh) -> Work:
  """One step of the config's stage: losses, gradients, optimizer, averages."""
  stage, loop = run.STEPS[config.stage](config), config.loop
  tx = stage.make_optimizer()
  key = jax.random.key(0)
  with jax.set_mesh(mesh):
    state = jax.eval_shape(lambda key: step.init(stage.make_model, tx, key, len(loop.ema_decays)), key)
  blank = stage.blank()
  size = loop.accumulate, loop.batch_size
  batch = jax.tree.map(lambda x, spec: abstract(mesh, (*size, *x.shape), x.dtype, P(None, *spec)), blank,
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
    raise ValueError(f'stage generate of a config of {config.stage!r}; give the config of a transformer')
  key, B = jax.random.key(0), mesh.shape['data'] * mesh.shape['fsdp']
  L, G, C = config.pack.row_tokens, config.pack.num_groups, config.pack.channels
  with jax.set_mesh(mesh):
    model = jax.eval_shape(lambda key: DiT(config.dit, rngs=nnx.Rngs(key)), key)
  blank = run.STEPS['transformer'](config).blank()
  tokens = jax.tree.map(lambda x, spec: abstract(mesh, (B, *x.shape), x.dtype, spec), blank, dit.TOKEN_SPECS)
  first = abstract(mesh, (B, G), jnp.int32, sharding.B)
  x = abstract(mesh, (B, L, C), jnp.float32, sharding.BLD)
  settings = config.sampling
  levels = abstract(mesh, (settings.num_inference_steps + 1, B, L, 1), jnp.float32, P(None, *sharding.BLD))
  calls = settings.num_inference_steps * (2 if settings.sampler == 'heun' else 1)
  calls *= 1 if isinstance(sampling.scales(blank, settings), float) else 2
  arguments = placed(mesh, model), tokens, tokens, first, first, x, levels, placed(mesh, key)
  return Work(sampling.sample_rows, arguments, count(model), {'rows': B, 'tokens': B * L, 'network calls': calls},
              _scaled(model_flops.forward(config.dit, L), B * calls),
              {'objective': config.objective, 'config': settings})


def encode(config, mesh) -> Work:
  """One tile of a later chunk of a clip, from pixels to latents, on one device."""
  vae, tile, chunk = _video_vae(config, mesh)
  video = jax.ShapeDtypeStruct((1, chunk * vae.cfg.temporal_compression, tile, tile, 3), jnp.uint8)
  first = jax.ShapeDtypeStruct((1, 1 + (chunk - 1) * vae.cfg.temporal_compression, tile, tile, 3), jnp.uint8)
  return _codec(video_codec.encode_tile, vae, first, video, mesh)


def decode(config, mesh) -> Work:
  """One tile of a later chunk of a clip, from latents to pixels, on one device."""
  vae, tile, chunk = _video_vae(config, mesh)
  side = tile // vae.cfg.spatial_compression
  latent = jax.ShapeDtypeStruct((1, chunk, side, side, vae.cfg.latent_channels), jnp.float32)
  return _codec(video_codec.decode_tile, vae, latent, latent, mesh)


def _codec(function, vae, first, chunk, mesh) -> Work:
  _, state = jax.eval_shape(function, vae, first, None)
  return Work(function, placed(mesh, (vae, chunk, state)), count(vae), {'frames': chunk.shape[1]})


def _video_vae(config, mesh):
  """(abstract VAE, side of a tile in pixels, latent frames of a chunk) of a codec's config, or of the codec that a
  transformer's config names."""
  defaults = {f.name: f.default for f in dataclasses.fields(video_codec.VideoCodec)}
  if isinstance(config, TransformerRun) and config.video_codec.endswith('.py'):
    config = run.build(run.read_config(config.video_codec))
  if isinstance(config, VideoVAERun):
    sizes, tile, chunk = config.model, config.tile, defaults['chunk']
  elif isinstance(config, TransformerRun):
    _, stored = weights.load(codec_file.locate(config.video_codec, 'video'))
    sizes = door.build(VideoVAEConfig, stored['config'], 'codec')
    tile, chunk = stored['settings']['tile'], stored['settings']['chunk']
  else:
    raise ValueError(f'stages encode and decode of a config of {config.stage!r}; give that of a video codec, or of a '
                     'transformer that names one')
  return jax.eval_shape(lambda key: VideoVAE(sizes, rngs=nnx.Rngs(key)), jax.random.key(0)), tile, chunk


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
