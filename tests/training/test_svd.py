"""Fine-tuning a small Stable Video Diffusion: from clips to a run that generates."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import veojax
from tests.zoo import small_folders as small
from veojax import cli
from veojax.data import datasets
from veojax.training import run, svd_conditions
from veojax.training.svd import PROCESS, SVDStep
from veojax.zoo import convert

LOOP = {'num_steps': 2, 'batch_size': 2, 'ema_decays': (0.0,), 'log_every': 1, 'evaluate_every': 0, 'sample_every': 0,
        'save_every': 0, 'num_threads': 1}
# One stage, with attention in the middle alone: what takes time here is to compile a step.
UNET = {**small.SVD_UNET, 'down_block_types': ['DownBlockSpatioTemporal'], 'up_block_types': ['UpBlockSpatioTemporal'],
        'block_out_channels': [32], 'num_attention_heads': [2]}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A converted run and a data set of 8 clips, 2 held back."""
  folder = tmp_path_factory.mktemp('svd')
  small.write_svd(folder / 'published', unet=UNET)
  convert.convert(folder / 'published', folder / 'run')
  assert cli.main(['prepare', '--source', 'world', '--output', str(folder / 'data'), '--num_clips=10',
                   '--world.height=24', '--world.width=16', '--world.num_frames=4', '--world.sample_rate=0',
                   '--validation_fraction=0.2', '--vocab_size=400', '--workers=1']) == 0
  return folder


def tree(folder, **changes):
  sizes = lambda config: {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()
                          if k not in ('sample_size', 'force_upcast')}
  return {'stage': 'svd', 'model': str(folder / 'run'), 'data': str(folder / 'data'), 'num_frames': 3, 'height': 16,
          'width': 16, 'unet': sizes(UNET), 'vae': sizes(small.SVD_VAE), 'loop': LOOP,
          'num_noises': 2, 'dtype': 'float32', 'optimizer': {'learning_rate': 1e-3, 'warmup_steps': 0}, **changes}


@pytest.mark.slow
def test_training_goes_on_with_the_published_weights(folder, one_device, tmp_path):
  """Two steps change the U-Net alone; what was cached is the pipeline's own, and is used again."""
  metrics = run.train(tree(folder), tmp_path / 'mine')
  assert np.isfinite(metrics['loss'])
  base, tuned = veojax.load(folder / 'run'), veojax.load(tmp_path / 'mine')
  moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), *(
      model.run.parts['unet'] for model in (base, tuned)))
  assert 0 < max(jax.tree.leaves(moved)) < 0.1
  jax.tree.map(np.testing.assert_array_equal, base.run.parts['vae'], tuned.run.parts['vae'])
  config, dataset = run.build(tree(folder)), datasets.open_dataset(folder / 'data')
  path = tmp_path / 'mine' / 'conditions' / 'train'
  made = path.stat().st_mtime_ns
  conditions = svd_conditions.opened(path, dataset, np.arange(8), base.pipeline, config)
  assert path.stat().st_mtime_ns == made and conditions.first.shape == (8, 2, 8, 8, 4)
  frame = dataset[5].video[0, 4:20]
  np.testing.assert_allclose(conditions.vector[5], base.pipeline.embed([frame], 'float32')[0], atol=1e-4)
  clean = base.pipeline.encode(frame, np.zeros((1, 16, 16, 3), np.float32), 0.0)[0]
  away = np.abs(conditions.first[5].astype(np.float32) - clean).reshape(2, -1).std(1)
  assert away.min() > 0 and (away[0] > away[1]) == (conditions.noise[5, 0] > conditions.noise[5, 1])
  with pytest.raises(ValueError, match='num_noises: 2 there, 3 now'):
    svd_conditions.opened(path, dataset, np.arange(8), base.pipeline, run.build(tree(folder, num_noises=3)))


def test_a_perfect_network_has_no_loss(folder):
  """v of the scaled input and the level that it is told; and the level's distribution is the config's."""
  config = run.build(tree(folder, sigma_mean=0.5, sigma_std=0.8))
  x0, found = jnp.full((4096, 1, 2, 2, 4), 0.7), []

  def perfect(x_BTHWC, level_B, context_BSE, conditions_B3):
    sigma = jnp.exp(4 * level_B)[:, None, None, None, None]
    found.append(level_B)
    root = jnp.sqrt(1 + sigma ** 2)
    eps = (x_BTHWC[..., :4] * root - x0) / sigma
    return (eps - sigma * x0) / root
  batch = {'latent': x0, 'first': jnp.zeros((4096, 2, 2, 4)), 'vector': jnp.zeros((4096, 20)),
           'conditions': jnp.zeros((4096, 3))}
  loss, _ = SVDStep(config).loss(perfect, batch, jax.random.key(0))
  assert loss < 1e-6
  log_sigma = 4 * np.asarray(found[0])
  np.testing.assert_allclose([log_sigma.mean(), log_sigma.std()], [0.5, 0.8], atol=0.04)
  worse, _ = SVDStep(config).loss(lambda *a: -perfect(*a), batch, jax.random.key(0))
  assert worse > 1 and PROCESS.sigma_data == 1


def test_what_does_not_fit_is_refused(folder, tmp_path):
  for changes, message in (({'model': ''}, '--config.model=RUN'), ({'num_frames': 9}, 'no clip of 8 has 9 frames'),
                           ({'height': 12}, 'multiples of 8'), ({'image_dropout': 2.0}, 'image_dropout'),
                           ({'unet': {}}, 'unet.down_block_types=')):
    with pytest.raises(ValueError, match=message):
      run.train(tree(folder, loop={**LOOP, 'batch_size': 8}, **changes), tmp_path / 'new')
    if (tmp_path / 'new' / 'config.json').exists():
      (tmp_path / 'new' / 'config.json').unlink()
