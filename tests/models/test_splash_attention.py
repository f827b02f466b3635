"""The TPU's kernel, in interpret mode, is the same mathematics, and visits only blocks whose segments meet."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from veojax.models import dense_attention, ring_attention, splash_attention

LENGTHS = [100, 90, 3, 190, 0, 40]  # of segments; 0 begins the padding


@pytest.fixture
def small_blocks(monkeypatch):
  """Blocks of 128, so that short rows have several, and one head at a time."""
  monkeypatch.setattr(splash_attention, 'BLOCK', 128)
  monkeypatch.setattr(splash_attention, 'WORKSPACE', 1)


def rows():
  rng = np.random.default_rng(0)
  segment = np.concatenate([np.full(n, 0 if i > 3 else i + 1) for i, n in enumerate(LENGTHS)])
  segment = jnp.asarray(np.stack([segment, np.roll(segment, 57)]), jnp.int32)
  return *(jnp.asarray(rng.normal(size=(*segment.shape, 2, 48)), jnp.float32) for _ in 'qkv'), segment


def test_forward_and_backward_are_those_of_dense_attention(small_blocks):
  q, k, v, segment = rows()
  some = slice(90, 300)  # queries that are fewer than the keys, as where `context` splits them

  def result(way):
    out, pull = jax.vjp(lambda q, k, v: way(q, k, v, segment[:, some], segment), q[:, some], k, v)
    return out, *pull(jnp.cos(out))
  splash = functools.partial(splash_attention.attention, interpret=True)
  for a, b in zip(result(splash), result(dense_attention.attention), strict=True):
    np.testing.assert_allclose(a, b, atol=5e-6)


def test_parts_of_the_keys_merge_to_the_whole(small_blocks):
  """Output and gradients from two parts of the keys, by the whole row's logsumexp: what a ring makes of them."""
  q, k, v, segment = rows()
  parts = slice(0, 200), slice(200, None)
  whole, pull = jax.vjp(lambda *qkv: dense_attention.attention(*qkv, segment, segment), q, k, v)
  so_far = jnp.zeros(q.shape), jnp.full(q.shape[:3], ring_attention.EMPTY)
  for part in parts:
    so_far = ring_attention.merged(so_far, splash_attention.partial(
        q, k[:, part], v[:, part], segment, segment[:, part], interpret=True))
  made = [splash_attention.gradients(q, k[:, p], v[:, p], segment, segment[:, p], *so_far, jnp.cos(whole),
                                     interpret=True) for p in parts]
  got = so_far[0], made[0][0] + made[1][0], *(jnp.concatenate([m[i] for m in made], 1) for i in (1, 2))
  for a, b in zip(got, (whole, *pull(jnp.cos(whole))), strict=True):
    np.testing.assert_allclose(a, b, atol=5e-6)


def test_the_kernel_is_told_of_blocks_that_do_not_meet():
  segment = jnp.repeat(jnp.arange(4), 256)
  for make, blocks in ((splash_attention.mask, 128), (splash_attention.backward_mask, 256)):
    info = make(segment, segment, 128, blocks)
    np.testing.assert_array_equal(info.block_mask[0], np.kron(np.eye(4), np.ones((2, 256 // blocks))))


def test_what_is_fetched_is_what_meets_next():
  rng = np.random.default_rng(0)
  for _ in range(20):
    meet = rng.random((5, 7)) < 0.3
    meet[0, 0] = True
    walk = [(int(i), int(j)) for i, j in np.argwhere(np.ones_like(meet))]
    fetched = splash_attention.fetched(jnp.asarray(meet))
    for n, (i, j) in enumerate(walk):
      following = next(column for row, column in walk[n:] + walk if meet[row, column])
      assert fetched[i, j] == following


@pytest.mark.parametrize('length', [1, 128, 300, 1024, 1025, 2176, 19456, 77824])
def test_rows_are_cut_into_few_blocks_and_little_filling(length):
  block = splash_attention.block_size(length)
  assert block % splash_attention.LANES == 0 and block <= splash_attention.BLOCK
  blocks = -(-length // block)
  assert blocks == -(-length // splash_attention.BLOCK)
  assert blocks * block - length < blocks * splash_attention.LANES
