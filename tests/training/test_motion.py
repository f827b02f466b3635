"""The codec's loss of motion: zero at equality, even-handed to noise, dearer for what moves and for what shakes."""
import jax.numpy as jnp
import numpy as np
import pytest

from veojax.training import motion, run

MODEL = {'temporal_compression': 4, 'spatial_compression': 8, 'patch_time': 4, 'patch_size': 8, 'latent_channels': 4,
         'widths': (8,), 'encoder_depths': (1,), 'decoder_depths': (1,)}


def error(value_THWC):
  return float(motion.motion_error(jnp.asarray(value_THWC, jnp.float32)[None]))


def test_it_is_what_it_says():
  """0 for no error; of a steady error e everywhere the squares' areas times e²; of noise the same at every side."""
  assert error(np.zeros((5, 16, 8, 3))) == 0
  assert error(np.full((5, 16, 8, 3), 0.5)) == pytest.approx(0.25 * (4 + 16 + 64))
  noise = np.random.default_rng(0).normal(size=(40, 64, 64, 3))
  assert error(noise) == pytest.approx(3 * (1 + 6), rel=0.05)  # a second difference has 1 + 4 + 1 times the variance


def disc(shift_T, radius=5, side=32):
  """A disc with soft edges, moved by so many pixels in each frame."""
  y, x = np.mgrid[:side, :side] + 0.5
  frames = [np.clip(radius + 0.5 - np.hypot(x - side / 2 - shift, y - side / 2), 0, 1) for shift in shift_T]
  return np.repeat(np.stack(frames)[..., None], 3, -1)


def test_moving_costs_more_than_noise_and_shaking_more_than_moving():
  still, moved = disc(np.zeros(9)), disc(np.full(9, 0.2))
  shaken = disc(0.2 * (-1) ** np.arange(9))
  noise = np.random.default_rng(1).normal(size=still.shape)
  noise *= np.sqrt(np.mean((moved - still) ** 2) / np.mean(noise ** 2))
  assert error(shaken - still) > 3 * error(moved - still) > 6 * error(noise) / 7


@pytest.mark.parametrize('crop', [(1, 16, 16), (5, 16, 12), (5, 20, 16)])
def test_a_crop_that_does_not_divide_is_refused(crop):
  frames, height, width = crop
  tree = {'stage': 'video_vae', 'motion_weight': 0.1, 'model': {**MODEL, 'spatial_compression': 4, 'patch_size': 4},
          'crop': {'num_frames': frames, 'height': height, 'width': width}}
  with pytest.raises(ValueError, match='motion_weight=0.1.*give at least 3 frames, and sides that are multiples of 8'):
    run.build(tree)
