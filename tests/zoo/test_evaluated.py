"""Published models under the benchmarks: clip i of a seed is the same whatever is made beside it, and a report is made."""
import json
import shutil

import jax
import numpy as np
import pytest

import veojax
from tests.zoo import small_folders as small
from veojax import sharding
from veojax.evaluation import evaluate, sweep
from veojax.generation import tasks
from veojax.zoo import convert

SMALL = {'num_frames': 3, 'height': 32, 'width': 32, 'num_inference_steps': 1, 'dtype': 'float32'}
# One stage, with attention in the middle alone: what takes time here is to compile a step.
UNET = {**small.SVD_UNET, 'down_block_types': ['DownBlockSpatioTemporal'], 'up_block_types': ['UpBlockSpatioTemporal'],
        'block_out_channels': [32], 'num_attention_heads': [2]}


@pytest.fixture(scope='module', autouse=True)
def one_device():
  with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
    yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('svd')
  small.write_svd(folder / 'published', unet=UNET)
  convert.convert(folder / 'published', folder / 'run')
  return folder / 'run'


def test_a_clip_is_that_of_its_number(folder):
  """Its own noise, on the given picture too, by whatever call it is made; each of its own picture."""
  model, rng = veojax.load(folder), np.random.default_rng(0)
  pictures = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
  of = lambda first, *given: model.generate([''] * len(given), seed=5, first_index=first, noise_aug_strength=0.5, **SMALL,
                                            given=[tasks.Given(image=picture) for picture in given])
  both = of(7, *pictures)
  for i, clip in enumerate(both):
    alone, = of(7 + i, pictures[i])
    np.testing.assert_array_equal(alone.video, clip.video)
    assert alone.info == clip.info and clip.info['index'] == 7 + i
  together = model.generate(['', ''], seed=5, first_index=7, noise_aug_strength=0.5, image=pictures[0], **SMALL)
  assert np.abs(together[0].video.astype(int) - both[0].video).max() <= 1  # rounding
  assert np.abs(together[1].video.astype(int) - both[0].video).mean() > 1
  assert model.clip_sizes == {'num_frames': 5, 'height': 576, 'width': 1024, 'fps': 7.0}
  assert model.network_calls(model.sampling({'guidance_scale': 1.0})) == 25
  assert model.network_calls(model.sampling({'num_inference_steps': 4})) == 8
  with pytest.raises(ValueError, match='takes no last_image; it takes image'):
    model.generate([''], given=[tasks.Given(last_image=pictures[0])], **SMALL)


def test_its_fingerprint_is_that_of_its_files(folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / 'copy')
  assert veojax.load(copy).fingerprint == veojax.load(folder).fingerprint
  file = max((copy / 'unet' / 'weights').rglob('*'), key=lambda path: path.stat().st_size if path.is_file() else 0)
  file.write_bytes(file.read_bytes()[:-1] + b'!')
  assert veojax.load(copy).fingerprint != veojax.load(folder).fingerprint


def test_it_has_a_report_and_a_sweep(folder, tmp_path):
  """Each first frame is the scene's; without one there is nothing to make a clip of, which the sweep says of that cell."""
  options = {'num_clips': 2, **SMALL}
  evaluate.evaluate(str(folder), 'world', tmp_path / 'one', {'given': 'first_frame', **options}, batch=2, show=False)
  told = json.loads((tmp_path / 'one' / 'report.json').read_text())
  assert set(told['clips']) == {'made', 'truth', 'shuffled'} and len(told['clips']['made']) == 2
  assert told['options']['num_inference_steps'] == 1 and told['scores']['count_constancy']['truth']
  outcomes = sweep.sweep([str(folder)], {'given': ['first_frame', 'nothing']}, tmp_path / 'sweep', options=options,
                         batch=2, show=False)
  assert [bool(o.error) for o in outcomes] == [False, True] and 'give image=' in outcomes[1].error
  assert outcomes[0].calls == 2
