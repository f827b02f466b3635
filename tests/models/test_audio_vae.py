"""The audio VAE: causality by gradient, chunked = whole, shapes, sharded = unsharded."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from veojax import sharding
from veojax.models.audio_vae import AudioVAE, AudioVAEConfig

TINY = AudioVAEConfig(hop=40, latent_channels=3, strides=(2,), widths=(8, 12), depth=2)
FINER = dataclasses.replace(TINY, decoder_strides=(2, 4), decoder_widths=(4, 8, 12))
encode, decode = jax.jit(AudioVAE.encode), jax.jit(AudioVAE.decode)
encode_chunk, decode_chunk = jax.jit(AudioVAE.encode_chunk), jax.jit(AudioVAE.decode_chunk)


def make_vae(config=TINY, seed=0):
  """A VAE of random parameters, also where it begins at zero, so that every path carries signal."""
  shapes = jax.eval_shape(lambda: AudioVAE(config, rngs=nnx.Rngs(seed)))
  leaves, treedef = jax.tree.flatten(shapes)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(treedef, [jnp.asarray(rng.normal(0, 0.2, leaf.shape), leaf.dtype) for leaf in leaves])


def noise(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(0, 0.3, shape), jnp.float32)


@pytest.mark.parametrize('config', [
    TINY,
    dataclasses.replace(TINY, channels=1),
    dataclasses.replace(TINY, strides=(), widths=(16,)),
    dataclasses.replace(TINY, dtype='bfloat16'),
    FINER,
    AudioVAEConfig(sample_rate=48_000, hop=960, strides=(2, 3, 4), widths=(8, 8, 8, 8), depth=1),
])
def test_shapes_and_dtypes(config):
  vae = make_vae(config)
  mean, logvar = jax.eval_shape(AudioVAE.encode, vae, noise(2, 5 * config.hop, config.channels))
  assert mean.shape == logvar.shape == (2, 5, config.latent_channels)
  audio = jax.eval_shape(AudioVAE.decode, vae, mean)
  assert audio.shape == (2, 5 * config.hop, config.channels)
  assert mean.dtype == logvar.dtype == audio.dtype == jnp.float32


def test_bfloat16_stays_near_float32():
  audio = noise(1, 3 * TINY.hop, 2)
  whole, half = (decode(vae, encode(vae, audio)[0]) for vae in (
      make_vae(), make_vae(dataclasses.replace(TINY, dtype='bfloat16'))))
  assert np.abs(whole - half).max() < 0.05 * np.abs(whole).max()


@jax.jit
def encoder_gradient(vae, audio, j):
  return jax.grad(lambda a: jnp.sum(jnp.square(vae.encode(a)[0][:, j])))(audio)


@jax.jit
def decoder_gradient(vae, latent, n):
  return jax.grad(lambda z: jnp.sum(jnp.square(vae.decode(z)[:, n])))(latent)


def test_encoder_is_causal_and_sees_its_own_samples():
  vae, hop = make_vae(), TINY.hop
  audio = noise(1, 6 * hop, 2)
  for j in (0, 2, 5):
    gradient = encoder_gradient(vae, audio, j)[0]
    assert np.all(gradient[(j + 1) * hop:] == 0)
    assert np.all(np.any(gradient[j * hop:(j + 1) * hop] != 0, axis=1))


@pytest.mark.parametrize('config', [TINY, FINER])
def test_decoder_is_causal_and_hears_its_own_latent(config):
  vae, hop = make_vae(config), config.hop
  latent = noise(1, 6, 3)
  for n in (0, hop - 1, hop, 3 * hop + 7):
    gradient = decoder_gradient(vae, latent, n)[0]
    assert np.all(gradient[n // hop + 1:] == 0)
    assert np.all(gradient[n // hop] != 0)


@pytest.mark.parametrize('config', [TINY, FINER])
def test_chunked_equals_whole(config):
  sizes = (1, 2, 1, 1, 2)
  vae, hop = make_vae(config), config.hop
  audio = noise(2, sum(sizes) * hop, 2)
  mean, logvar = encode(vae, audio)
  output = decode(vae, mean)
  encode_state = decode_state = None
  start = 0
  for size in sizes:
    part = slice(start, start + size)
    samples = slice(start * hop, (start + size) * hop)
    mean_part, logvar_part, encode_state = encode_chunk(vae, audio[:, samples], encode_state)
    output_part, decode_state = decode_chunk(vae, mean_part, decode_state)
    np.testing.assert_allclose(mean_part, mean[:, part], atol=1e-5)
    np.testing.assert_allclose(logvar_part, logvar[:, part], atol=1e-5)
    np.testing.assert_allclose(output_part, output[:, samples], atol=1e-5)
    start += size


def test_state_keeps_its_shapes():
  vae = make_vae()
  *_, first = jax.eval_shape(AudioVAE.encode_chunk, vae, noise(1, TINY.hop, 2))
  *_, later = jax.eval_shape(AudioVAE.encode_chunk, vae, noise(1, 3 * TINY.hop, 2), first)
  assert jax.tree.map(jnp.shape, first) == jax.tree.map(jnp.shape, later)
  _, first = jax.eval_shape(AudioVAE.decode_chunk, vae, noise(1, 1, 3))
  _, later = jax.eval_shape(AudioVAE.decode_chunk, vae, noise(1, 3, 3), first)
  assert jax.tree.map(jnp.shape, first) == jax.tree.map(jnp.shape, later)


def test_transforms_apply_to_the_module_itself():
  vae = make_vae()
  audio = noise(3, 2 * TINY.hop, 2)
  whole, _ = encode(vae, audio)
  mapped, _ = jax.jit(jax.vmap(lambda v, a: v.encode(a[None]), in_axes=(None, 0)))(vae, audio)
  np.testing.assert_allclose(mapped[:, 0], whole, atol=1e-5)
  gradient = jax.jit(jax.grad(lambda v: jnp.sum(jnp.square(v.encode(audio)[0]))))(vae)
  assert jax.tree.structure(gradient) == jax.tree.structure(vae)
  assert all(isinstance(v, nnx.Param) for _, v in nnx.iter_graph(vae) if isinstance(v, nnx.Variable))


def test_sharded_equals_unsharded():
  vae = make_vae()
  audio = noise(8, 3 * TINY.hop, 2)

  @jax.jit
  def loss_and_gradient(vae, audio):
    return jax.value_and_grad(lambda v: jnp.mean(jnp.square(v.decode(v.encode(audio)[0]) - audio)))(vae)

  loss, gradient = loss_and_gradient(vae, audio)
  mesh = sharding.make_mesh(sharding.MeshConfig(data=4, fsdp=2))
  with jax.set_mesh(mesh):
    vae = jax.device_put(vae, NamedSharding(mesh, sharding.REPLICATED))
    audio = jax.device_put(audio, NamedSharding(mesh, sharding.B))
    mean, _ = encode(vae, audio)
    assert jax.typeof(mean).sharding.spec[0] == sharding.ROWS
    loss_sharded, gradient_sharded = loss_and_gradient(vae, audio)
  np.testing.assert_allclose(loss_sharded, loss, rtol=1e-5)
  for a, b in zip(jax.tree.leaves(gradient_sharded), jax.tree.leaves(gradient)):
    np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize('options, word', [
    ({'channels': 6}, 'channels=6'),
    ({'hop': 41}, 'hop=41'),
    ({'widths': (8,)}, '1 widths'),
    ({'decoder_strides': (3,)}, 'decoder_strides=.3'),
    ({'decoder_widths': (8,)}, '1 decoder_widths'),
])
def test_bad_configs_are_refused_with_the_value(options, word):
  with pytest.raises(ValueError, match=word):
    dataclasses.replace(TINY, **options)


@pytest.mark.parametrize('shape', [(1, 41, 2), (1, 0, 2), (1, 80, 1)])
def test_bad_audio_is_refused(shape):
  with pytest.raises(ValueError, match='this VAE takes'):
    make_vae().encode(jnp.zeros(shape))
