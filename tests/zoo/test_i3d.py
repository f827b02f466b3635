"""I3D against the same network of PyTorch's primitives with the same drawn weights, under all its published names."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from veojax.models import weights
from veojax.zoo import i3d

# The published layout, written out: (name, inputs, outputs, side) of every convolution.
STEM = [('Conv3d_1a_7x7', 3, 64, 7), ('Conv3d_2b_1x1', 64, 64, 1), ('Conv3d_2c_3x3', 64, 192, 3)]
MIXED = {'3b': (192, 64, 96, 128, 16, 32, 32), '3c': (256, 128, 128, 192, 32, 96, 64),
         '4b': (480, 192, 96, 208, 16, 48, 64), '4c': (512, 160, 112, 224, 24, 64, 64),
         '4d': (512, 128, 128, 256, 24, 64, 64), '4e': (512, 112, 144, 288, 32, 64, 64),
         '4f': (528, 256, 160, 320, 32, 128, 128), '5b': (832, 256, 160, 320, 32, 128, 128),
         '5c': (832, 384, 192, 384, 48, 128, 128)}
# The same six convolutions of a block in the three published files.
NAMES = {'b0': ('0', '0/Conv3d_0a_1x1'), 'b1a': ('1.0', '1/Conv3d_0a_1x1'), 'b1b': ('1.1', '1/Conv3d_0b_3x3'),
         'b2a': ('2.0', '2/Conv3d_0a_1x1'), 'b2b': ('2.1', '2/Conv3d_0b_3x3'), 'b3b': ('3.1', '3/Conv3d_0b_1x1')}


def convolutions():
  yield from STEM
  for block, (inputs, w0, w1a, w1b, w2a, w2b, w3) in MIXED.items():
    for name, *sizes in (('b0', inputs, w0, 1), ('b1a', inputs, w1a, 1), ('b1b', w1a, w1b, 3), ('b2a', inputs, w2a, 1),
                         ('b2b', w2a, w2b, 3), ('b3b', inputs, w3, 1)):
      yield f'Mixed_{block}.{name}', *sizes


@pytest.fixture(scope='module')
def drawn() -> dict[str, np.ndarray]:
  """Weights as i3d_pretrained_400.pt names them; every batch norm has statistics and a bias of its own."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape, np.float32)
  flat = {'logits.conv3d.weight': normal(400, 1024, 1, 1, 1) / 32, 'logits.conv3d.bias': normal(400)}
  for name, inputs, outputs, side in convolutions():
    flat[f'{name}.conv3d.weight'] = normal(outputs, inputs, side, side, side) * (2 / (inputs * side ** 3)) ** .5
    flat |= {f'{name}.bn.weight': np.ones(outputs, np.float32), f'{name}.bn.bias': .1 * normal(outputs),
             f'{name}.bn.running_mean': .1 * normal(outputs),
             f'{name}.bn.running_var': rng.uniform(.5, 1.5, outputs).astype(np.float32),
             f'{name}.bn.num_batches_tracked': np.array(7)}
  return flat


def as_torchscript(drawn):
  renamed = {}
  for key, value in drawn.items():
    name, *rest = key.replace('.bn.', '.batch3d.').split('.')
    if rest[0] in NAMES:
      name, rest = f'{name}.branch_{NAMES[rest[0]][0]}', rest[1:]
    renamed['.'.join([name[0].lower() + name[1:] if name != 'logits' else 'conv3d_0c_1x1', *rest])] = value
  return renamed


def as_tensorflow(drawn):
  renamed = {}
  last = {'conv3d.weight': 'conv_3d/w', 'conv3d.bias': 'conv_3d/b', 'bn.bias': 'batch_norm/beta',
          'bn.running_mean': 'batch_norm/moving_mean', 'bn.running_var': 'batch_norm/moving_variance'}
  for key, value in drawn.items():
    name, kind, leaf = key.rsplit('.', 2)
    if f'{kind}.{leaf}' in last:
      block, _, unit = name.partition('.')
      path = f'{block}/Branch_{NAMES[unit][1]}' if unit else block.replace('logits', 'Logits/Conv3d_0c_1x1')
      path = path.replace('Mixed_5b/Branch_2/Conv3d_0b_3x3', 'Mixed_5b/Branch_2/Conv3d_0a_3x3')
      value = value.transpose(2, 3, 4, 1, 0) if value.ndim == 5 else value
      renamed[f'RGB/inception_i3d/{path}/{last[f"{kind}.{leaf}"]}'] = np.ascontiguousarray(value)
  return renamed


