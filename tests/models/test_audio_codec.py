"""The audio codec: any length in, the right length out, in a fixed number of programs."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from veojax.models import audio_codec
from veojax.models.audio_codec import AudioCodec, statistics
from veojax.models.audio_vae import AudioVAE, AudioVAEConfig

TINY = AudioVAEConfig(hop=40, latent_channels=3, strides=(), widths=(12,), depth=1)


@functools.cache
def make_codec(chunk=4, channels=2):
  config = AudioVAEConfig(**{**vars(TINY), 'channels': channels})
  # Random numbers of the right shapes: the real initialisation takes longer to compile than the tests to run.
  rng = np.random.default_rng(1)
  vae = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.2, p.shape), p.dtype),
                     jax.eval_shape(lambda: AudioVAE(config, rngs=nnx.Rngs(1))))
  return AudioCodec(vae, np.array([0.1, -0.2, 0.3], np.float32), np.array([0.5, 1.0, 2.0], np.float32), chunk=chunk)


def sound(samples, channels=2, seed=0):
  return np.random.default_rng(seed).uniform(-0.9, 0.9, (samples, channels)).astype(np.float32)


@pytest.mark.parametrize('samples, channels', [(0, 2), (1, 2), (39, 2), (40, 2), (41, 1), (160, 2), (161, 2), (999, 1)])
def test_any_length(samples, channels):
  codec = make_codec(channels=channels)
  audio = sound(samples, channels)
  latent = codec.encode(audio)
  assert latent.shape == (codec.latent_length(samples), 3) and latent.dtype == np.float32
  assert codec.latent_length(samples) == int(np.ceil(samples / 40))
  output = codec.decode(latent, samples)
  assert output.shape == audio.shape and output.dtype == np.float32
  assert np.abs(output).max(initial=0) <= 1


def test_chunks_equal_the_whole_and_statistics_are_applied():
  codec = make_codec()
  audio = sound(40 * 11)
  mean, _ = jax.jit(AudioVAE.encode)(codec.vae, jnp.asarray(audio[None]))
  latent = codec.encode(audio)
  np.testing.assert_allclose(latent * codec.std_C[None] + codec.mean_C[None], mean[0], atol=1e-5)
  want = np.clip(jax.jit(AudioVAE.decode)(codec.vae, mean)[0], -1, 1)
  np.testing.assert_allclose(codec.decode(latent), want, atol=1e-5)
  first, state = codec.decode_chunk(latent[:codec.chunk])
  rest, _ = codec.decode_chunk(latent[codec.chunk:2 * codec.chunk - 1], state)
  np.testing.assert_array_equal(np.concatenate([first, rest]), codec.decode(latent)[:(2 * codec.chunk - 1) * 40])
  with pytest.raises(ValueError, match='latents at once'):
    codec.decode_chunk(latent[:0])


def test_longer_than_the_latents_is_silence():
  codec = make_codec()
  output = codec.decode(codec.encode(sound(80)), 200)
  assert output.shape == (200, 2) and np.all(output[80:] == 0) and np.any(output[:80] != 0)


def test_two_programs_a_direction_whatever_the_lengths():
  codec = make_codec(chunk=3)
  before = audio_codec.encode_chunk._cache_size(), audio_codec.decode_chunk._cache_size()
  for samples in (1, 77, 200, 201, 399, 1234):
    codec.decode(codec.encode(sound(samples)), samples)
  after = audio_codec.encode_chunk._cache_size(), audio_codec.decode_chunk._cache_size()
  assert (after[0] - before[0], after[1] - before[1]) == (2, 2)


def test_statistics_normalise():
  vae = make_codec().vae
  batches = [sound(4 * 400, seed=i).reshape(4, 400, 2) for i in range(3)]
  mean_C, std_C = statistics(vae, batches)
  codec = AudioCodec(vae, mean_C, std_C)
  latents = np.concatenate([np.asarray(codec.encode(row)) for batch in batches for row in batch])
  np.testing.assert_allclose(latents.mean(0), 0, atol=1e-4)
  np.testing.assert_allclose(latents.std(0), 1, atol=1e-4)


def test_statistics_of_a_dead_channel_stay_finite():
  mean_C, std_C = statistics(make_codec().vae, [np.zeros((1, 4000, 2), np.float32)])
  assert np.all(np.isfinite(mean_C)) and np.all(std_C >= 1e-3 - 1e-9)
  with pytest.raises(ValueError, match='at least one'):
    statistics(make_codec().vae, [])


def test_wrong_channels_are_refused_with_the_remedy():
  with pytest.raises(ValueError, match='channels=2'):
    make_codec().encode(sound(100, 1))
  with pytest.raises(ValueError, match='this codec takes'):
    make_codec().decode(np.zeros((4, 7), np.float32))


def test_same_sound_twice_gives_the_same_latents():
  codec = make_codec()
  assert np.array_equal(codec.encode(sound(500)), codec.encode(sound(500)))
