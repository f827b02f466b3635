"""VGGish against PyTorch's layers with the same drawn weights, and its spectra against scipy's."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.signal

from veojax.zoo import vggish
from veojax.zoo.vggish import VGGishConfig

HIDDEN = 32  # instead of 4096: the rest is as published


@pytest.fixture(scope='module')
def drawn() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape, np.float32)
  flat, inputs = {}, 1
  for n, outputs in zip((0, 3, 6, 8, 11, 13), (64, 128, 256, 256, 512, 512)):
    flat |= {f'features.{n}.weight': normal(outputs, inputs, 3, 3) * (2 / (9 * inputs)) ** .5,
             f'features.{n}.bias': .1 * normal(outputs)}
    inputs = outputs
  for n, (rows, columns) in zip((0, 2, 4), ((HIDDEN, 512 * 4 * 6), (HIDDEN, HIDDEN), (128, HIDDEN))):
    flat |= {f'embeddings.{n}.weight': normal(rows, columns) / columns ** .5, f'embeddings.{n}.bias': .1 * normal(rows)}
  return flat


def test_gives_the_embeddings_of_pytorch(drawn, tmp_path):
  torch = pytest.importorskip('torch', reason="PyTorch is not installed: pip install -e '.[parity]'")
  safetensors.numpy.save_file(drawn, tmp_path / 'vggish.safetensors')
  network = vggish.load(tmp_path / 'vggish.safetensors', VGGishConfig(hidden=HIDDEN))
  layers, inputs = [], 1
  for width in (64, 'pool', 128, 'pool', 256, 256, 'pool', 512, 512, 'pool'):
    layers += ([torch.nn.MaxPool2d(2, 2)] if width == 'pool' else
               [torch.nn.Conv2d(inputs, width, 3, padding=1), torch.nn.ReLU()])
    inputs = inputs if width == 'pool' else width
  features = torch.nn.Sequential(*layers)
  embeddings = torch.nn.Sequential(torch.nn.Linear(512 * 4 * 6, HIDDEN), torch.nn.ReLU(),
                                   torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 128))
  for part, name in ((features, 'features.'), (embeddings, 'embeddings.')):
    part.load_state_dict({k.removeprefix(name): torch.tensor(v) for k, v in drawn.items() if k.startswith(name)})
  x = np.random.default_rng(1).normal(-2, 2, (2, 96, 64)).astype(np.float32)
  with torch.inference_mode():
    # The published network flattens as TensorFlow does: channels last.
    want = embeddings(features(torch.tensor(x)[:, None]).permute(0, 2, 3, 1).flatten(1)).numpy()
  got = jax.jit(lambda network, x: network(x))(network, jnp.asarray(x))
  assert want.std() > .05 and want.min() < 0  # before the last relu
  np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max() + 1e-6)


def test_spectra_are_scipys():
  x = np.random.default_rng(0).normal(0, .1, 16000)
  window = scipy.signal.get_window('hann', 400)
  spectra = scipy.signal.stft(x, window=window, nperseg=400, noverlap=240, nfft=512, boundary=None, padded=False)[2]
  power = np.abs(spectra.T) * window.sum()  # scipy divides by the window's sum
  np.testing.assert_allclose(vggish.log_mel(x), np.log(power @ vggish.mel_matrix() + .01), rtol=1e-9)
  assert vggish.log_mel(x).shape == (98, 64) and vggish.examples(x).shape == (1, 96, 64)


def test_a_tone_lights_the_band_around_it():
  mel = vggish.log_mel(np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000))
  centres = np.linspace(1127 * np.log(1 + 125 / 700), 1127 * np.log(1 + 7500 / 700), 66)[1:-1]
  assert (mel.argmax(1) == np.abs(centres - 1127 * np.log(1 + 1000 / 700)).argmin()).all()
  assert vggish.log_mel(np.zeros(16000)) == pytest.approx(np.log(.01))


def test_short_sounds_have_no_examples():
  for length in (0, 100, vggish.EXAMPLE - 1):
    assert len(vggish.examples(np.zeros(length))) == 0
  assert len(vggish.examples(np.zeros(vggish.EXAMPLE))) == 1
