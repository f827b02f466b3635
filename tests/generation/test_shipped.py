"""A model as the package carries it: the model of a run, or the last of several with the mean of their weights."""
import dataclasses
import json
import shutil

import numpy as np
import pytest

import veojax
from veojax.generation import model as models
from veojax.generation import shipped
from veojax.models import weights


@pytest.fixture
def other(model_folder, tmp_path):
  """The model with other weights, and settings of its own."""
  folder = shutil.copytree(model_folder, tmp_path / 'other')
  model = veojax.load(folder)
  rng = np.random.default_rng(1)
  flat = {name: x + rng.normal(0, .1, x.shape).astype('f') for name, x in weights.names(model.dit).items()}
  weights.save(folder / models.WEIGHTS, weights.replace(model.dit, flat), {})
  models.write_config(folder, dataclasses.replace(
      model.config, sampling=dataclasses.replace(model.config.sampling, guidance_scale=7.0)))
  return folder


def flat(folder):
  return weights.names(veojax.load(folder).dit)


def test_a_run_is_written_as_it_is_in_half_precision(model_folder, tmp_path):
  shipped.write([model_folder], tmp_path / 'made')
  for (name, x), y in zip(flat(model_folder).items(), flat(tmp_path / 'made').values(), strict=True):
    np.testing.assert_array_equal(x.astype(np.float16), y, name)
  run, made = veojax.load(model_folder), veojax.load(tmp_path / 'made')
  assert made.config == run.config and made.tokenizer.hash() == run.tokenizer.hash()
  assert np.abs(made.generate('a ball').video.astype(int) - run.generate('a ball').video).mean() < 1


def test_of_several_the_last_is_written_with_the_mean_of_their_weights(model_folder, other, tmp_path):
  shipped.write([model_folder, other], tmp_path / 'made')
  one, two, made = map(flat, (model_folder, other, tmp_path / 'made'))
  assert any(np.abs(one[name] - two[name]).max() > .1 for name in one)
  for name, x in made.items():
    np.testing.assert_allclose(x, (one[name] + two[name]) / 2, rtol=1e-3, atol=1e-6)
  assert veojax.load(tmp_path / 'made').config.sampling.guidance_scale == 7


@pytest.mark.parametrize('change', [('objective', 'prediction', 'eps'), ('dit', 'rope', {'time_wavelengths': [1, 60]})])
def test_weights_that_do_not_mean_the_same_have_no_mean(model_folder, other, tmp_path, change):
  section, name, value = change
  config = json.loads((other / 'model.json').read_text())
  config[section][name] = value
  (other / 'model.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match='differ in their codecs'):
    shipped.write([model_folder, other], tmp_path / 'made')
  assert not (tmp_path / 'made').exists()


def test_weights_that_float16_does_not_hold_are_refused(model_folder, other, tmp_path):
  model = veojax.load(other)
  large = {name: np.full_like(x, 1e6) if name == 'w_text' else x for name, x in weights.names(model.dit).items()}
  weights.save(other / models.WEIGHTS, weights.replace(model.dit, large), {})
  with pytest.raises(ValueError, match='w_text of .*other reaches 1e.06'):
    shipped.write([other], tmp_path / 'made')
