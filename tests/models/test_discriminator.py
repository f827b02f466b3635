"""Discriminators: one frame as many, each example and place by itself, the frames' order seen, sharded = unsharded."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax import nnx
from jax.sharding import NamedSharding

from veojax import sharding
from veojax.models import stft
from veojax.models.discriminator import (AudioDiscriminator, AudioDiscriminatorConfig, VideoDiscriminator,
                                         VideoDiscriminatorConfig)

VIDEO = VideoDiscriminatorConfig(patch_size=4, widths=(6, 8, 10))
AUDIO = AudioDiscriminatorConfig(fft_sizes=(64, 512), width=4, dilations=(1, 2))


def drawn(make):
  """Random parameters, biases too; drawn by numpy, since compiling the initialisers is slow."""
  rng = np.random.default_rng(0)
  draw = lambda p: jnp.asarray(rng.normal(0, 0.3 if p.ndim == 1 else np.prod(p.shape[:-1]) ** -0.5, p.shape), p.dtype)
  return jax.tree.map(draw, jax.eval_shape(make))


@pytest.fixture(scope='module')
def video_discriminator():
  return drawn(lambda: VideoDiscriminator(VIDEO, rngs=nnx.Rngs(0)))


@pytest.fixture(scope='module')
def audio_discriminator():
  return drawn(lambda: AudioDiscriminator(2, AUDIO, rngs=nnx.Rngs(0)))


judge = jax.jit(lambda discriminator, x: discriminator(x))


def uniform(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


@pytest.mark.parametrize('frames, height, width', [(1, 32, 32), (5, 32, 32), (4, 20, 12), (1, 4, 4)])
def test_every_number_of_frames_and_shape_of_picture(frames, height, width):
  make = lambda: VideoDiscriminator(VIDEO, rngs=nnx.Rngs(0))(jnp.zeros((2, frames, height, width, 3)))
  (logits,), features = jax.eval_shape(make)
  halves = lambda x, n: x if n == 0 else halves(-(-x // 2), n - 1)
  assert logits.shape == (2, halves(frames, 1), halves(height // 4, 2), halves(width // 4, 2), 1)
  assert [f.shape[-1] for f in features] == [6, 6 + 2, 10]


def test_one_frame_is_judged_as_a_clip_that_stands_still(video_discriminator):
  frame = uniform(2, 1, 16, 16, 3)
  (one,), _ = judge(video_discriminator, frame)
  (many,), _ = judge(video_discriminator, jnp.concatenate([frame] * 5, 1))
  np.testing.assert_allclose(many, jnp.concatenate([one] * 3, 1), atol=1e-5)


def test_the_order_of_frames_is_seen(video_discriminator):
  video = uniform(1, 3, 16, 16, 3)
  (a,), _ = judge(video_discriminator, video)
  (b,), _ = judge(video_discriminator, video[:, ::-1])
  assert np.abs(a[:, ::-1] - b).max() > 1e-3


def test_each_example_is_judged_by_itself(video_discriminator, audio_discriminator):
  for discriminator, x in ((video_discriminator, uniform(2, 3, 16, 16, 3)), (audio_discriminator, uniform(2, 700, 2))):
    changed = x.at[1].set(-x[1])
    for a, b in zip(*(jax.tree.leaves(judge(discriminator, y)) for y in (x, changed)), strict=True):
      np.testing.assert_allclose(a[0], b[0], atol=1e-6)
    assert any(np.abs(a[1] - b[1]).max() > 1e-3
               for a, b in zip(judge(discriminator, x)[0], judge(discriminator, changed)[0]))


def test_a_picture_is_judged_place_by_place(video_discriminator):
  """A change in one corner does not reach the logit of the other, beyond the reach of the convolutions."""
  video = uniform(1, 1, 128, 128, 3)
  (a,), _ = judge(video_discriminator, video)
  (b,), _ = judge(video_discriminator, video.at[:, :, :16, :16].set(0))
  changed = np.abs(a - b)[0, 0, :, :, 0] > 1e-6
  assert changed[0, 0] and not changed[5:].any() and not changed[:, 5:].any()


def test_sound_has_logits_of_every_resolution_and_hears_the_phase(audio_discriminator):
  sound = uniform(2, 1024, 2)
  logits, features = judge(audio_discriminator, sound)
  assert [l.shape[:2] for l in logits] == [(2, 1024 // 16 + 1), (2, 1024 // 128 + 1)]
  assert len(features) == 2 * 4
  assert np.abs(logits[0] - judge(audio_discriminator, -sound)[0][0]).max() > 1e-3


def test_finite_on_silence_and_flat_grey_with_finite_gradients(video_discriminator, audio_discriminator):
  for discriminator, x in ((video_discriminator, jnp.zeros((1, 1, 8, 8, 3))),
                           (audio_discriminator, jnp.zeros((1, 600, 2)))):
    slopes = jax.jit(jax.grad(lambda d, x: sum(jnp.sum(y) for y in d(x)[0]), (0, 1)))(discriminator, x)
    assert all(np.isfinite(s).all() for s in jax.tree.leaves(slopes))


@pytest.mark.parametrize('fft_size', [64, 512])  # both ways of the transform
def test_the_complex_spectrum_is_scipys(fft_size):
  x = np.random.default_rng(0).normal(size=(2, 2000)).astype(np.float32)
  _, _, want = scipy.signal.stft(x, window='hann', nperseg=fft_size, noverlap=fft_size * 3 // 4,
                                 boundary=None, padded=False)
  real, imag = stft.stft(jnp.asarray(x), fft_size)
  np.testing.assert_allclose(real + 1j * imag, 2 * want.swapaxes(1, 2), atol=1e-5)


def test_sharded_equals_unsharded(video_discriminator, audio_discriminator):
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=4))
  for discriminator, x in ((video_discriminator, uniform(8, 3, 16, 16, 3)), (audio_discriminator, uniform(8, 700, 2))):
    want = judge(discriminator, x)
    with jax.set_mesh(mesh):
      got = judge(jax.device_put(discriminator, NamedSharding(mesh, sharding.REPLICATED)),
                  jax.device_put(x, NamedSharding(mesh, sharding.B)))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_picture_that_the_patch_does_not_divide_is_refused(video_discriminator):
  with pytest.raises(ValueError, match='10×16 .*patch_size=4'):
    video_discriminator(jnp.zeros((1, 1, 10, 16, 3)))
