"""Guidance between picture and sound, in a Gaussian world: what it samples, and that a scale of 1 is none."""
import jax
import numpy as np
import pytest
from scipy import integrate

from tests.generation import gaussian_world as world
from veojax import sharding
from veojax.data.latent_clip import LatentClip
from veojax.generation import rows as rows_module
from veojax.generation import sampling
from veojax.types import AUDIO, VIDEO, Tokens


@pytest.fixture(autouse=True)
def one_device():
  with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
    yield


def sample(scale, **options):
  """Latents [tokens, CHANNELS] in the order of the row, their noise, times and modalities."""
  model = world.make(modality_guidance_scale=scale, **options)
  zeros = lambda *shape: np.zeros((*shape, world.CHANNELS), np.float32)
  clip = LatentClip(zeros(4, 1, 1), zeros(6), (), world.FPS, 8, 8, world.TC, 8, world.RATE)
  made = model.rows([clip], ['a'], '', model.config.sampling)
  key = jax.random.key(1)
  latents = sampling.sample(model.dit, made, key[None], objective=model.config.objective,
                            configs=[model.config.sampling])
  noise = np.asarray(jax.random.normal(key, latents.shape[1:]))
  row = Tokens(*(x[0] for x in made[0]))
  media = row.modality >= AUDIO
  return latents[0, media], noise[media], row.position[media, 0], row.modality[media]


def flow(k, apart, scale):
  """The map from noise to data that guidance leads along, integrated here: dx/dt = (x - x0(x, t)) / t."""
  def denoiser(k, t):
    return (1 - t) * k @ np.linalg.inv((1 - t) ** 2 * k + t ** 2 * np.eye(len(k)))

  def slope(t, m):
    guided = denoiser(k, t) + (scale - 1) * (denoiser(k, t) - denoiser(apart, t))
    return ((np.eye(len(k)) - guided) @ m.reshape(k.shape) / t).ravel()
  return integrate.solve_ivp(slope, (1.0, 1e-3), np.eye(len(k)).ravel(), rtol=1e-6, atol=1e-8).y[:, -1].reshape(k.shape)


@pytest.mark.parametrize('scale', [0.0, 1.0, 2.5])
def test_what_is_sampled(scale):
  """At 0 picture and sound have their own distributions and nothing in common, at 1 the joint one; above, more of what
  they have in common than the world has."""
  latents, noise, time, modality = sample(scale)
  k = world.covariance(time)
  apart = np.where(np.equal.outer(modality, modality), k, 0)
  to_data = flow(k, apart, scale)
  np.testing.assert_allclose(latents, to_data @ noise, atol=0.05)
  got, together = to_data @ to_data.T, np.ix_(modality == VIDEO, modality == AUDIO)
  if scale > 1:
    deviation = np.sqrt(np.diag(got))
    assert (got / np.outer(deviation, deviation))[together].mean() > 1.1 * k[together].mean()
  else:
    np.testing.assert_allclose(got, apart if scale == 0 else k, atol=0.01)


@pytest.mark.parametrize('lag', [0.3, 0.5])
def test_sound_that_lags_is_of_the_same_world(lag):
  latents, _, time, _ = sample(1.0, audio_lag=lag, num_inference_steps=64)
  np.testing.assert_allclose(latents @ latents.T / world.CHANNELS, world.covariance(time), atol=0.12)


def test_sound_lags_where_both_are_made():
  config = sampling.SamplingConfig(audio_lag=0.4)
  clip = LatentClip(np.zeros((2, 1, 1, 1), np.float32), np.zeros((3, 1), np.float32))
  beginning = clip._replace(video_given=np.array([True, False])[:, None, None])
  given = clip._replace(audio_given=np.ones(3, bool))
  lag = lambda clip: sampling.for_clip(clip, config).audio_lag
  assert [lag(clip), lag(beginning), lag(given), lag(clip._replace(audio=None))] == [0.4, 0.4, 0, 0]


def test_in_turn_is_as_together():
  np.testing.assert_allclose(sample(2.5)[0], sample(2.5, guidance_in_turn=True)[0], atol=1e-3)


def test_a_scale_of_1_evaluates_the_guided_row_alone():
  assert sampling.away_from(sampling.SamplingConfig(guidance_scale=1.0)) == {}
  both = sampling.SamplingConfig(guidance_scale=1.0, audio_guidance_scale=2.0, modality_guidance_scale=3.0)
  assert sampling.away_from(both) == {'text': (1.0, 2.0), 'modality': (3.0, 3.0)}
  silent = LatentClip(np.zeros((1, 1, 1, 1), np.float32), None)
  assert list(sampling.away_from(sampling.for_clip(silent, both))) == ['text']


def test_rows_hold_the_same_media_in_the_same_places():
  rng = np.random.default_rng(0)
  video, audio = (rng.normal(size=size).astype('f') for size in ((3, 2, 2, 4), (5, 3)))
  clip = LatentClip(video, audio, (), 8.0, 16, 16, 4, 8, 10.0)
  pack = rows_module.pack_config(('text', 'modality'), 8, 4, clip.num_tokens)
  made = rows_module.evaluations([clip], [[5, 6, 7]], [9], ('text', 'modality'), pack)
  guided, text, apart = (Tokens(*(x[0] for x in rows)) for rows in made)
  media = guided.modality >= AUDIO
  for other in (text, apart):
    for name in ('modality', 'position', 'extent', 'latent'):
      np.testing.assert_array_equal(getattr(other, name)[media], getattr(guided, name)[media])
  assert set(guided.segment[media]) == {1} and text.text[:1].tolist() == [9]
  sound = media & (apart.modality == AUDIO)
  picture = media & (apart.modality == VIDEO)
  assert len({*apart.segment[sound]}) == len({*apart.segment[picture]}) == 1
  assert not {*apart.segment[sound]} & {*apart.segment[picture]}
  for part in (sound, picture):  # each with the whole prompt
    mine = apart.segment[part][0]
    assert apart.text[apart.text_segment == mine].tolist() == [5, 6, 7]


def test_sound_apart_from_its_picture_keeps_a_level_for_every_latent_frame():
  clip = LatentClip(np.zeros((4, 1, 1, 4), np.float32), np.zeros((9, 4), np.float32), (), 8.0, 8, 8, 2, 8, 8.0,
                    frame_levels=True)
  pack = rows_module.pack_config(('modality',), 4, 4, clip.num_tokens, 4)
  guided, apart = rows_module.evaluations([clip], [[5, 6]], [9], ('modality',), pack)
  told = []
  for rows in (guided, apart):
    frame = np.take_along_axis(rows.group_level, rows.group, 1)
    media = rows.modality[0] >= AUDIO
    told.append(np.unique(frame[0, media & (rows.modality[0] == AUDIO)], return_inverse=True)[1])
  assert len(set(told[0].tolist())) == 3
  # As fine as with the picture: tokens that share a level apart share it together too.
  assert all(len(set(told[0][told[1] == level].tolist())) == 1 for level in set(told[1].tolist()))
