"""The transformer: no leak between segments, order does not matter, layouts change nothing."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from veojax.data import latent_clip, packing
from veojax.models import attention, blocked_attention, dense_attention, dit, rope, splash_attention, transformer
from veojax.models.text import TextConfig

CONFIG = dit.DiTConfig(video_channels=4, audio_channels=6, width=32, depth=2, num_heads=2, mlp_width=48,
                       text=TextConfig(vocab_size=50, width=16, depth=1, num_heads=2, mlp_width=24), dtype='float32')
PACK = packing.PackConfig(row_tokens=64, text_tokens=16, max_clips=3, max_text=8, channels=6)


def clip(rng, text=(2, 5, 3), frames=2, size=(2, 3), sound=4):
  return latent_clip.LatentClip(
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


@pytest.fixture
def kinds():
  """A clip, an image and a sound, with captions of their own pieces."""
  rng = np.random.default_rng(8)
  of = lambda text, **kwargs: clip(rng, (text, text + 1), **kwargs)
  return [of(10), of(20, frames=1, sound=0, size=(3, 2)), of(30, frames=0, sound=7)]


@pytest.fixture
def mixed(kinds):
  """Two rows of them, in either order, with padding."""
  return rows(packing.pack(kinds, PACK), packing.pack(kinds[::-1], PACK))


@pytest.fixture(params=['blocked', 'dense'])
def way(request, monkeypatch):
  """Each way of computing attention within segments."""
  monkeypatch.setattr(attention, 'attention',
                      {'blocked': blocked_attention.attention, 'dense': dense_attention.attention}[request.param])


@pytest.mark.parametrize('segment', [1, 2, 3])
def test_no_output_depends_on_another_segment(model, mixed, way, segment):
  """By gradient, through latents, places, noise levels and captions: exactly zero for all of another segment, of
  another row and of padding."""
  mine = np.zeros(mixed.segment.shape, bool)
  mine[0] = mixed.segment[0] == segment
  text_mine = np.zeros(mixed.text_segment.shape, bool)
  text_mine[0] = mixed.text_segment[0] == segment
  group_mine = np.zeros(mixed.group_segment.shape, bool)
  group_mine[0] = mixed.group_segment[0] == segment
  weights = jnp.asarray(np.random.default_rng(9).normal(size=mixed.latent.shape), jnp.float32)

  def of_mine(latent, position, extent, noise, embedding):
    changed = jax.tree.map(lambda a: a, model)
    changed.text_encoder.embedding = nnx.Param(embedding)
    out = changed(mixed._replace(latent=latent, position=position, extent=extent), noise)
    return jnp.sum(jnp.where(jnp.asarray(mine)[..., None], weights * out, 0))
  inputs = *map(jnp.asarray, (mixed.latent, mixed.position, mixed.extent)), levels(mixed)
  gradients = jax.jit(jax.grad(of_mine, range(5)))(*inputs, model.text_encoder.embedding[...])
  *of_tokens, of_noise, of_pieces = map(np.asarray, gradients)
  for gradient in of_tokens:
    assert np.all(gradient[~mine] == 0) and np.any(gradient[mine])
  assert np.all(of_noise[~group_mine] == 0) and np.any(of_noise[group_mine])
  pieces = np.unique(mixed.text[text_mine])
  assert np.all(np.delete(of_pieces, pieces, 0) == 0) and np.all(np.any(of_pieces[pieces], 1))


WAYS = {'blocked': blocked_attention.attention, 'dense': dense_attention.attention,
        'for this machine': attention.attention,
        'splash': functools.partial(splash_attention.attention, interpret=True)}


@pytest.mark.smoke
@pytest.mark.parametrize('way', WAYS)
def test_alone_is_as_packed(model, kinds, mixed, way, monkeypatch):
  monkeypatch.setattr(attention, 'attention', WAYS[way])
  noise = jnp.full(mixed.group_modality.shape, 0.3)
  together = np.asarray(model(mixed, noise))[0]
  for segment, one in enumerate(kinds, 1):
    row = rows(packing.pack([one], PACK))
    alone = np.asarray(model(row, noise[:1]))[row.segment == 1]
    np.testing.assert_allclose(alone, together[mixed.segment[0] == segment], atol=1e-5)


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


@pytest.mark.parametrize('remat', ['dots', 'attention', 'offload', 'full'])
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
