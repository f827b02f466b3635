"""Fine-tuning a small Mochi: from a data set with text features stored beside it to a run that generates."""
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

import veojax
from tests.zoo import small_folders as small
from veojax import cli
from veojax.data import datasets, text_features
from veojax.training import run
from veojax.zoo import convert, text_encoders

LOOP = {'num_steps': 2, 'batch_size': 8, 'ema_decays': (0.0,), 'log_every': 1, 'evaluate_every': 0, 'sample_every': 0,
        'save_every': 0, 'num_threads': 1}
SIZES = {'num_frames': 7, 'height': 16, 'width': 16}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A published folder, its run, and a data set whose captions went through its text encoder."""
  folder = tmp_path_factory.mktemp('mochi')
  small.write_mochi(folder / 'published')
  convert.convert(folder / 'published', folder / 'run')
  assert cli.main(['prepare', '--source', 'world', '--output', str(folder / 'data'), '--num_clips=10',
                   '--world.height=24', '--world.width=16', '--world.num_frames=9', '--world.sample_rate=0', '--validation_fraction=0.2',
                   '--vocab_size=400', '--workers=1', '--embed', str(folder / 'published' / 'text_encoder'),
                   '--embed_length=16']) == 0
  return folder


def tree(folder, **changes):
  sizes = lambda config: {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
  return {'stage': 'mochi', 'model': str(folder / 'run'), 'data': str(folder / 'data'), **SIZES, 'text_tokens': 16,
          'transformer': {**small.TRANSFORMER, 'remat': 'full'}, 'vae': sizes(small.VAE), 'tile': 16, 'loop': LOOP,
          'optimizer': {'learning_rate': 1e-3, 'warmup_steps': 0}, **changes}


def test_features_stand_beside_the_captions(folder):
  """Those of T5, caption by caption, within bfloat16."""
  features = text_features.TextFeatures.open(text_encoders.place(folder / 'data', 'train'))
  dataset = datasets.open_dataset(folder / 'data')
  assert len(features) == len(dataset) == 8
  encode = text_encoders.open_encoder(folder / 'published' / 'text_encoder', 16)
  for i in (0, 5):
    expected, = encode([dataset.text(i)])
    assert features[i].shape == expected.shape and len(expected) > 2
    np.testing.assert_allclose(features[i], expected, rtol=8e-3, atol=1e-6)
  with pytest.raises(ValueError, match='are of the encoder'):
    text_features.TextFeatures.open(features.path, 'another')


@pytest.mark.slow
def test_training_goes_on_with_the_published_weights(folder, tmp_path):
  """Two steps change the transformer alone; the run generates, and goes back to files that keep their names."""
  metrics = run.train(tree(folder), tmp_path / 'mine')
  assert np.isfinite(metrics['loss'])
  base, tuned = veojax.load(folder / 'run'), veojax.load(tmp_path / 'mine')
  moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), *(
      model.run.parts['transformer'] for model in (base, tuned)))
  assert 0 < max(jax.tree.leaves(moved)) < 0.1
  jax.tree.map(np.testing.assert_array_equal, base.run.parts['vae'], tuned.run.parts['vae'])
  convert.reverse(tmp_path / 'mine', tmp_path / 'back')
  for path in (folder / 'published').rglob('*.safetensors'):
    before, after = (safetensors.numpy.load_file(p)
                     for p in (path, tmp_path / 'back' / path.relative_to(folder / 'published')))
    assert [(k, v.shape, v.dtype) for k, v in before.items()] == [(k, v.shape, v.dtype) for k, v in after.items()]
  record = json.loads((tmp_path / 'mine' / 'published.json').read_text())
  assert record['fine-tuned from'] == str(folder / 'run')


def test_what_does_not_fit_is_refused(folder, tmp_path):
  for changes, message in (({'model': ''}, '--config.model=RUN'), ({'num_frames': 13}, 'no clip of 8 has 13 frames'),
                           ({'num_frames': 12}, 'give 6k \\+ 1'), ({'caption_dropout': 2.0}, 'caption_dropout'),
                           ({'transformer': {**small.TRANSFORMER, 'num_layers': 4}}, 'transformer.num_layers=4, but')):
    with pytest.raises(ValueError, match=message):
      run.train(tree(folder, **changes), tmp_path / 'new')
    if (tmp_path / 'new' / 'config.json').exists():
      (tmp_path / 'new' / 'config.json').unlink()
