"""LPIPS: a distance, equal to a plain recomputation by scipy from the files' own layout, with what goes wrong named."""
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import scipy.signal

from veojax.models import perceptual

ANCHORS = pathlib.Path(__file__).resolve().parents[2].parent / 'shared' / 'anchors'
# torchvision's `features`, written out: ('conv', outputs, side, stride, padding), ('relu',), ('pool', side); numbers
# count all.
VGG16 = [layer for block in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
         for layer in [*(('conv', block[0], 3, 1, 1), ('relu',)) * block[1], ('pool', 2)]]
ALEXNET = [('conv', 64, 11, 4, 2), ('relu',), ('pool', 3), ('conv', 192, 5, 1, 2), ('relu',), ('pool', 3),
           ('conv', 384, 3, 1, 1), ('relu',), ('conv', 256, 3, 1, 1), ('relu',), ('conv', 256, 3, 1, 1), ('relu',),
           ('pool', 3)]
NETWORKS = {'vgg': (VGG16, (3, 8, 15, 22, 29)), 'alex': (ALEXNET, (1, 4, 7, 9, 11))}  # the layers that LPIPS compares


def weights_of(name):
  """Random weights of a backbone and its heads, as their files have them; few channels would be another network."""
  rng, flat, inputs, heads = np.random.default_rng(0), {}, 3, {}
  network, compared = NETWORKS[name]
  for n, layer in enumerate(network):
    if layer[0] == 'conv':
      _, outputs, side, _, _ = layer
      std = (2 / (inputs * side ** 2)) ** 0.5
      flat[f'features.{n}.weight'] = std * rng.standard_normal((outputs, inputs, side, side), np.float32)
      flat[f'features.{n}.bias'] = 0.1 * rng.standard_normal(outputs, np.float32)
      inputs = outputs
    if n in compared:
      heads[f'lin{len(heads)}.model.1.weight'] = rng.uniform(0, 1, (1, inputs, 1, 1)).astype(np.float32)
  return {**flat, 'classifier.6.bias': np.zeros(10, np.float32)}, heads


@pytest.fixture(scope='module', params=list(NETWORKS))
def files(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  for kind, flat in zip(('weights', 'heads'), weights_of(request.param), strict=True):
    safetensors.numpy.save_file(flat, folder / f'{kind}.safetensors')
  return request.param, str(folder / 'weights.safetensors'), str(folder / 'heads.safetensors')


def pictures(num=2, side=33, seed=0):
  x = np.random.default_rng(seed).uniform(-1, 1, (2, num, side, side, 3)).astype(np.float32)
  return x[0], np.clip(0.6 * x[0] + 0.4 * x[1], -1, 1)


def plain_features(name, x_HWC):
  """The compared layers by scipy, one channel at a time, in float64."""
  flat, _ = weights_of(name)
  network, compared = NETWORKS[name]
  x_HWC = (x_HWC - np.array([-.030, -.088, -.188])) / np.array([.458, .448, .450])
  x_CHW, found = x_HWC.transpose(2, 0, 1).astype(np.float64), []
  for n, layer in enumerate(network):
    if layer[0] == 'conv':
      _, _, side, stride, padding = layer
      padded = np.pad(x_CHW, ((0, 0), (padding,) * 2, (padding,) * 2))
      windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (1, 2))[:, ::stride, ::stride]
      x_CHW = np.einsum('chwij,dcij->dhw', windows, flat[f'features.{n}.weight'], optimize=True)
      x_CHW = x_CHW + flat[f'features.{n}.bias'][:, None, None]
    elif layer[0] == 'relu':
      x_CHW = np.maximum(x_CHW, 0)
    elif n < compared[-1]:
      x_CHW = np.lib.stride_tricks.sliding_window_view(x_CHW, (layer[1],) * 2, (1, 2))[:, ::2, ::2].max((-1, -2))
    if n in compared:
      found.append(x_CHW)
  return found


def plain_distance(name, x_HWC, y_HWC, heads):
  total = 0.0
  for i, pair in enumerate(zip(*(plain_features(name, a) for a in (x_HWC, y_HWC)))):
    x, y = (f / (np.sqrt((f ** 2).sum(0)) + 1e-10) for f in pair)
    weight = heads[f'lin{i}.model.1.weight'].reshape(-1, 1, 1) if heads else 1.0
    total += ((x - y) ** 2 * weight).sum(0).mean()
  return total


