"""The video VAE: causal, chunked = whole, sharded = unsharded, shapes of all compressions."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from veojax import sharding
from veojax.models.conv import depth_to_space, space_to_depth
from veojax.models.video_vae import VideoVAE, VideoVAEConfig

TINY = VideoVAEConfig(latent_channels=3, widths=(8, 12, 8), encoder_depths=(1, 1, 1), decoder_depths=(1, 1, 1))
FINER = VideoVAEConfig(4, 8, 2, 4, 3, (8, 12), (1, 1), (1, 1, 1), decoder_patch_time=1, decoder_patch_size=2,
                       decoder_widths=(4, 8, 12))


@pytest.fixture(scope='module', params=[TINY, FINER], ids=['alike', 'finer'])
def vae(request):
  return make(request.param)


def make(cfg):
  """A VAE of random parameters, biases too; drawn by numpy, since compiling the initialisers is slow."""
  rng = np.random.default_rng(0)
  draw = lambda p: jnp.asarray(rng.normal(0, 0.3 if p.ndim == 1 else np.prod(p.shape[:-1]) ** -0.5, p.shape), p.dtype)
  return jax.tree.map(draw, jax.eval_shape(lambda: VideoVAE(cfg, rngs=nnx.Rngs(0))))


encode, decode = jax.jit(VideoVAE.encode), jax.jit(VideoVAE.decode)
encode_chunk, decode_chunk = jax.jit(VideoVAE.encode_chunk), jax.jit(VideoVAE.decode_chunk)


def video(*shape, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, (*shape, 3)).astype(np.float32)


@pytest.mark.parametrize('cfg', [
    TINY,
    VideoVAEConfig(4, 8, 4, 8, 5, (8,), (1,), (2,)),
    VideoVAEConfig(4, 16, 1, 4, 5, (8, 12, 8), (1, 0, 1), (0, 1, 1)),
    VideoVAEConfig(8, 32, 1, 4, 5, (8, 8, 12, 8), (0, 0, 1, 1), (0, 0, 1, 1)),
    VideoVAEConfig(1, 8, 1, 8, 5, (8,), (1,), (1,)),
    VideoVAEConfig(2, 8, 1, 8, 5, (8, 8), (1, 1), (1, 1)),
    dataclasses.replace(TINY, dtype='bfloat16'),
    FINER,
], ids=lambda c: f'{c.temporal_compression}x{c.spatial_compression}-{c.patch_time}x{c.patch_size}-{c.dtype}')
def test_shapes(cfg):
  vae = jax.eval_shape(lambda: VideoVAE(cfg, rngs=nnx.Rngs(0)))
  tc, sc = cfg.temporal_compression, cfg.spatial_compression
  for k in (0, 2):
    x = jax.ShapeDtypeStruct((2, 1 + k * tc, sc, 2 * sc, 3), jnp.float32)
    mean, logvar = jax.eval_shape(VideoVAE.encode, vae, x)
    assert mean.shape == logvar.shape == (2, 1 + k, 1, 2, cfg.latent_channels)
    output = jax.eval_shape(VideoVAE.decode, vae, mean)
    assert output.shape == x.shape and output.dtype == mean.dtype == jnp.float32


def test_folding_is_inverted():
  x = jnp.arange(2 * 4 * 4 * 6 * 3.0).reshape(2, 4, 4, 6, 3)
  folded = space_to_depth(x, 2, 2)
  assert folded.shape == (2, 2, 2, 3, 24)
  np.testing.assert_array_equal(depth_to_space(folded, 2, 2), x)
  # One cell holds the pixels of one block, and of no other.
  np.testing.assert_array_equal(np.sort(folded[0, 0, 0, 1]), np.sort(x[0, :2, :2, 2:4].ravel()))


def test_encoder_is_causal_by_gradient(vae):
  """Latent i sees frames up to 4 i, and no later one; latent 0 sees frame 0 alone."""
  x = video(1, 9, 8, 16)
  jacobian = jax.jit(jax.jacrev(lambda x: jnp.sum(jnp.sin(vae.encode(x)[0]), (0, 2, 3, 4))))(x)
  reach = np.abs(jacobian).max((1, 3, 4, 5)) > 0  # [latent frame, frame]
  np.testing.assert_array_equal(reach, np.arange(9) <= 4 * np.arange(3)[:, None])


def test_decoder_is_causal_by_gradient(vae):
  """Frame f sees latents up to ceil(f / 4)."""
  z = np.random.default_rng(0).normal(size=(1, 3, 1, 2, 3)).astype(np.float32)
  jacobian = jax.jit(jax.jacrev(lambda z: jnp.sum(jnp.sin(vae.decode(z)), (0, 2, 3, 4))))(z)
  reach = np.abs(jacobian).max((1, 3, 4, 5)) > 0
  np.testing.assert_array_equal(reach, np.arange(3) <= np.ceil(np.arange(9) / 4)[:, None])


def test_an_image_is_the_first_frame(vae):
  x = video(2, 5, 8, 8)
  image, clip = encode(vae, x[:, :1])[0], encode(vae, x)[0]
  np.testing.assert_allclose(image, clip[:, :1], atol=1e-5)
  np.testing.assert_allclose(decode(vae, image), decode(vae, clip)[:, :1], atol=1e-5)


def test_chunks_equal_the_whole_with_a_state_of_fixed_shape(vae):
  x = video(1, 17, 16, 8)
  mean, logvar = encode(vae, x)
  pieces, state, shapes = [], None, []
  for piece in np.split(x, [5, 9, 13], 1):
    out, state = encode_chunk(vae, piece, state)
    pieces.append(out)
    shapes.append(jax.tree.map(jnp.shape, state))
  np.testing.assert_allclose(jnp.concatenate([m for m, _ in pieces], 1), mean, atol=1e-5)
  np.testing.assert_allclose(jnp.concatenate([v for _, v in pieces], 1), logvar, atol=1e-5)
  assert all(s == shapes[0] for s in shapes)

  pieces, state, shapes = [], None, []
  for piece in jnp.split(mean, [1, 3], 1):
    out, state = decode_chunk(vae, piece, state)
    pieces.append(out)
    shapes.append(jax.tree.map(jnp.shape, state))
  np.testing.assert_allclose(jnp.concatenate(pieces, 1), decode(vae, mean), atol=1e-5)
  assert all(s == shapes[0] for s in shapes)


def loss(vae, x):
  mean, logvar = vae.encode(x)
  return jnp.mean(jnp.square(vae.decode(mean) - x)) + 1e-3 * jnp.mean(jnp.square(logvar))


def test_sharded_equals_unsharded():
  cfg = VideoVAEConfig(4, 8, 2, 8, 3, (8, 8), (1, 1), (0, 1))
  x = video(8, 5, 8, 16)
  step = jax.jit(jax.value_and_grad(loss))
  value, grads = step(make(cfg), x)
  with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=4, fsdp=2))):
    x = jax.device_put(x, sharding.B)
    split_value, split_grads = step(make(cfg), x)
    mean = encode(make(cfg), x)[0]
  assert mean.sharding.spec[0] == sharding.ROWS
  np.testing.assert_allclose(split_value, value, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), split_grads, grads)


def test_vmap_and_every_parameter_learns(vae):
  x = video(2, 5, 8, 8)
  value, grads = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0)))(vae, x[:, None])
  np.testing.assert_allclose(jnp.mean(value), jax.jit(loss)(vae, x), rtol=1e-4)
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_initialisation():
  """Parameters only; the latents and the pixels of a fresh network are of the order of one."""
  cfg = VideoVAEConfig(4, 8, 4, 8, 4, (32,), (1,), (1,))
  vae = VideoVAE(cfg, rngs=nnx.Rngs(0))
  assert jax.tree.leaves(nnx.state(vae, nnx.Param)) and not jax.tree.leaves(nnx.state(vae, nnx.Not(nnx.Param)))
  mean, logvar = encode(vae, video(1, 5, 16, 16))
  assert 0.3 < mean.std() < 3 and 0.3 < logvar.std() < 3 and 0.1 < decode(vae, mean).std() < 3


def test_bfloat16_follows_float32(vae):
  x = video(1, 5, 16, 16)
  half = make(dataclasses.replace(vae.cfg, dtype='bfloat16'))
  np.testing.assert_allclose(encode(half, x)[0], encode(vae, x)[0], atol=0.1)


@pytest.mark.parametrize('change, words', [
    (dict(widths=(8, 8)), 'one depth per width'),
    (dict(spatial_compression=12), 'spatial_compression=12'),
    (dict(temporal_compression=16), 'change the patch'),
    (dict(dtype='float16'), 'bfloat16'),
    (dict(decoder_widths=(8, 8)), 'decoder_depths=.*one depth per width'),
    (dict(decoder_patch_size=3), 'decoder_patch_size=3'),
])
def test_a_config_that_cannot_be_built_is_refused(change, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(TINY, **change)


def test_inputs_that_do_not_divide_are_refused(vae):
  for shape in ((1, 4, 8, 8), (1, 5, 9, 8), (1, 5, 8, 12)):
    with pytest.raises(ValueError, match='do not divide'):
      encode(vae, video(*shape))
  with pytest.raises(ValueError, match='2 channels for a codec of 3'):
    decode(vae, jnp.zeros((1, 1, 1, 1, 2)))
