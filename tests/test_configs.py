"""Every config in configs/ builds, initialises and takes a train step, abstractly."""
import pathlib

import jax
import jax.numpy as jnp
import pytest

from veojax.data import packing
from veojax.training import audio_vae, run, step, transformer, video_vae

CONFIGS = sorted((pathlib.Path(__file__).resolve().parent.parent / 'configs').rglob('*.py'))


def abstract_batch(config):
  """One batch of the shapes that the config's stage reads."""
  B = config.loop.batch_size
  if isinstance(config, transformer.TransformerRun):
    empty = packing.empty_row(config.pack)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, B, *x.shape), x.dtype), empty)
  if isinstance(config, video_vae.VideoVAERun):
    return {'video': jax.ShapeDtypeStruct(
        (1, B, config.crop.num_frames, config.crop.height, config.crop.width, 3), jnp.uint8)}
  samples = config.num_latents * config.model.hop
  return {'audio': jax.ShapeDtypeStruct((1, B, samples, config.model.channels), jnp.float32)}


def unbound(cls, config):
  """A stage without its data set: what initialising and stepping need."""
  stage = object.__new__(cls)
  stage.config = config
  return stage


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config_initialises_and_steps_abstractly(path):
  config = run.build(run.read_config(path))
  stage = unbound({'video_vae': video_vae.VideoVAEStage, 'audio_vae': audio_vae.AudioVAEStage,
                   'transformer': transformer.TransformerStage}[config.stage], config)
  tx = stage.make_optimizer()
  state = jax.eval_shape(lambda key: step.init(stage.make_model, tx, key, len(config.loop.ema_decays)),
                         jax.random.key(0))
  new, metrics = jax.eval_shape(step.make(stage.loss, tx, config.loop.ema_decays), state, jax.random.key(0),
                                abstract_batch(config))
  assert jax.tree.structure(new) == jax.tree.structure(state)
  assert [a.shape for a in jax.tree.leaves(new)] == [a.shape for a in jax.tree.leaves(state)]
  assert metrics['loss'].shape == ()


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config_says_how_it_is_run(path):
  assert 'veojax train --config configs/' in path.read_text().split('"""')[1]
