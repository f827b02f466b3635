"""Stable Diffusion's one file, by the keys that diffusers itself converts."""
import jax
import numpy as np
import pytest

import veojax
from tests.zoo import parity
from tests.zoo import small_folders as small
from veojax.zoo import convert
from veojax.zoo.animatediff import ANIMATEDIFF, SCHEDULE

SIZES = {'unet': small.IMAGE_UNET, 'vae': small.KL_VAE, 'text_encoder': small.CLIP}
BESIDE = {'betas': np.zeros(3, np.float64), 'sqrt_recipm1_alphas_cumprod': np.zeros(3, 'f'),
          'posterior_mean_coef1': np.zeros(3, 'f'), 'model_ema.num_updates': np.zeros((), np.int32)}


@pytest.fixture(scope='module')
def one_file(animatediff_folder, tmp_path_factory):
  """The small Stable Diffusion as its makers publish it."""
  path = tmp_path_factory.mktemp('sd') / 'v1-5-pruned-emaonly.safetensors'
  return small.write_one_file(path, ANIMATEDIFF, animatediff_folder / 'sd', SIZES, BESIDE)


def test_keys_are_those_that_diffusers_converts(one_file, animatediff_folder):
  parity.libraries()
  from diffusers.loaders import single_file_utils
  tensors = small.load_tensors(one_file.parent)
  found = {'unet': single_file_utils.convert_ldm_unet_checkpoint(dict(tensors), small.IMAGE_UNET),
           'vae': single_file_utils.convert_ldm_vae_checkpoint(dict(tensors), small.KL_VAE),
           'text_encoder': single_file_utils.convert_ldm_clip_checkpoint(dict(tensors))}
  for name, theirs in found.items():
    expected = small.load_tensors(animatediff_folder / 'sd' / name)
    assert theirs.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, theirs, expected)


def test_the_file_is_the_same_model(one_file, animatediff_folder, tmp_path, monkeypatch):
  """With a motion adapter and a tokenizer beside it; and back, all tensors of the model in one file again."""
  monkeypatch.setattr(convert, 'PUBLISHED', (small.of_sizes(ANIMATEDIFF, SIZES),))
  given = {'motion_adapter': str(animatediff_folder / 'adapter')}
  with pytest.raises(ValueError, match='--tokenizer FOLDER'):
    convert.convert(one_file, tmp_path / 'run', parts=given)
  given['tokenizer'] = str(animatediff_folder / 'sd' / 'tokenizer')
  convert.convert(one_file, tmp_path / 'run', parts=given)
  small.assert_same_parts(ANIMATEDIFF, animatediff_folder / 'sd', tmp_path / 'run', SIZES)
  assert veojax.load(tmp_path / 'run').pipeline.schedule == SCHEDULE
  convert.reverse(tmp_path / 'run', tmp_path / 'back')
  before, after = small.load_tensors(one_file.parent), small.load_tensors(tmp_path / 'back')
  assert after.keys() == before.keys() - BESIDE.keys()
  jax.tree.map(np.testing.assert_array_equal, after, {key: before[key] for key in after})
  assert (tmp_path / 'back' / 'motion_adapter' / 'config.json').exists()


def test_other_files_are_told(one_file, animatediff_folder, tmp_path):
  with pytest.raises(ValueError, match='--motion_adapter FOLDER'):
    convert.convert(one_file, tmp_path / 'run')
  tensors = small.load_tensors(one_file.parent)
  small.save_tensors(tmp_path / 'xl.safetensors', {**tensors, 'conditioner.embedders.1.weight': np.zeros(2, 'f')})
  with pytest.raises(ValueError, match='holds conditioner.embedders.1.weight, and AnimateDiff takes one file of keys'):
    convert.convert(tmp_path / 'xl.safetensors', tmp_path / 'run')
  with pytest.raises(ValueError, match='holds another model than its configuration says'):  # the published sizes
    given = {'motion_adapter': animatediff_folder / 'adapter', 'tokenizer': animatediff_folder / 'sd' / 'tokenizer'}
    convert.convert(one_file, tmp_path / 'run', parts={name: str(path) for name, path in given.items()})
