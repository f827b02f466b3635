"""Every config in configs/ builds, initialises and takes a train step, abstractly; and what is told of it works."""
import pathlib
import re

import jax
import pytest

from veojax import cli, sharding
from veojax.data.tokenizer import Tokenizer
from veojax.training import run, step

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / 'configs').rglob('*.py'))


def abstract_batch(stage):
  """One batch of the shapes that the config's stage reads."""
  B = stage.config.loop.batch_size
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, B, *x.shape), x.dtype), stage.blank())


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config_initialises_and_steps_abstractly(path):
  config = run.build(run.read_config(path))
  stage = run.STEPS[config.stage](config)
  tx = stage.make_optimizer()
  state = jax.eval_shape(lambda key: step.init(stage.make_model, tx, key, len(config.loop.ema_decays)),
                         jax.random.key(0))
  new, metrics = jax.eval_shape(step.make(stage.loss, tx, config.loop.ema_decays), state, jax.random.key(0),
                                abstract_batch(stage))
  assert jax.tree.structure(new) == jax.tree.structure(state)
  assert [a.shape for a in jax.tree.leaves(new)] == [a.shape for a in jax.tree.leaves(state)]
  assert metrics['loss'].shape == ()


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config_says_how_it_is_run(path):
  assert 'veojax train --config configs/' in path.read_text().split('"""')[1]


@pytest.mark.parametrize('told', ['README.md', 'configs/make_a_video.py', 'configs/tasks.py'])
def test_the_data_that_is_told_has_no_more_pieces_than_the_config(told, tmp_path):
  """The first world that is prepared there, in small, and the config of the training after it."""
  text = (ROOT / told).read_text().replace('\\\n', ' ')
  options, after = re.search(r'veojax prepare +--source world (.*)\n([\s\S]*)', text).groups()
  given = [option for option in options.split('#')[0].split() if option.startswith('--') and '=' in option]
  assert cli.main(['prepare', '--source', 'world', '--output', str(tmp_path), *given, '--num_clips=300']) == 0
  config = run.build(run.read_config(ROOT / re.search(r'veojax train +--config (\S+)', after)[1]))
  owner = config.embedder if config.stage == 'make_a_video' else config.dit
  assert Tokenizer.load(tmp_path / 'text.model').vocab_size <= owner.text.vocab_size


@pytest.mark.parametrize('name', ['mochi', 'svd', 'animatediff', 'make_a_video'])
def test_a_published_model_samples_abstractly(name):
  """As `veojax compile --stage generate` takes it: latents of the config's settings, for each part of the mesh."""
  config = run.build(run.read_config(CONFIGS[0].parent / f'{name}.py'))
  mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
  stage = run.STEPS[config.stage](config)
  function, arguments, options, _ = stage.sampling(mesh)
  with jax.set_mesh(mesh):
    made = jax.eval_shape(lambda *arguments: function(*arguments, **options), *arguments)
  assert made.shape == (1, *stage.sampled_shape())
