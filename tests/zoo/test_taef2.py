"""TAEF2 against the same network in PyTorch, drawn and published, on real clips; and as a codec of clips."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from veojax.data import media
from veojax.zoo import taef2, weight_table
from veojax.zoo.taef2 import FrameCodec


def torch_or_skip():
  return pytest.importorskip('torch', reason="PyTorch is not installed: pip install -e '.[parity]'")


def layer(torch, weights, x, encoding):
  """One numbered layer of the published file: a block, or a convolution that halves or doubles where it has no bias."""
  conv2d = torch.nn.functional.conv2d
  conv = lambda x, name, **how: conv2d(x, weights[f'{name}weight'], weights.get(f'{name}bias'), **how)
  if 'conv.0.weight' not in weights:
    halving = encoding and 'bias' not in weights
    if not encoding and 'bias' not in weights:
      x = torch.nn.functional.interpolate(x, scale_factor=2, mode='nearest')
    return conv(x, '', padding=1, stride=2 if halving else 1)
  if 'pool.0.weight' in weights:
    wide = torch.nn.functional.group_norm(conv(x, 'pool.0.'), 4, weights['pool.1.weight'], weights['pool.1.bias'])
    x = x + conv(wide.relu(), 'pool.3.')
  y = conv(conv(x, 'conv.0.', padding=1).relu(), 'conv.2.', padding=1).relu()
  return (x + conv(y, 'conv.4.', padding=1)).relu()


def reference(path, part, x_TCHW):
  """Encoder or decoder in PyTorch, float32, of a published file."""
  torch = torch_or_skip()
  numbered = {}
  for key, value in safetensors.numpy.load_file(path).items():
    of, _, number, name = key.split('.', 3)
    if of == part:
      numbered.setdefault(int(number), {})[name] = torch.tensor(value.astype(np.float32))
  x = torch.tensor(x_TCHW)
  if part == 'decoder':
    x = 3 * torch.tanh(x / 3)
  for number in sorted(numbered):
    x = layer(torch, numbered[number], x, part == 'encoder')
    if part == 'decoder' and number == 0:
      x = x.relu()
  return x.numpy()


def drawn(folder):
  """A published file of weights that are all drawn, biases and scales too."""
  rng = np.random.default_rng(0)
  draw = lambda p: (rng.normal(0, 0.2, p.shape) if p.ndim == 1 else
                    rng.normal(0, np.prod(p.shape[:-1]) ** -0.5, p.shape)).astype(np.float32)
  shapes = jax.eval_shape(lambda: taef2.TAEF2(taef2.TAEF2Config(), rngs=nnx.Rngs(0)))
  weight_table.save(folder, taef2.TABLE, jax.tree.map(draw, shapes))
  return folder / 'model.safetensors'


@pytest.fixture(scope='module')
def drawn_file(tmp_path_factory):
  return drawn(tmp_path_factory.mktemp('taef2'))


@pytest.fixture
def published_file(anchors_folder, tmp_path):
  """The published pickles as the one safetensors file in which the weights are published too."""
  torch = torch_or_skip()
  tensors = {}
  for part, shift in (('encoder', 0), ('decoder', -1)):
    path = anchors_folder / f'taef2_{part}.pth'
    if not path.exists():
      pytest.skip('no TAEF2 weights in shared/anchors')
    for key, value in torch.load(path, weights_only=True, map_location='cpu').items():
      number, name = key.split('.', 1)
      tensors[f'{part}.layers.{int(number) + shift}.{name}'] = value.numpy()
  safetensors.numpy.save_file(tensors, tmp_path / 'taef2.safetensors')
  return tmp_path / 'taef2.safetensors'


def to_torch(x_THWC):
  return np.ascontiguousarray(np.moveaxis(x_THWC, -1, 1), np.float32)


def relative(ours_THWC, theirs_TCHW):
  theirs = np.moveaxis(theirs_TCHW, 1, -1)
  return np.abs(ours_THWC - theirs).max() / np.abs(theirs).max()


def psnr(a, b):
  return -10 * np.log10(np.mean(np.square(a / 255. - b / 255.)))


def test_drawn_weights_give_what_pytorch_gives(drawn_file):
  torch_or_skip()
  rng = np.random.default_rng(1)
  codec = taef2.load(drawn_file)
  video = rng.random((2, 24, 40, 3), np.float32)
  latent = 2 * rng.normal(size=(2, 3, 5, 32)).astype(np.float32)
  with jax.default_matmul_precision('highest'):
    encoded, decoded = codec.vae.encode(jnp.asarray(video)[None])[0], codec.vae.decode(jnp.asarray(latent)[None])[0]
  assert relative(encoded, reference(drawn_file, 'encoder', to_torch(video))) < 1e-4
  assert relative(decoded, reference(drawn_file, 'decoder', to_torch(latent))) < 1e-4


@pytest.mark.slow
def test_published_weights_on_real_clips(published_file, clips_folder):
  codec = taef2.load(published_file, chunk=2)
  names = [json.loads(line)['file_name'] for line in (clips_folder / 'metadata.jsonl').read_text().splitlines()]
  for name in [name for name in names if '/' not in name]:
    video = media.read(clips_folder / name, fps=4, max_side=160, start=1.0, duration=0.5).video
    t, h, w, _ = video.shape
    latent = codec.encode(video)
    ours = codec.decode(latent, t, h, w)
    edge = np.pad(video, ((0, 0), (0, -h % 8), (0, -w % 8), (0, 0)), 'edge')
    their_latent = reference(published_file, 'encoder', to_torch(edge / np.float32(255)))
    theirs = np.moveaxis(reference(published_file, 'decoder', their_latent), 1, -1)[:, :h, :w]
    theirs = np.round(np.clip(theirs, 0, 1) * 255).astype(np.uint8)
    print(f'{name}: PSNR {psnr(ours, video):.4f} dB, in PyTorch {psnr(theirs, video):.4f} dB; '
          f'latents differ by {relative(latent, their_latent):.1e}')  # shown by pytest -s
    assert relative(latent, their_latent) < 1e-4
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert abs(psnr(ours, video) - psnr(theirs, video)) < 0.1
    assert psnr(ours, video) > 25


def test_published_weights_go_back_as_they_came(published_file, tmp_path):
  codec = taef2.load(published_file)
  weight_table.save(tmp_path / 'back', taef2.TABLE, codec.vae)
  before, after = (safetensors.numpy.load_file(p) for p in (published_file, tmp_path / 'back' / 'model.safetensors'))
  assert before.keys() == after.keys()
  for key in before:
    assert before[key].dtype == after[key].dtype and before[key].tobytes() == after[key].tobytes()


def clip(*shape):
  return np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8)


def test_any_size_and_length(drawn_file):
  codec = taef2.load(drawn_file, chunk=2)
  for shape in ((1, 1, 1), (3, 9, 8), (2, 16, 5)):
    latent = codec.encode(clip(*shape))
    assert latent.shape == codec.latent_shape(*shape) == (shape[0], -(-shape[1] // 8), -(-shape[2] // 8), 32)
    assert latent.dtype == np.float32 and np.isfinite(latent).all()
    output = codec.decode(latent, *shape)
    assert output.shape == (*shape, 3) and output.dtype == np.uint8


def test_frames_stand_alone_whatever_the_chunk(drawn_file):
  video = clip(2, 16, 8)
  whole = taef2.load(drawn_file, chunk=2)
  latent = whole.encode(video)
  alone = taef2.load(drawn_file, chunk=1)
  np.testing.assert_allclose(np.concatenate([alone.encode(frame[None]) for frame in video]), latent, atol=1e-4)
  error = alone.decode(latent, *video.shape[:3]).astype(int) - whole.decode(latent, *video.shape[:3])
  assert np.abs(error).max() <= 1


def test_it_can_stand_where_a_video_codec_does(drawn_file, tmp_path):
  """Statistics, hash and file."""
  plain = taef2.load(drawn_file, chunk=2)
  mean, std = np.linspace(-1, 1, 32, dtype=np.float32), np.linspace(0.5, 2, 32, dtype=np.float32)
  codec = taef2.load(drawn_file, mean, std, chunk=2)
  video = clip(2, 16, 8)
  np.testing.assert_allclose(codec.encode(video) * std + mean, plain.encode(video), atol=1e-4)
  difference = codec.decode(codec.encode(video), 2, 16, 8).astype(int) - plain.decode(plain.encode(video), 2, 16, 8)
  assert np.abs(difference).max() <= 1
  assert (codec.latent_channels, codec.temporal_compression, codec.spatial_compression) == (32, 1, 8)
  assert codec.hash() != plain.hash()
  codec.save(tmp_path / 'video_vae.safetensors')
  again = FrameCodec.load(tmp_path / 'video_vae.safetensors')
  assert again.hash() == codec.hash() and again.chunk == 2
  np.testing.assert_array_equal(again.encode(video), codec.encode(video))


def test_bad_input_is_refused(drawn_file):
  with pytest.raises(ValueError, match='chunk=0'):
    taef2.load(drawn_file, chunk=0)
  with pytest.raises(ValueError, match='32 latent channels'):
    taef2.load(drawn_file, mean_C=np.zeros(16))
  codec = taef2.load(drawn_file)
  with pytest.raises(ValueError, match='uint8'):
    codec.encode(np.zeros((1, 8, 8, 3), np.float32))
  with pytest.raises(ValueError, match=r'their shape is \[5, 1, 1, 32\]'):
    codec.decode(np.zeros((1, 1, 1, 32), np.float32), 5, 8, 8)