@pytest.fixture(scope='module')
def network(drawn, tmp_path_factory):
  path = tmp_path_factory.mktemp('i3d') / 'i3d.safetensors'
  safetensors.numpy.save_file(drawn, path)
  return i3d.load(path)


def reference(flat, video_BCTHW, epsilon):
  torch = pytest.importorskip('torch', reason="PyTorch is not installed: pip install -e '.[parity]'")
  functional = torch.nn.functional
  tensors = {k: torch.tensor(v) for k, v in flat.items()}

  def padded(x, side, stride, value=0.):
    """TensorFlow's SAME: what is missing, the odd one behind; PyTorch lists the last dim first."""
    sides = []
    for size, k, s in zip(x.shape[:1:-1], side[::-1], stride[::-1]):
      missing = max((-(-size // s) - 1) * s + k - size, 0)
      sides += [missing // 2, missing - missing // 2]
    return functional.pad(x, sides, value=value)

  def unit(x, name, stride=1):
    kernel = tensors[f'{name}.conv3d.weight']
    y = functional.conv3d(padded(x, kernel.shape[2:], (stride,) * 3), kernel, stride=stride)
    norm = [tensors[f'{name}.bn.{part}'] for part in ('running_mean', 'running_var', 'weight', 'bias')]
    return functional.batch_norm(y, *norm, training=False, eps=epsilon).relu()

  def pool(x, side, stride):
    return functional.max_pool3d(padded(x, side, stride, -torch.inf), side, stride)

  with torch.inference_mode():
    x = pool(unit(torch.tensor(video_BCTHW), 'Conv3d_1a_7x7', 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit(unit(x, 'Conv3d_2b_1x1'), 'Conv3d_2c_3x3'), (1, 3, 3), (1, 2, 2))
    for block in MIXED:
      if block in ('4b', '5b'):
        x = pool(x, (3, 3, 3) if block == '4b' else (2, 2, 2), (2, 2, 2))
      name = f'Mixed_{block}'
      x = torch.cat([unit(x, f'{name}.b0'), unit(unit(x, f'{name}.b1a'), f'{name}.b1b'),
                     unit(unit(x, f'{name}.b2a'), f'{name}.b2b'),
                     unit(pool(x, (3, 3, 3), (1, 1, 1)), f'{name}.b3b')], 1)
    x = functional.avg_pool3d(x, (2, 7, 7), 1)
    x = functional.conv3d(x, tensors['logits.conv3d.weight'], tensors['logits.conv3d.bias'])
    return x.mean(2)[:, :, 0, 0].numpy()


@pytest.mark.slow
def test_gives_the_logits_of_pytorch(network, drawn):
  video = np.random.default_rng(1).uniform(-1, 1, (1, 10, 224, 224, 3)).astype(np.float32)
  want = reference(drawn, np.ascontiguousarray(video.transpose(0, 4, 1, 2, 3)), 1e-3)
  got = jax.jit(lambda network, video: network(video))(network, jnp.asarray(video))
  assert want.std() > .1
  np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


def test_the_three_published_forms_are_one_network(network, drawn, tmp_path):
  ours = weights.names(network)
  for form, scaled in ((as_torchscript, True), (as_tensorflow, False)):
    path = tmp_path / f'{form.__name__}.safetensors'
    safetensors.numpy.save_file(form(drawn), path)
    theirs = weights.names(i3d.load(path))
    assert theirs.keys() == {name for name in ours if scaled or not name.endswith('.scale')}
    for name, value in theirs.items():
      np.testing.assert_array_equal(value, ours[name])


def test_what_is_no_i3d_is_refused(tmp_path):
  safetensors.numpy.save_file({'features.0.weight': np.zeros(3, np.float32)}, tmp_path / 'other.safetensors')
  with pytest.raises(ValueError, match='features.0.weight .* no I3D'):
    i3d.load(tmp_path / 'other.safetensors')


def test_too_few_frames_are_refused(network):
  with pytest.raises(ValueError, match='8 frames'):
    network(jnp.zeros((1, 8, 224, 224, 3)))