def test_the_plain_convolution_is_scipys():
  x = np.random.default_rng(0).normal(size=(9, 9))
  kernel = np.random.default_rng(1).normal(size=(3, 3))
  windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3))
  np.testing.assert_allclose((windows * kernel).sum((2, 3)), scipy.signal.correlate2d(x, kernel, 'valid'))


@pytest.mark.parametrize('with_heads', [True, False])
def test_equals_a_plain_recomputation(files, with_heads):
  name, weights, heads = files
  lpips = perceptual.load(weights, heads if with_heads else '')
  x, y = pictures(1)
  want = plain_distance(name, x[0], y[0], weights_of(name)[1] if with_heads else {})
  np.testing.assert_allclose(lpips(jnp.asarray(x), jnp.asarray(y))[0], want, rtol=1e-4)


def test_zero_at_equality_symmetric_and_growing_with_the_error(files):
  lpips = perceptual.load(*files[1:])
  x, y = (jnp.asarray(a) for a in pictures())
  assert np.array_equal(lpips(x, x), np.zeros(2))
  d = lpips(x, y)
  np.testing.assert_allclose(d, lpips(y, x), rtol=1e-6)
  small = lpips(x, x + 0.1 * (y - x))
  assert np.all(small > 0) and np.all(small < d)


def test_the_gradient_is_finite_at_equality_and_on_flat_pictures(files):
  lpips = perceptual.load(*files[1:])
  x = jnp.concatenate([jnp.asarray(pictures(1)[0]), jnp.full((1, 33, 33, 3), -0.1)])
  slope = jax.jit(jax.grad(lambda x, y: jnp.sum(lpips(x, y))))
  # What is left is rounding: the slope of another picture is near 1e-3.
  np.testing.assert_allclose(slope(x, x), 0, atol=1e-7)
  assert np.isfinite(slope(jnp.zeros_like(x), x)).all()


def test_what_is_wrong_with_the_files_is_named(files, tmp_path):
  name, weights, heads = files
  other = {'vgg': 'alex', 'alex': 'vgg'}[name]
  safetensors.numpy.save_file(weights_of(other)[1], tmp_path / 'heads.safetensors')
  with pytest.raises(ValueError, match='the heads of this backbone'):
    perceptual.load(weights, str(tmp_path / 'heads.safetensors'))
  with pytest.raises(ValueError, match='vgg16 .* or alexnet'):
    perceptual.load(heads)
  (tmp_path / 'vgg16.pth').write_bytes(b'PK not safetensors')
  for path in (tmp_path / 'vgg16.pth', tmp_path / 'none.safetensors'):
    with pytest.raises(ValueError, match='convert a .pth once'):
      perceptual.load(str(path))
  flat = weights_of(name)[0]
  del flat['features.10.bias']
  safetensors.numpy.save_file(flat, tmp_path / 'cut.safetensors')
  with pytest.raises(ValueError, match='features.10'):
    perceptual.load(str(tmp_path / 'cut.safetensors'))


def test_pictures_that_are_too_small_are_refused(files):
  small = jnp.zeros((1, 8, 8, 3))
  with pytest.raises(ValueError, match='8×8 pixels are too small'):
    perceptual.load(files[1])(small, small)


def test_a_weight_without_a_network_is_refused():
  with pytest.raises(ValueError, match='weight=0.5 without weights'):
    perceptual.PerceptualConfig(weight=0.5)


def test_the_published_heads_have_this_layout(files):
  torch = pytest.importorskip('torch')
  path = ANCHORS / f'lpips_lin_{files[0]}_v0.1.pth'
  if not path.exists():
    pytest.skip('no published heads beside this checkout')
  heads = torch.load(path, weights_only=True, map_location='cpu')
  assert {k: tuple(v.shape) for k, v in heads.items()} == {k: v.shape for k, v in weights_of(files[0])[1].items()}
  assert all((v >= 0).all() for v in heads.values())
