"""Attention over packed rows: every way of computing it is the same mathematics, and no segment sees another."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from veojax import sharding
from veojax.models import attention, blocked_attention

PACKINGS = {  # lengths of segments; 0 begins the padding
    'one segment': [200],
    'aligned to blocks': [96, 96, 96],
    'unaligned, with padding': [10, 150, 3, 77, 0, 40],
    'many short': [7] * 40,
}


def rows(lengths, batch=3, heads=2, head_dim=8):
  rng = np.random.default_rng(0)
  ids, identity = [], 0
  for i, length in enumerate(lengths):
    identity = 0 if 0 in lengths[:i + 1] else identity + 1
    ids += [identity] * length
  segment = np.repeat([ids], batch, 0)
  segment[1:] = rng.permutation(segment[1:], axis=1)  # the others' tokens lie in any order
  q, k, v = (jnp.asarray(rng.normal(size=(batch, len(ids), heads, head_dim)), jnp.float32) for _ in 'qkv')
  return q, k, v, jnp.asarray(segment)


def reference(q, k, v, segment):
  q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
  scores = np.einsum('blnk,bsnk->bnls', q, k) / np.sqrt(q.shape[-1])
  scores = np.where((segment[:, :, None] == segment[:, None])[:, None], scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return np.einsum('bnls,bsnk->blnk', weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize('packing', PACKINGS)
@pytest.mark.parametrize('way', [blocked_attention.attention, attention.dense, attention.attention])
def test_attention_is_softmax_within_segments(packing, way):
  q, k, v, segment = rows(PACKINGS[packing])
  np.testing.assert_allclose(way(q, k, v, segment, segment), reference(q, k, v, np.asarray(segment)), atol=2e-6)


@pytest.mark.parametrize('packing', PACKINGS)
def test_gradients_of_the_blocks_are_those_of_dense_attention(packing):
  q, k, v, segment = rows(PACKINGS[packing])
  def gradient(way):
    return jax.grad(lambda *qkv: jnp.sum(jnp.sin(way(*qkv, segment, segment))), (0, 1, 2))(q, k, v)
  for a, b in zip(gradient(blocked_attention.attention), gradient(attention.dense)):
    np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize('way', [blocked_attention.attention, attention.dense])
def test_no_gradient_crosses_segments(way):
  q, k, v, segment = rows(PACKINGS['unaligned, with padding'])
  one = (segment == 2)[:, :, None, None]
  gradients = jax.grad(lambda *qkv: jnp.sum(jnp.where(one, way(*qkv, segment, segment), 0) ** 2), (0, 1, 2))(q, k, v)
  for gradient in gradients:
    assert not jnp.any(jnp.where(one, 0, gradient)) and jnp.any(jnp.where(one, gradient, 0))


def test_blocks_of_keys_that_no_query_meets_are_not_visited():
  q, k, v, segment = rows(PACKINGS['aligned to blocks'], batch=1)
  plan = blocked_attention.Plan(q, k, segment, segment)
  assert plan.count.reshape(-1).tolist() == [1, 1, 1]
  one = jnp.ones_like(segment)
  assert blocked_attention.Plan(q, k, one, one).count.reshape(-1).tolist() == [3, 3, 3]


def test_queries_may_be_fewer_than_keys():
  q, k, v, segment = rows([60, 40])
  some = functools.partial(blocked_attention.attention, k_BSNK=k, v_BSNK=v, segment_BS=segment)
  np.testing.assert_allclose(some(q[:, 50:], segment_BL=segment[:, 50:]), reference(q, k, v, np.asarray(segment))[:, 50:],
                             atol=2e-6)


def test_half_precision_stays_near_float32():
  q, k, v, segment = rows([100, 60])
  half = [a.astype(jnp.bfloat16) for a in (q, k, v)]
  y = blocked_attention.attention(*half, segment, segment)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(y.astype(jnp.float32), reference(q, k, v, np.asarray(segment)), atol=0.03)


def test_sharded_over_rows_queries_and_heads_equals_unsharded():
  q, k, v, segment = rows([30, 50, 16], batch=4)
  loss = lambda q, k, v, s: jnp.sum(jnp.sin(attention.attention(q, k, v, s, s)))
  alone = jax.value_and_grad(loss, (0, 1, 2))(q, k, v, segment)
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2, context=2, tensor=2))
  with jax.set_mesh(mesh):
    put = lambda x, spec: jax.device_put(x, sharding.named(mesh, spec))
    operands = [put(a, sharding.BLNK) for a in (q, k, v)] + [put(segment, P(sharding.ROWS, 'context'))]
    together = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*operands)
  for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
