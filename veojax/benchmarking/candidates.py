"""What `veojax benchmark` times of a config: a training step with its data, or what `veojax compile` compiles.

All of it runs under the mesh in force, which is the config's.
"""
import time
from collections.abc import Iterator

import jax
import numpy as np

from veojax import files
from veojax.benchmarking import inputs
from veojax.benchmarking.timing import Candidate, compiled
from veojax.compiling import model_flops, stages
from veojax.data import pipeline
from veojax.generation import codecs
from veojax.models import layers
from veojax.models.dit import DiT
from veojax.models.video_codec import VideoCodec
from veojax.models.video_vae import VideoVAE
from veojax.training import loop, run, step
from veojax.training.transformer import TransformerRun, TransformerStage


def train(config, mesh, workdir=None) -> Candidate:
  """The training step, fed as in training: from the data that the config names, with the codecs and latents of
  `workdir`; or from rows that one clip fills."""
  stage = run.STEPS[config.stage](config)
  work = stages.train(config, mesh)
  tx, key = stage.make_optimizer(), jax.random.key(config.seed)
  state = jax.jit(lambda key: step.init(stage.make_model, tx, key, len(config.loop.ema_decays)))(key)
  batches = rows(config, workdir)
  num = config.loop.accumulate
  first = loop.put([next(batches) for _ in range(num)], stage)
  program, seconds, memory = compiled(work.function, state, key, first)

  def one():
    nonlocal state
    start = time.perf_counter()
    batch = [next(batches) for _ in range(num)]
    waited = time.perf_counter() - start
    state, metrics = program(state, key, loop.put(batch, stage))
    jax.block_until_ready(metrics['loss'])
    return waited
  return Candidate('training step', one, sum((work.flops or {}).values()), work.units, seconds, memory,
                   program.as_text())


def rows(config, workdir) -> Iterator:
  """Batches as the training loop reads them."""
  if workdir is not None and isinstance(config, TransformerRun):
    source = TransformerStage(config, workdir, *(run.codec_of(config, workdir, kind) for kind in codecs.KINDS)).source
  elif isinstance(config, TransformerRun):
    source = full_rows(config)
  else:
    source = inputs.Noise(run.STEPS[config.stage](config).blank())
  return pipeline.make_iterator(source, 0, config.loop.batch_size, num_threads=config.loop.num_threads)


def full_rows(config) -> inputs.FullRows | None:
  if not isinstance(config, TransformerRun):
    return None
  dit = config.dit
  return inputs.FullRows(config.pack, dit.audio_channels, dit.video_channels, dit.text.vocab_size)


def forward(config, mesh, workdir=None) -> Candidate:
  """One call of a TransformerRun's network on a batch of rows."""
  B, stage = config.loop.batch_size, run.STEPS[config.stage](config)
  model = jax.jit(stage.make_model)(jax.random.key(config.seed))
  batch = pipeline.stack([full_rows(config)[i] for i in range(B)])
  tokens = jax.tree.map(lambda x: x[0], loop.put([batch], stage))
  noise_BG = tokens.group_level * 0.0 + 0.5
  program, seconds, memory = compiled(DiT.__call__, model, tokens, noise_BG)

  def one():
    jax.block_until_ready(program(model, tokens, noise_BG))
  flops = B * sum(model_flops.forward(config.dit, config.pack.row_tokens).values())
  return Candidate('forward', one, flops, {'rows': B, 'tokens': B * config.pack.row_tokens}, seconds, memory,
                   program.as_text())


def call(name: str):
  """The candidate of a stage of `veojax compile` that is a plain function."""
  def make(config, mesh, workdir=None) -> Candidate:
    work = stages.STAGES[name](config, mesh)
    with work.under():
      arguments = inputs.concrete(work.arguments, full_rows(config))
      program, seconds, memory = compiled(work.function, *arguments, **work.options)

    def one():
      jax.block_until_ready(program(*arguments))
    return Candidate(name, one, sum((work.flops or {}).values()), work.units, seconds, memory,
                   program.as_text())
  return make


def whole_clip(config: TransformerRun) -> Candidate:
  """All pictures of the clip that a transformer's config makes, from latents to uint8 on the host, by the codec that it
  names; untrained, where that is a config's."""
  inner, clip = run.inner_run(config, 'video'), config.clip
  if inner is None:
    codec = codecs.load(files.path(config.video_codec), 'video')
  else:
    vae = jax.jit(lambda key: VideoVAE(inner.model, rngs=layers.Rngs(key)))(jax.random.key(config.seed))
    zeros = np.zeros(inner.model.latent_channels, np.float32)
    codec = VideoCodec(vae, zeros, zeros + 1, tile=inner.tile, overlap=inner.overlap)
  size = clip.num_frames, clip.height, clip.width
  latent = np.random.default_rng(0).standard_normal(codec.latent_shape(*size), np.float32)

  def one():
    codec.decode(latent, *size)
  start = time.perf_counter()
  one()  # compiles
  return Candidate('decode, whole clip', one, 0.0, {'frames of {1}x{2}'.format(*size): clip.num_frames},
                   time.perf_counter() - start)


STAGES = {'train': train, 'forward': forward, 'generate': call('generate'), 'encode': call('encode'),
          'decode': call('decode')}
