"""Weights in one file or in parts: the same parameters again, and what is missing is named."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from veojax import sharding
from veojax.models import weights
from veojax.models.text import TextConfig, TextEncoder

CONFIG = TextConfig(vocab_size=40, width=16, depth=2, num_heads=2, mlp_width=24)


@pytest.fixture
def model():
  return TextEncoder(CONFIG, rngs=nnx.Rngs(0))


@pytest.mark.parametrize('part_bytes, at_least', [(None, 1), (4000, 3), (1, 9)])
def test_parts_hold_the_same_as_one_file(model, tmp_path, part_bytes, at_least):
  weights.save(tmp_path / 'w.safetensors', model, {'a': 1}, np.float16, part_bytes)
  files = sorted(tmp_path.iterdir())
  flat, metadata = weights.load(tmp_path / 'w.safetensors')
  whole = weights.names(model)
  assert len(files) >= at_least and metadata == {'a': 1} and flat.keys() == whole.keys()
  for name, array in whole.items():
    assert np.array_equal(flat[name], np.asarray(array, np.float16)), name
  if part_bytes == 4000:
    largest = max(2 * array.size for array in whole.values())
    assert max(f.stat().st_size for f in files) < max(part_bytes, largest) + 2000  # the names


def test_a_missing_part_is_named(model, tmp_path):
  weights.save(tmp_path / 'w.safetensors', model, {}, part_bytes=4000)
  sorted(tmp_path.iterdir())[1].unlink()
  with pytest.raises(ValueError, match='in parts.*w-00001-of.*copy all of them again'):
    weights.load(tmp_path / 'w.safetensors')
  with pytest.raises(ValueError, match='does not exist'):
    weights.load(tmp_path / 'other.safetensors')


def test_weights_of_another_model_are_refused(model):
  flat = weights.names(model)
  del flat[next(iter(flat))]
  with pytest.raises(ValueError, match='missing'):
    weights.replace(model, flat)
  flat = {name: jnp.zeros((3,)) for name in weights.names(model)}
  with pytest.raises(ValueError, match='misshapen'):
    weights.replace(model, flat)


def test_each_device_gets_its_part_of_a_hosts_array():
  with sharding.use(sharding.MeshConfig(fsdp=4, tensor=2)) as mesh:
    for value in (np.arange(64.0, dtype=np.float32).reshape(8, 8), np.float32(3.0).reshape(())):
      layout = sharding.named(mesh, sharding.D_F if value.ndim else sharding.REPLICATED)
      for of in (value, jax.device_put(value, jax.devices()[0])):
        array = weights.put(of, layout)
        assert array.sharding == layout and array.dtype == value.dtype
        np.testing.assert_array_equal(array, value)
