"""The transformer: no leak between segments, order does not matter, layouts change nothing."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from veojax import sharding
from veojax.data import packing
from veojax.models import attention, dit, rope, transformer
from veojax.models.text import TextConfig

CONFIG = dit.DiTConfig(video_channels=4, audio_channels=6, width=32, depth=2, num_heads=2, mlp_width=48,
                       text=TextConfig(vocab_size=50, width=16, depth=1, num_heads=2, mlp_width=24), dtype='float32')
PACK = packing.PackConfig(row_tokens=64, text_tokens=16, max_clips=3, max_text=8, channels=6)


def clip(rng, text=(2, 5, 3), frames=2, size=(2, 3), sound=4):
  return packing.LatentClip(
      video=rng.normal(size=(frames, *size, 4)).astype('f') if frames else None,
      audio=rng.normal(size=(sound, 6)).astype('f') if sound else None, text_ids=list(text), fps=8.0,
      height=8 * size[0], width=8 * size[1], temporal_compression=4, spatial_compression=8, latent_rate=25.0)


def rows(*packed):
  return packing.Tokens(*(np.stack(x) for x in zip(*packed)))


def random_model(config=CONFIG, key=0):
  """All parameters drawn, those too that start at zero and would hide what stands behind them."""
  model = jax.jit(lambda k: dit.DiT(config, rngs=nnx.Rngs(k)))(jax.random.key(key))
  leaves, tree = jax.tree.flatten(model)
  keys = jax.random.split(jax.random.key(key + 1), len(leaves))
  return jax.tree.unflatten(tree, [a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys)])


@pytest.fixture(scope='module')
def model():
  return random_model()


@pytest.fixture
def two():
  rng = np.random.default_rng(0)
  return rows(packing.pack([clip(rng), clip(rng, (2, 7, 8, 3), 3, (3, 2), 2)], PACK))


def levels(tokens):
  return jnp.linspace(0.1, 0.9, tokens.group_modality.size).reshape(tokens.group_modality.shape)


def test_it_starts_at_zero_and_blocks_as_the_identity(two):
  fresh = dit.DiT(CONFIG, rngs=nnx.Rngs(0))
  assert not np.any(fresh(two, levels(two)))


def test_no_output_depends_on_another_segment(model, two):
  """By gradient, through latents, noise levels and text: exactly zero."""
  first = jnp.asarray(two.segment == 1)

  def of_first(latent, noise, embedding):
    changed = jax.tree.map(lambda a: a, model)
    changed.text_encoder.embedding = nnx.Param(embedding)
    out = changed(two._replace(latent=latent), noise)
    return jnp.sum(jnp.where(first[..., None], out, 0) ** 2)
  embedding = model.text_encoder.embedding[...]
  by_latent, by_noise, by_embedding = jax.grad(of_first, (0, 1, 2))(jnp.asarray(two.latent), levels(two), embedding)
  assert np.all(np.asarray(by_latent)[np.asarray(two.segment) == 2] == 0)
  assert np.any(np.asarray(by_latent)[np.asarray(two.segment) == 1])
  assert np.all(np.asarray(by_noise)[np.asarray(two.group_segment) == 2] == 0)
  assert np.any(np.asarray(by_noise)[np.asarray(two.group_segment) == 1])
  assert np.all(np.asarray(by_embedding)[[7, 8]] == 0) and np.any(np.asarray(by_embedding)[5])


def test_alone_is_as_packed(model):
  rng = np.random.default_rng(1)
  clips = [clip(rng), clip(rng, (2, 9, 3), 1, (3, 3), 5)]
  packed, alone = rows(packing.pack(clips, PACK)), rows(packing.pack(clips[1:], PACK))
  noise = jnp.full(packed.group_modality.shape, 0.3)
  a = np.asarray(model(packed, noise))[0][np.asarray(packed.segment[0]) == 2]
  b = np.asarray(model(alone, noise))[0][np.asarray(alone.segment[0]) == 1]
  np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_order_of_tokens_does_not_matter(model, two):
  order = np.random.default_rng(2).permutation(two.latent.shape[1])
  names = ('latent', 'modality', 'segment', 'position', 'extent', 'group', 'text_index')
  mixed = two._replace(**{n: getattr(two, n)[:, order] for n in names})
  np.testing.assert_allclose(model(mixed, levels(two)), np.asarray(model(two, levels(two)))[:, order], atol=1e-5)


def test_only_differences_of_time_turn_queries_against_keys():
  rng = np.random.default_rng(3)
  q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 24)), jnp.float32) for _ in 'qk')
  def logit(t_q, t_k):
    turned = [rope.rotate(x, rope.rotation(rope.RopeConfig(), 24, jnp.full((1, 1, 3), t)))
              for x, t in ((q, t_q), (k, t_k))]
    return float(jnp.sum(turned[0] * turned[1]))
  assert logit(0.5, 0.2) == pytest.approx(logit(1.5, 1.2), abs=1e-4)
  assert logit(0.5, 0.2) != pytest.approx(logit(0.5, 0.4), abs=1e-3)


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_rematerialisation_changes_nothing(model, two, remat):
  def gradient(config):
    changed = random_model(config)
    return jax.jit(jax.grad(lambda m: jnp.sum(m(two, levels(two)) ** 2)))(changed)

  a, b = gradient(CONFIG), gradient(dataclasses.replace(CONFIG, remat=remat))
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def test_scanned_blocks_equal_a_loop(model, two):
  row = dit.Row(jax.tree.map(jnp.asarray, two), CONFIG)
  x = jnp.asarray(np.random.default_rng(5).normal(size=(1, 64, 32)), jnp.float32)
  shared = jnp.asarray(np.random.default_rng(6).normal(size=(1, PACK.num_groups, 6, 32)), jnp.float32)
  apply = lambda block, x: block(x, shared, row)
  scanned = transformer.run(model.blocks, x, apply, 'none')
  looped = x
  for i in range(CONFIG.depth):
    looped = apply(jax.tree.map(lambda a: a[i], model.blocks), looped)
  np.testing.assert_allclose(scanned, looped, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('mesh', [(8, 1, 1, 1), (2, 2, 1, 2), (2, 1, 4, 1)], ids=str)
def test_layouts_change_nothing(model, mesh):
  rng = np.random.default_rng(7)
  tokens = rows(*(packing.pack([clip(rng), clip(rng, (2, 4, 3), 1)], PACK) for _ in range(8)))
  loss = lambda m, t: jnp.mean(m(t, levels(t)) ** 2)
  want, want_grads = jax.jit(jax.value_and_grad(loss))(model, tokens)
  devices = sharding.make_mesh(sharding.MeshConfig(*mesh))
  with jax.set_mesh(devices):
    laid = jax.tree.map(lambda a, s: jax.device_put(a, sharding.named(devices, s.sharding.spec)), model,
                        jax.eval_shape(lambda: dit.DiT(CONFIG, rngs=nnx.Rngs(0))))
    tokens = jax.tree.map(lambda a, s: jax.device_put(a, sharding.named(devices, s)), tokens, dit.TOKEN_SPECS)
    got, grads = jax.jit(jax.value_and_grad(loss))(laid, tokens)
  assert float(got) == pytest.approx(float(want), rel=1e-5)
  for x, y in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads)):
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
