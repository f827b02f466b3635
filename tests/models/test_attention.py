"""Attention over packed rows: every way of computing it is the same mathematics, and no segment sees another."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from veojax import sharding
from veojax.compiling import collectives, program
from veojax.models import attention, blocked_attention, dense_attention, ring_attention

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
@pytest.mark.parametrize('way', [blocked_attention.attention, dense_attention.attention, attention.attention])
def test_attention_is_softmax_within_segments(packing, way):
  q, k, v, segment = rows(PACKINGS[packing])
  np.testing.assert_allclose(way(q, k, v, segment, segment), reference(q, k, v, np.asarray(segment)), atol=2e-6)


@pytest.mark.parametrize('packing', PACKINGS)
def test_gradients_of_the_blocks_are_those_of_dense_attention(packing):
  q, k, v, segment = rows(PACKINGS[packing])
  def gradient(way):
    return jax.grad(lambda *qkv: jnp.sum(jnp.sin(way(*qkv, segment, segment))), (0, 1, 2))(q, k, v)
  for a, b in zip(gradient(blocked_attention.attention), gradient(dense_attention.attention)):
    np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize('way', [blocked_attention.attention, dense_attention.attention])
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


def test_short_rows_are_dense_and_long_ones_in_blocks(monkeypatch):
  taken = []
  for module in (dense_attention, blocked_attention):
    way = module.attention
    monkeypatch.setattr(module, 'attention', lambda *a, way=way, module=module: taken.append(module) or way(*a))
  for length in (attention.DENSE_BELOW - 8, attention.DENSE_BELOW):
    q, k, v, segment = rows([length // 2, length // 2], batch=1)
    np.testing.assert_allclose(attention.on_cpu(q, k, v, segment, segment), reference(q, k, v, np.asarray(segment)),
                               atol=2e-6)
  assert taken == [dense_attention, blocked_attention]


@pytest.mark.parametrize('way', [blocked_attention, dense_attention])
def test_parts_of_the_keys_merge_to_the_whole(way):
  """Output, logsumexp and gradients from three parts of the keys, of which some queries see nothing."""
  q, k, v, segment = rows(PACKINGS['unaligned, with padding'])
  parts = [slice(0, 70), slice(70, 200), slice(200, None)]
  whole, pull = jax.vjp(lambda *qkv: blocked_attention.attention(*qkv, segment, segment), q, k, v)

  @jax.jit
  def by_parts(q, k, v, do):
    so_far = jnp.zeros(q.shape), jnp.full(q.shape[:3], ring_attention.EMPTY)
    for part in parts:
      so_far = ring_attention.merged(so_far, way.partial(q, k[:, part], v[:, part], segment, segment[:, part]))
    made = [way.gradients(q, k[:, p], v[:, p], segment, segment[:, p], *so_far, do) for p in parts]
    return so_far[0], sum(m[0] for m in made), *(jnp.concatenate([m[i] for m in made], 1) for i in (1, 2))
  do = jnp.cos(whole)
  for a, b in zip(by_parts(q, k, v, do), (whole, *pull(do)), strict=True):
    np.testing.assert_allclose(a, b, atol=3e-6)


MESHES = {  # (axes, way): four heads
    'rows, queries and heads': ({'data': 2, 'context': 2, 'tensor': 2}, 'gather'),
    'heads exchanged beside split heads': ({'data': 2, 'context': 2, 'tensor': 2}, 'all_to_all'),
    'heads exchanged': ({'data': 2, 'context': 4}, 'all_to_all'),
    'ring beside split heads': ({'data': 2, 'context': 2, 'tensor': 2}, 'ring'),
    'ring': ({'data': 1, 'context': 8}, 'ring'),
}


@pytest.fixture(scope='module')
def alone():
  operands = rows([30, 50, 16], batch=4, heads=4)
  return operands, loss_and_gradients()(*operands)


def loss_and_gradients():
  loss = lambda q, k, v, s: jnp.sum(jnp.sin(attention.attention(q, k, v, s, s)))
  return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))


@pytest.mark.parametrize('case', MESHES)
def test_every_way_over_a_mesh_equals_unsharded(alone, case, monkeypatch):
  monkeypatch.setattr(attention, 'DENSE_BELOW', 0)
  (q, k, v, segment), want = alone
  axes, way = MESHES[case]
  with sharding.use(sharding.MeshConfig(**axes, attention=way)) as mesh:
    put = lambda x, spec: jax.device_put(x, sharding.named(mesh, spec))
    operands = [put(a, sharding.BLNK) for a in (q, k, v)] + [put(segment, sharding.BL)]
    lowered = loss_and_gradients().lower(*operands)
    compiled = lowered.compile()
    got = compiled(*operands)
  for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
  kind = {'gather': 'all-gather', 'all_to_all': 'all-to-all', 'ring': 'collective-permute'}[way]
  sent = collectives.collect(program.Program(compiled.as_text()), dict(mesh.shape))
  assert ('context', kind) in {(c.axes[-1], c.kind) for c in sent}


def test_a_part_of_the_ring_that_no_segment_meets_runs_no_kernel():
  """Queries that meet no key of another device: what they would make of it, here NaN, is never made."""
  q, k, v, segment = rows([12, 12, 12, 12], batch=1)
  segment = jnp.sort(segment)

  def partial(q, k, v, segment_q, segment_k):
    o, logsumexp = blocked_attention.partial(q, k, v, segment_q, segment_k)
    return jnp.where(jnp.all(segment_q == segment_k), o, jnp.nan), logsumexp
  with sharding.use(sharding.MeshConfig(data=2, context=4)):
    specs = (*[P(None, 'context')] * 3, P(None, 'context'), P(None, 'context'))
    ring = jax.shard_map(ring_attention.make(partial, blocked_attention.gradients), in_specs=specs,
                         out_specs=specs[0], check_vma=False)
    out = jax.jit(ring)(*(jax.device_put(x, s) for x, s in zip((q, k, v, segment, segment), specs)))
  np.testing.assert_allclose(out, reference(q, k, v, np.asarray(segment)), atol=2e-6)


def test_the_way_follows_from_heads_and_rows_unless_it_is_named():
  def way(heads, tokens, **axes):
    keys = jax.ShapeDtypeStruct((8, tokens, heads, 128), jnp.bfloat16)
    with sharding.use(sharding.MeshConfig(**axes)):
      return attention.way(keys, keys)
  assert way(8, 77_824, context=4) == 'all_to_all'
  assert way(6, 4096, context=4) == way(4, 4096, context=4, tensor=2) == way(6, 77_824) == 'gather'
  assert way(6, 77_824, context=4) == 'ring'
  assert way(8, 4096, context=4, attention='ring') == 'ring'
  with pytest.raises(ValueError, match="context=4 does not divide the 6 heads.*'ring'"):
    way(6, 4096, context=4, attention='all_to_all')
