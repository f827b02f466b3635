"""Audio losses: against scipy and closed forms; zero at the truth; finite on silence; sharded = unsharded."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.signal
from flax import nnx
from jax.sharding import NamedSharding

from veojax import sharding
from veojax.models.audio_vae import AudioVAE, AudioVAEConfig
from veojax.training import audio_losses
from veojax.training.audio_losses import AudioLossConfig
from veojax.training.audio_vae import AudioVAERun, AudioVAEStep

TINY = AudioVAEConfig(hop=64, latent_channels=4, strides=(), widths=(24,), depth=1)
CONFIG = AudioLossConfig(fft_sizes=(64, 512), mel_fft_size=256, mel=1.0)
STEP = AudioVAEStep(AudioVAERun('audio_vae', model=TINY, loss=CONFIG))
loss_and_gradient = jax.jit(jax.value_and_grad(
    lambda vae, key, audio: STEP.loss(vae, {'audio': audio}, key, 0), has_aux=True))


def make_vae():
  # Random numbers of the right shapes: the real initialisation takes longer to compile than the tests to run.
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.05, p.shape), p.dtype),
                      jax.eval_shape(lambda: AudioVAE(TINY, rngs=nnx.Rngs(0))))


def noise(*shape, seed=0, scale=0.3):
  return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


@pytest.mark.parametrize('fft_size', [64, 256, 1024])  # both ways of the transform
def test_stft_is_scipys(fft_size):
  x = noise(3, 4321)
  _, _, want = scipy.signal.stft(x, window='hann', nperseg=fft_size, noverlap=fft_size * 3 // 4, boundary=None,
                                 padded=False)
  got = audio_losses.stft_magnitude(jnp.asarray(x), fft_size)
  # scipy divides by the window's sum: a sine of amplitude 1 has magnitude 1/2.
  np.testing.assert_allclose(got, 2 * np.abs(want).swapaxes(1, 2), atol=1e-5)


@pytest.mark.parametrize('fft_size', [128, 2048])
def test_a_full_scale_sine_has_magnitude_one(fft_size):
  k = fft_size // 8
  x = np.sin(2 * np.pi * k * np.arange(4 * fft_size) / fft_size)[None].astype(np.float32)
  magnitude = audio_losses.stft_magnitude(jnp.asarray(x), fft_size)
  np.testing.assert_allclose(magnitude[:, :, k], 1, atol=1e-4)
  assert np.all(np.argmax(magnitude, -1) == k)


@pytest.mark.parametrize('size', [(16_000, 512, 64), (48_000, 1024, 80), (16_000, 256, 64)])
def test_mel_filters(size):
  sample_rate, fft_size, bins = size
  filters = audio_losses.mel_filters(*size)
  assert filters.shape == (fft_size // 2 + 1, bins) and np.all(filters >= 0)
  np.testing.assert_allclose(filters.sum(0), 1, rtol=1e-5)
  f = np.arange(fft_size // 2 + 1) * sample_rate / fft_size
  centres = (filters * f[:, None]).sum(0)
  assert np.all(np.diff(centres) > 0)
  wide = np.diff(centres) > 2 * sample_rate / fft_size
  mel = 2595 * np.log10(1 + centres / 700)
  assert np.ptp(np.diff(mel)[wide]) < 0.1 * np.diff(mel)[wide].mean()


def test_distances_vanish_at_the_truth_and_grow_with_the_error():
  y = jnp.asarray(noise(2, 4000))
  error = jnp.asarray(noise(2, 4000, seed=1))
  for distance in (lambda x: audio_losses.stft_loss(x, y, (64, 512)),
                   lambda x: audio_losses.log_mel_distance(x, y, 16_000),
                   lambda x: audio_losses.waveform_loss(x, y)):
    values = [float(distance(y + s * error)) for s in (0, 0.01, 0.1, 1)]
    assert values[0] < 1e-6 and values == sorted(values) and values[1] < values[3]


def test_log_mel_distance_of_a_gain_is_its_logarithm():
  y = jnp.asarray(noise(1, 8000))
  distance = audio_losses.log_mel_distance(2 * y, y, 16_000, floor=1e-8)
  np.testing.assert_allclose(distance, np.log(2), rtol=1e-4)


def test_si_sdr():
  y = noise(2, 5000).astype(np.float64)
  orthogonal = noise(2, 5000, seed=1).astype(np.float64)
  orthogonal -= (orthogonal * y).sum(1, keepdims=True) / (y ** 2).sum(1, keepdims=True) * y
  orthogonal *= np.linalg.norm(y, axis=1, keepdims=True) / np.linalg.norm(orthogonal, axis=1, keepdims=True)
  for decibel in (-10, 0, 20):
    x = 3 * (y + 10 ** (-decibel / 20) * orthogonal)
    got = audio_losses.si_sdr(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(got, decibel, atol=0.01)


def test_kl():
  rng = np.random.default_rng(0)
  mean, logvar = 0.7, -0.5
  z = mean + np.exp(logvar / 2) * rng.normal(size=400_000)
  log_q = -0.5 * (logvar + (z - mean) ** 2 / np.exp(logvar))
  estimate = np.mean(log_q + 0.5 * z ** 2)
  np.testing.assert_allclose(audio_losses.kl_to_normal(jnp.full(5, mean), jnp.full(5, logvar)), estimate, atol=0.01)
  assert audio_losses.kl_to_normal(jnp.zeros(3), jnp.zeros(3)) == 0


def test_rows_are_channels():
  audio = noise(2, 7, 2)
  assert np.array_equal(audio_losses.as_rows(jnp.asarray(audio)), [audio[0, :, 0], audio[0, :, 1], audio[1, :, 0],
                                                                  audio[1, :, 1]])


@pytest.mark.parametrize('silent', ['clip', 'batch'])
def test_loss_and_gradient_are_finite_on_silence(silent):
  vae = make_vae()
  audio = noise(8, 1024, 2)
  audio[0 if silent == 'clip' else slice(None)] = 0
  (loss, terms), gradient = loss_and_gradient(vae, jax.random.key(0), jnp.asarray(audio))
  assert np.isfinite(loss) and set(terms) == {'waveform', 'stft', 'mel', 'kl'}
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
  np.testing.assert_allclose(loss, sum(getattr(CONFIG, k) * v for k, v in terms.items()), rtol=1e-5)


def test_sharded_equals_unsharded():
  vae, audio = make_vae(), jnp.asarray(noise(8, 1024, 2))
  (loss, _), gradient = loss_and_gradient(vae, jax.random.key(0), audio)
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=4))
  with jax.set_mesh(mesh):
    vae = jax.device_put(vae, NamedSharding(mesh, sharding.REPLICATED))
    audio = jax.device_put(audio, NamedSharding(mesh, sharding.B))
    (loss_sharded, _), gradient_sharded = loss_and_gradient(vae, jax.random.key(0), audio)
  np.testing.assert_allclose(loss_sharded, loss, rtol=1e-4)
  for a, b in zip(jax.tree.leaves(gradient_sharded), jax.tree.leaves(gradient)):
    np.testing.assert_allclose(a, b, atol=1e-4 * max(1.0, float(np.abs(b).max())))


def test_training_lowers_the_loss():
  vae, audio = make_vae(), jnp.asarray(noise(8, 1024, 2))
  tx = optax.adam(3e-3)

  @jax.jit
  def update(gradient, opt, vae):
    updates, opt = tx.update(gradient, opt, vae)
    return optax.apply_updates(vae, updates), opt

  opt, losses = tx.init(vae), []
  for i in range(60):
    (loss, _), gradient = loss_and_gradient(vae, jax.random.key(i), audio)
    vae, opt = update(gradient, opt, vae)
    losses.append(float(loss))
  assert np.mean(losses[-5:]) < 0.9 * losses[0]


def test_bad_fft_size_is_refused():
  with pytest.raises(ValueError, match='fft_size=64 of 10 samples'):
    audio_losses.stft_magnitude(jnp.zeros((1, 10)), 64)
