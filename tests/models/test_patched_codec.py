"""A codec in patches: the codec's own latents, in fewer and wider tokens, for any size."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from veojax.models.patched_codec import PatchedCodec, patched
from veojax.models.video_codec import VideoCodec
from veojax.models.video_vae import VideoVAE, VideoVAEConfig

CONFIG = VideoVAEConfig(temporal_compression=2, patch_time=2, latent_channels=3, widths=(8, 8), encoder_depths=(1, 1),
                        decoder_depths=(1, 1))


@pytest.fixture(scope='module')
def codec():
  rng = np.random.default_rng(0)
  vae = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.2, p.shape), p.dtype),
                     jax.eval_shape(lambda: VideoVAE(CONFIG, rngs=nnx.Rngs(0))))
  return VideoCodec(vae, np.array([0.1, -0.2, 0.3], np.float32), np.array([0.5, 1.0, 2.0], np.float32), chunk=2,
                    tile=32, overlap=8)


def video(*shape):
  return np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize('patch', (2, 3))
def test_a_patch_is_a_square_of_latents(codec, patch):
  """Every latent of the codec stands in one patch, at the place that its square has."""
  clip, wide = video(5, 48, 48), PatchedCodec(codec, patch)
  latent, plain = wide.encode(clip), codec.encode(clip)
  side = 6 // patch
  assert latent.shape == wide.latent_shape(5, 48, 48) == (3, side, side, 3 * patch ** 2)
  for y, x in np.ndindex(6, 6):
    channels = slice(3 * (y % patch * patch + x % patch), None)
    np.testing.assert_array_equal(latent[:, y // patch, x // patch, channels][:, :3], plain[:, y, x])
  np.testing.assert_array_equal(wide.decode(latent, 5, 48, 48), codec.decode(plain, 5, 48, 48))


@pytest.mark.parametrize('shape', ((1, 7, 20), (6, 33, 40)))
def test_sizes_that_are_no_whole_patches(codec, shape):
  """The edge is extended: what is kept is what the codec keeps of the extended clip."""
  wide, (_, h, w) = PatchedCodec(codec, 2), shape
  clip = video(*shape)
  height, width = (-(-side // 16) * 16 for side in (h, w))
  extended = np.pad(clip, ((0, 0), (0, height - h), (0, width - w), (0, 0)), 'edge')
  np.testing.assert_array_equal(wide.reconstruct(clip), codec.reconstruct(extended)[:, :h, :w])


def test_chunks_equal_the_whole(codec):
  wide, state, pieces = PatchedCodec(codec, 2), None, []
  latent = wide.encode(video(9, 30, 20))
  for k in range(0, len(latent), wide.chunk):
    pixels, state = wide.decode_chunk(latent[k:k + wide.chunk], 30, 20, state)
    pieces.append(pixels)
  np.testing.assert_array_equal(np.concatenate(pieces), wide.decode(latent, 9, 30, 20))


def test_other_patches_are_other_latents(codec, tmp_path):
  """Their hashes tell; the file is the codec's own."""
  wide = patched(codec, 2)
  assert wide.on(jax.devices()[1]).hash() == wide.hash()
  assert len({codec.hash(), wide.hash(), patched(codec, 3).hash()}) == 3 and patched(codec, 1) is codec
  wide.save(tmp_path / 'codec.safetensors')
  assert VideoCodec.load(tmp_path / 'codec.safetensors').hash() == codec.hash()
