"""Sums of arrays' bits: the same on every mesh, and others where a bit or an order is."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from veojax import sharding
from veojax.models.checksum import checksums

RNG = np.random.default_rng(0)
ARRAYS = {'b': RNG.normal(size=(16, 8, 4)).astype(np.float32), 'a': RNG.normal(size=(6,)).astype(jnp.bfloat16),
          'd': RNG.integers(-9, 9, (4, 2)).astype(np.int32), 'c': np.float32(0.5), 'e': np.array([True, False, True])}


def test_they_are_the_same_on_every_mesh():
  plain = checksums(jax.tree.map(jnp.asarray, ARRAYS))
  assert plain.dtype == np.uint32 and plain.shape == (len(ARRAYS),)
  with sharding.use(sharding.MeshConfig(data=1, fsdp=4, tensor=2)) as mesh:
    split = {name: jax.device_put(x, sharding.named(mesh, sharding.D_NK if x.ndim == 3 else sharding.REPLICATED))
             for name, x in ARRAYS.items()}
    assert len(split['b'].addressable_shards[0].data) < len(ARRAYS['b'])
    np.testing.assert_array_equal(checksums(split), plain)
  np.testing.assert_array_equal(checksums(split), plain)  # outside of the mesh too


@pytest.mark.parametrize('name', ['a', 'b', 'd'])
def test_every_bit_counts(name):
  """Each is changed by itself; only its array's sum is another."""
  plain, at = checksums(jax.tree.map(jnp.asarray, ARRAYS)), sorted(ARRAYS).index(name)
  bits = ARRAYS[name].size * ARRAYS[name].itemsize * 8
  for bit in RNG.integers(bits, size=40):
    changed = np.frombuffer(ARRAYS[name].tobytes(), np.uint8).copy()
    changed[bit // 8] ^= 1 << bit % 8
    changed = changed.view(ARRAYS[name].dtype).reshape(ARRAYS[name].shape)
    differs = checksums({**jax.tree.map(jnp.asarray, ARRAYS), name: jnp.asarray(changed)}) != plain
    assert differs[at] and differs.sum() == 1


def test_order_counts():
  x = jnp.asarray(ARRAYS['b'])
  sums = [int(checksums({'x': y})[0]) for y in (x, x[::-1], x[:, ::-1], x[..., ::-1], x.transpose(0, 2, 1))]
  assert len(set(sums)) == len(sums)
