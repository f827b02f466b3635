"""The video codec: any size and length, three programs a direction, chunks exact, tiles within tolerance."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from veojax import sharding
from veojax.models import video_codec
from veojax.models.video_codec import VideoCodec, statistics
from veojax.models.video_vae import VideoVAE, VideoVAEConfig

TINY = VideoVAEConfig(latent_channels=3, widths=(8, 12, 8), encoder_depths=(1, 1, 1), decoder_depths=(1, 1, 1))
MEAN, STD = np.array([0.1, -0.2, 0.3], np.float32), np.array([0.5, 1.0, 2.0], np.float32)


@pytest.fixture(scope='module')
def vae():
  return make()


def make():
  """Random parameters, drawn by numpy, since compiling the initialisers is slow."""
  rng = np.random.default_rng(0)
  draw = lambda p: jnp.asarray(rng.normal(0, 0.3 if p.ndim == 1 else np.prod(p.shape[:-1]) ** -0.5, p.shape), p.dtype)
  return jax.tree.map(draw, jax.eval_shape(lambda: VideoVAE(TINY, rngs=nnx.Rngs(0))))


encode, decode = jax.jit(VideoVAE.encode), jax.jit(VideoVAE.decode)


def smooth(num_frames, height, width, seed=0):
  """Waves of colour that move."""
  phase = np.random.default_rng(seed).uniform(0, 6, 3)
  t, y, x = np.meshgrid(np.arange(num_frames), np.arange(height), np.arange(width), indexing='ij')
  wave = np.sin((0.3 * t + 0.1 * y - 0.15 * x)[..., None] + phase)
  return np.round(127.5 + 127.5 * wave).astype(np.uint8)


@pytest.mark.parametrize('shape', [(1, 1, 1), (1, 16, 16), (3, 9, 31), (5, 16, 17), (10, 40, 7), (18, 24, 24)])
def test_any_size_and_length(vae, shape):
  codec = VideoCodec(vae, MEAN, STD, chunk=2, tile=16, overlap=8)
  video = smooth(*shape)
  latent = codec.encode(video)
  expected = (1 + int(np.ceil((shape[0] - 1) / 4)), int(np.ceil(shape[1] / 8)), int(np.ceil(shape[2] / 8)), 3)
  assert latent.shape == codec.latent_shape(*shape) == expected
  assert latent.dtype == np.float32 and np.isfinite(latent).all()
  output = codec.decode(latent, *shape)
  assert output.shape == video.shape and output.dtype == np.uint8


def test_three_programs_a_direction_whatever_the_shapes(vae):
  codec = VideoCodec(vae, MEAN, STD, chunk=3, tile=24, overlap=8)
  before = video_codec.encode_tile._cache_size(), video_codec.decode_tile._cache_size()
  for shape in ((2, 8, 8), (30, 20, 50), (13, 60, 24), (1, 33, 9)):
    codec.decode(codec.encode(smooth(*shape)), *shape)
  assert video_codec.encode_tile._cache_size() - before[0] == 3
  assert video_codec.decode_tile._cache_size() - before[1] == 3


def test_chunks_and_statistics_equal_the_whole(vae):
  """One tile, many chunks: the latents of the network itself, normalised; and the pixels it makes of them."""
  video = smooth(21, 24, 24)
  codec = VideoCodec(vae, MEAN, STD, chunk=2, tile=24, overlap=0)
  mean = np.asarray(encode(vae, video[None] / np.float32(127.5) - 1)[0][0])
  latent = codec.encode(video)
  np.testing.assert_allclose(latent * STD + MEAN, mean, atol=1e-5)
  pixels = np.clip(np.asarray(decode(vae, mean[None])[0]), -1, 1)
  error = codec.decode(latent, *video.shape[:3]) - (pixels + 1) * 127.5
  assert np.abs(error).max() < 0.51  # rounding
  pieces, state = [], None
  for k in range(0, len(latent), 2):
    piece, state = codec.decode_chunk(latent[k:k + 2], 24, 24, state)
    pieces.append(piece)
  assert [len(piece) for piece in pieces] == [5, 8, 8]
  np.testing.assert_array_equal(np.concatenate(pieces), codec.decode(latent, *video.shape[:3]))


def test_tiles_equal_the_whole_where_a_quarter_of_the_overlap_covers_the_reach(vae):
  """The 3 × 3 convolutions here, one in cells of 4 pixels and two of 8, reach 20 pixels in each direction."""
  video = smooth(1, 192, 248)
  reference = (np.asarray(encode(vae, video[None] / np.float32(127.5) - 1)[0][0]) - MEAN) / STD
  codec = VideoCodec(vae, MEAN, STD, chunk=1, tile=192, overlap=96)
  np.testing.assert_allclose(codec.encode(video), reference, atol=1e-4)
  pixels = (np.clip(np.asarray(decode(vae, reference[None] * STD + MEAN)[0]), -1, 1) + 1) * 127.5
  assert np.abs(codec.decode(reference, *video.shape[:3]) - pixels).max() < 0.51  # rounding


def test_smaller_tiles_are_close(vae):
  video = smooth(1, 64, 80)
  codec = VideoCodec(vae, MEAN, STD, chunk=1, tile=32, overlap=16)
  reference = (np.asarray(encode(vae, video[None] / np.float32(127.5) - 1)[0][0]) - MEAN) / STD
  assert np.sqrt(np.mean((codec.encode(video) - reference) ** 2)) < 0.1 * reference.std()
  pixels = (np.clip(np.asarray(decode(vae, reference[None] * STD + MEAN)[0]), -1, 1) + 1) * 127.5
  assert np.sqrt(np.mean((codec.decode(reference, *video.shape[:3]) - pixels) ** 2)) < 0.1 * pixels.std()


@pytest.mark.parametrize('size', [2, 5, 8, 9, 17])
@pytest.mark.parametrize('overlap', [0, 1, 2, 4])
def test_cross_fades_add_up_to_one(size, overlap):
  """A step that copies its tile gives back the frame: no cell is lost, doubled or shifted."""
  tiles = video_codec.Tiles(size, size + 3, (8, 8), overlap, scale=2)
  frame = np.random.default_rng(0).normal(size=(2, tiles.height, tiles.width, 3)).astype(np.float32)
  copy = lambda tile, state: (tile.repeat(2, 2).repeat(2, 3), state)
  np.testing.assert_allclose(tiles.run(frame, copy, 1), frame.repeat(2, 1).repeat(2, 2), atol=1e-6)


def test_statistics_normalise(vae):
  batches = [np.stack([smooth(5, 16, 16, seed=2 * i + j) for j in range(2)]) for i in range(8)]
  mean, std = statistics(vae, iter(batches))
  codec = VideoCodec(vae, mean, std, tile=16, overlap=0, chunk=2)
  latents = np.concatenate([codec.encode(clip) for batch in batches for clip in batch]).reshape(-1, 3)
  np.testing.assert_allclose(latents.mean(0), 0, atol=1e-3)
  np.testing.assert_allclose(latents.std(0), 1, atol=1e-3)
  with pytest.raises(ValueError, match='at least one'):
    statistics(vae, [])


def test_runs_on_a_mesh(vae):
  video = smooth(6, 20, 16)
  expected = VideoCodec(vae, MEAN, STD, chunk=1, tile=16, overlap=8).encode(video)
  with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=4, fsdp=2))):
    codec = VideoCodec(make(), MEAN, STD, chunk=1, tile=16, overlap=8)
    latent = codec.encode(video)
    assert codec.decode(latent, *video.shape[:3]).shape == video.shape
  np.testing.assert_allclose(latent, expected, atol=1e-5)


def test_bad_input_is_refused(vae):
  with pytest.raises(ValueError, match='multiples of 8'):
    VideoCodec(vae, MEAN, STD, tile=20)
  with pytest.raises(ValueError, match='3 latent channels'):
    VideoCodec(vae, MEAN[:2], STD)
  codec = VideoCodec(vae, MEAN, STD, tile=16, overlap=8)
  with pytest.raises(ValueError, match='uint8'):
    codec.encode(np.zeros((1, 8, 8, 3), np.float32))
  with pytest.raises(ValueError, match=r'their shape is \[2, 1, 1, 3\]'):
    codec.decode(np.zeros((1, 1, 1, 3), np.float32), 5, 8, 8)
  with pytest.raises(ValueError, match='6 latent frames at once; give up to 5'):
    codec.decode_chunk(np.zeros((6, 1, 1, 3), np.float32), 8, 8)


@pytest.mark.parametrize('shape, split', [
    ((9, 64, 62), {'tile': 1, 'time': 1, 'height': 2}),     # one tile of one chunk
    ((38, 64, 64), {'tile': 1, 'time': 4, 'height': 2}),    # chunks beside each other, rows split
    ((38, 100, 100), {'tile': 4, 'time': 2, 'height': 1}),  # tiles too; more chunks than are taken at once
])
def test_over_devices_equals_one_device(vae, shape, split):
  codec = VideoCodec(vae, MEAN, STD, chunk=3, tile=64, overlap=16)
  video = smooth(*shape)
  latent = codec.encode(video)
  alone = codec.decode(latent, *shape)
  with sharding.use(sharding.MeshConfig(data=2, fsdp=2, context=2)):
    tiles = 4 if shape[1] > 64 else 1
    assert dict(sharding.clip_mesh(tiles, -(-latent.shape[0] // 3), 8).shape) == split
    np.testing.assert_allclose(codec.encode(video), latent, atol=2e-5)
    assert np.abs(codec.decode(latent, *shape).astype(int) - alone).max() <= 1  # rounding


def test_devices_that_would_have_no_work_are_left_out():
  with sharding.default_mesh():
    assert sharding.clip_mesh(1, 1, 5).size == 1
    assert sharding.clip_mesh(3, 1, 5).shape == {'tile': 3, 'time': 1, 'height': 1}
    assert sharding.clip_mesh(1, 96, 64).shape == {'tile': 1, 'time': 8, 'height': 1}
  assert sharding.clip_mesh(8, 8, 64).size == 1
