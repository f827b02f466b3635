"""CLIP's image tower against transformers' own, through the folders that it reads."""
import jax
import numpy as np
import pytest

from tests.zoo import parity
from tests.zoo import small_folders as small
from veojax import sharding
from veojax.zoo import clip_vision

CONFIG = dict(model_type='clip_vision_model', hidden_size=32, intermediate_size=48, num_hidden_layers=2,
              num_attention_heads=2, image_size=28, patch_size=14, projection_dim=20, hidden_act='gelu',
              layer_norm_eps=1e-5, num_channels=3)
DEEPER = {**CONFIG, 'hidden_size': 36, 'num_hidden_layers': 3, 'num_attention_heads': 3, 'image_size': 40,
          'patch_size': 8, 'hidden_act': 'quick_gelu'}


@pytest.mark.parametrize('config', [CONFIG, DEEPER], ids=['gelu', 'quick gelu'])
def test_the_tower_is_transformers(config, tmp_path):
  torch, _ = parity.libraries()
  import transformers
  module = small.write_part(tmp_path / 'a', clip_vision.PART, config, 'model', 3)
  theirs, report = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / 'a', output_loading_info=True)
  assert not report['missing_keys'] and not report['unexpected_keys']
  pictures = parity.normal(1, 2, config['image_size'], config['image_size'], 3)
  with jax.default_matmul_precision('highest'), torch.no_grad():
    ours = jax.jit(lambda module, x: module(x))(module, pictures)
    error = parity.relative(ours, theirs(torch.tensor(np.asarray(pictures)).permute(0, 3, 1, 2)).image_embeds)
  print(f'image tower: largest relative difference {error:.2e}')
  assert error < 1e-5


def test_a_mesh_changes_nothing(tmp_path):
  module = small.write_part(tmp_path / 'a', clip_vision.PART, CONFIG, 'model', 3)
  pictures = parity.normal(1, 2, 28, 28, 3)
  forward = jax.jit(lambda module, x: module(x))
  expected = forward(module, pictures)
  config = clip_vision.PART.read_config(tmp_path / 'a' / 'config.json')
  with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=2, context=2, tensor=2))):
    split = jax.tree.map(lambda p, s: jax.device_put(np.asarray(p), s.sharding.spec), module,
                         clip_vision.PART.shapes(config))
    np.testing.assert_allclose(forward(split, jax.device_put(np.asarray(pictures), sharding.B)), expected, atol=1e-5)


@pytest.mark.parametrize('change, message', [({'hidden_size': 33}, 'num_attention_heads'),
                                             ({'image_size': 30}, 'patch_size'), ({'num_channels': 1}, 'num_channels')])
def test_configs_that_cannot_be_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    clip_vision.PART.build({**CONFIG, **change}, 'config.json')
