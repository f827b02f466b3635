"""Guidance: its identities, and that no clip of a packed row changes with its neighbours."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from veojax.diffusion import guidance
from veojax.diffusion.predictions import convert
from veojax.diffusion.process import VP
from veojax.types import AUDIO, PADDING, TEXT, VIDEO

COND, UNCOND = jax.random.normal(jax.random.key(0), (2, 3, 8, 4))


def test_scale_1_is_no_guidance_bit_for_bit_and_0_is_the_other_prediction():
  np.testing.assert_array_equal(guidance.classifier_free(COND, UNCOND, 1.0), COND)
  np.testing.assert_allclose(guidance.classifier_free(COND, UNCOND, 0.0), UNCOND, atol=1e-6)
  np.testing.assert_allclose(guidance.classifier_free(COND, UNCOND, 4.0), UNCOND + 4 * (COND - UNCOND), atol=1e-5)
  np.testing.assert_array_equal(guidance.classifier_free(COND, COND, 7.5), COND)

  def never(x, t):
    raise AssertionError('evaluated')

  def denoise(x, t):
    return x
  assert guidance.guided(denoise, never, 1.0) is denoise


def test_guidance_means_the_same_for_every_prediction():
  process, t = VP('cosine'), jnp.full((1, 1, 1), 0.4)
  x = jax.random.normal(jax.random.key(2), COND.shape)
  for to in ('eps', 'x0', 'flow'):
    a, b = (convert('v', to, process, x, t, out) for out in (COND, UNCOND))
    expected = convert('v', to, process, x, t, guidance.classifier_free(COND, UNCOND, 5.0))
    np.testing.assert_allclose(guidance.classifier_free(a, b, 5.0), expected, atol=1e-4)


def test_picture_and_sound_have_their_own_scale():
  modality = jnp.asarray([[TEXT, AUDIO, AUDIO, VIDEO, VIDEO, VIDEO, VIDEO, PADDING]] * 3)
  out = guidance.classifier_free(COND, UNCOND, guidance.by_modality(modality, video=3.0, audio=7.0))
  for part, scale in ((slice(0, 1), 1.0), (slice(1, 3), 7.0), (slice(3, 7), 3.0), (slice(7, 8), 1.0)):
    np.testing.assert_allclose(out[:, part], guidance.classifier_free(COND, UNCOND, scale)[:, part], atol=1e-6)


def test_the_interval_guides_only_inside():
  t = jnp.asarray([0.1, 0.2, 0.5, 0.8, 0.9])
  np.testing.assert_array_equal(guidance.interval(6.0, t, (0.2, 0.8)), [1, 1, 6, 6, 1])
  levels = jnp.asarray([0.1, 0.5, 0.9])[:, None, None]
  out = guidance.guided(lambda x, t: COND, lambda x, t: UNCOND, 6.0, 0.0, (0.2, 0.8))(COND, levels)
  np.testing.assert_array_equal(out[::2], COND[::2])
  np.testing.assert_array_equal(out[1], guidance.classifier_free(COND, UNCOND, 6.0)[1])
  with pytest.raises(ValueError, match='guidance interval'):
    guidance.interval(6.0, t, (0.8, 0.2))


def test_rescaling_brings_the_deviation_back():
  out = guidance.classifier_free(COND, UNCOND, 8.0)
  full, part = (guidance.rescale(out, COND, amount) for amount in (1.0, 0.3))
  np.testing.assert_allclose(full.std(axis=(1, 2)), COND.std(axis=(1, 2)), rtol=1e-5)
  np.testing.assert_allclose(part, 0.3 * full + 0.7 * out, atol=1e-5)  # Lin et al. 2023, eq. 16
  np.testing.assert_array_equal(guidance.rescale(out, COND, 0.0), out)
  with pytest.raises(ValueError, match='guidance rescale is 1.5'):
    guidance.rescale(out, COND, 1.5)


def test_rescaling_knows_the_clips_of_a_packed_row():
  group = jnp.asarray([[0, 1, 1, 1, 2, 2, 2, 2]] * 3)
  out = guidance.classifier_free(COND, UNCOND, 8.0)
  full = guidance.rescale(out, COND, 1.0, group=group, num_groups=4)
  for part in (slice(1, 4), slice(4, 8)):
    np.testing.assert_allclose(full[:, part].std(axis=(1, 2)), COND[:, part].std(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(full[:, part], guidance.rescale(out[:, part], COND[:, part], 1.0), atol=1e-5)
  other = guidance.rescale(out.at[:, 4:].mul(9), COND, 1.0, group=group, num_groups=4)
  np.testing.assert_array_equal(other[:, :4], full[:, :4])
  # Channels that are not data have no say.
  where = jnp.arange(4)[None, None] < 3
  masked = guidance.rescale(out, COND, 1.0, group=group, num_groups=4, where=where)
  alone = guidance.rescale(out[..., :3], COND[..., :3], 1.0, group=group, num_groups=4)
  np.testing.assert_allclose(masked[..., :3], alone, atol=1e-5)
  flat = guidance.rescale(jnp.zeros_like(out), COND, 1.0, group=group, num_groups=4)
  assert np.isfinite(flat).all(), 'a constant prediction has no deviation to bring back'
