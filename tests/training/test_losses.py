"""The diffusion loss: zero for the optimal denoiser, blind to padding and to other segments' weights, levels as
declared."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from veojax import sharding
from veojax.data import latent_clip, packing
from veojax.diffusion import predictions
from veojax.diffusion.objective import PROCESSES, Objective
from veojax.models import dit
from veojax.models.dit import DiTConfig
from veojax.training import losses
from veojax.training.losses import LossConfig
from veojax.types import AUDIO, TEXT, VIDEO, Tokens

PACK = packing.PackConfig(row_tokens=48, text_tokens=16, max_clips=3, max_text=8, channels=6)


def rows(rng, num=4):
  def clip():
    return latent_clip.LatentClip(video=rng.normal(size=(2, 2, 2, 4)).astype('f'),
                              audio=rng.normal(size=(3, 6)).astype('f'),
                              text_ids=[2, 4, 3], fps=8.0, height=16, width=16, temporal_compression=4,
                              spatial_compression=8, latent_rate=25.0)
  packed = [packing.pack([clip(), clip()], PACK) for _ in range(num)]
  return Tokens(*(np.stack(x) for x in zip(*packed)))


@dataclasses.dataclass
class Knowing:
  """A denoiser that knows the clean latents, and with them the noise: it predicts exactly."""
  tokens: Tokens
  objective: Objective
  config = DiTConfig(video_channels=4, audio_channels=6)

  def __call__(self, tokens, noise_BG):
    process = self.objective.make_process()
    t = jnp.take_along_axis(noise_BG, tokens.group, 1)[..., None]
    x0 = jnp.asarray(self.tokens.latent)
    x = tokens.latent / process.input_scale(t)
    eps = jnp.where(t > 0, (x - process.alpha(t) * x0) / jnp.where(t > 0, process.sigma(t), 1), 0)
    return predictions.target(self.objective.prediction, process, x0, eps, t)


@pytest.mark.parametrize('process, prediction, weighting', [
    (process, prediction, 'none') for process in PROCESSES for prediction in ('flow', 'eps', 'x0', 'v')] + [
        ('edm', 'edm', 'none'), ('vp_cosine', 'eps', 'min_snr'), ('vp_cosine_zero_snr', 'v', 'min_snr')])
def test_the_loss_of_one_who_knows_is_zero(process, prediction, weighting):
  tokens = rows(np.random.default_rng(0))
  objective = Objective(process, prediction)
  loss, metrics = losses.diffusion_loss(Knowing(tokens, objective), tokens, jax.random.key(0),
                                        LossConfig(weighting=weighting), objective)
  assert float(loss) < 1e-4 and set(metrics) == {'video_loss', 'audio_loss'}


@pytest.mark.parametrize('process, prediction', [('vp_cosine', 'eps'), ('vp_cosine_zero_snr', 'v')])
def test_errors_are_weighed_by_min_snr(process, prediction):
  """A constant network's, by the formulas of Hang et al. 2023, eq. 4 and table 1."""
  tokens, gamma, seen = rows(np.random.default_rng(6)), 2.0, []

  class Constant:
    config = Knowing.config

    def __call__(self, t, noise):
      seen.extend((t.latent, noise))
      return jnp.full(t.latent.shape, 0.3)
  config = LossConfig(weighting='min_snr', min_snr_gamma=gamma, mean_over='tokens')
  _, metrics = losses.diffusion_loss(Constant(), tokens, jax.random.key(2), config, Objective(process, prediction))
  x, t = seen[0], np.take_along_axis(np.asarray(seen[1]), tokens.group, 1)[..., None]
  for name, modality, channels in (('video', VIDEO, 4), ('audio', AUDIO, 6)):
    mask = tokens.modality == modality
    alpha, sigma = (np.asarray(f(t[mask])) for f in (PROCESSES[process].alpha, PROCESSES[process].sigma))
    x0, snr = tokens.latent[mask], np.square(alpha / sigma)
    eps = (np.asarray(x)[mask] - alpha * x0) / sigma
    target, weight = ((eps, np.minimum(snr, gamma) / snr) if prediction == 'eps' else
                      (alpha * eps - sigma * x0, np.minimum(snr, gamma) / (snr + 1)))
    assert snr.min() < gamma < snr.max()
    expected = np.mean((weight * np.square(0.3 - target))[:, :channels])
    assert float(metrics[f'{name}_loss']) == pytest.approx(expected, rel=1e-4)


def test_what_the_network_says_of_padding_and_text_costs_nothing():
  tokens = rows(np.random.default_rng(1))
  objective = Objective()
  knowing = Knowing(tokens, objective)

  class Noisy:
    config = knowing.config

    def __call__(self, t, noise):
      elsewhere = (t.modality != VIDEO) & (t.modality != AUDIO)
      return knowing(t, noise) + 100.0 * jnp.asarray(elsewhere)[..., None]
  loss, _ = losses.diffusion_loss(Noisy(), tokens, jax.random.key(0), LossConfig(), objective)
  assert float(loss) < 1e-4


@pytest.mark.parametrize('joint', [True, False])
def test_levels_belong_to_segments_and_modalities(joint):
  tokens = rows(np.random.default_rng(2), 512)
  config = LossConfig(timesteps='uniform', joint=joint, video_shift=3.0, audio_shift=1.0)
  levels = np.asarray(losses.draw_levels(jax.random.key(0), tokens, config))
  assert np.all(levels[(tokens.group_modality == TEXT) | (tokens.group_modality == 0)] == 0)
  # All rows are laid out alike: a group's place tells its segment and modality.
  place = lambda s, m: np.flatnonzero((tokens.group_segment[0] == s) & (tokens.group_modality[0] == m))[0]
  audio, video = (levels[:, [place(s, m) for s in (1, 2)]] for m in (AUDIO, VIDEO))
  unshifted = video / (3 - 2 * video)  # the inverse of t → 3 t / (1 + 2 t)
  if joint:
    np.testing.assert_allclose(unshifted, audio, atol=1e-5)
  else:
    assert abs(np.corrcoef(unshifted[:, 0], audio[:, 0])[0, 1]) < 0.2
  assert abs(np.corrcoef(audio[:, 0], audio[:, 1])[0, 1]) < 0.2   # the two clips of a row
  assert abs(audio.mean() - 0.5) < 0.05 and abs(unshifted.mean() - 0.5) < 0.05


def test_sound_lags_behind_the_picture_where_both_are_made():
  rng = np.random.default_rng(5)
  both = latent_clip.LatentClip(video=rng.normal(size=(2, 2, 2, 4)).astype('f'), audio=rng.normal(size=(3, 6)).astype('f'),
                                text_ids=[2], fps=8.0, height=16, width=16, temporal_compression=4,
                                spatial_compression=8, latent_rate=25.0)
  given = both._replace(video_given=np.ones((2, 2, 2), bool))
  tokens = Tokens(*(np.stack([x] * 4096) for x in packing.pack([both, given], PACK)))
  config = LossConfig(timesteps='uniform', audio_lag=0.4, audio_shift=3.0)
  levels = np.take_along_axis(np.asarray(losses.draw_levels(jax.random.key(0), tokens, config)), tokens.group, 1)
  of = lambda segment, modality: levels[:, (tokens.segment[0] == segment) & (tokens.modality[0] == modality)][:, 0]
  picture, sound, alone = of(1, VIDEO), of(1, AUDIO), of(2, AUDIO)
  unshifted = sound / (3 - 2 * sound)  # the inverse of t → 3 t / (1 + 2 t)
  assert np.mean(picture == 0) == pytest.approx(0.4, abs=0.03) and np.mean(sound == 1) == pytest.approx(0.4, abs=0.03)
  moving = (picture > 0) & (sound < 1)
  np.testing.assert_allclose((0.6 * unshifted)[moving], (0.4 + 0.6 * picture)[moving], atol=1e-5)
  assert moving.mean() == pytest.approx(0.2, abs=0.03) and np.all(sound[picture == 0] < 1)
  assert np.all(of(2, VIDEO) == 0) and np.mean(alone == 1) == 0  # the picture is given: nothing to lag behind


def test_a_lag_wants_times_drawn_together():
  with pytest.raises(ValueError, match='audio_lag=0.4 with joint=False'):
    LossConfig(audio_lag=0.4, joint=False)


def test_sound_whose_time_has_not_come_costs_nothing():
  tokens, objective = rows(np.random.default_rng(7), 64), Objective()
  config = LossConfig(timesteps='uniform', audio_lag=0.5)
  levels = np.asarray(losses.draw_levels(jax.random.split(jax.random.key(3))[0], tokens, config))
  waits = np.take_along_axis(levels, tokens.group, 1) == 1

  class Ignorant:
    config = Knowing.config

    def __call__(self, t, noise):
      return Knowing(tokens, objective)(t, noise) + 100.0 * jnp.asarray(waits)[..., None]
  loss, _ = losses.diffusion_loss(Ignorant(), tokens, jax.random.key(3), config, objective)
  assert waits.any() and float(loss) < 1e-4


def test_every_latent_frame_and_the_sound_beside_it_may_have_a_level_of_their_own():
  clip = latent_clip.LatentClip(
      video=np.zeros((4, 1, 2, 4), 'f'), audio=np.zeros((8, 6), 'f'), text_ids=[2, 3], fps=8.0, height=8, width=16,
      temporal_compression=4, spatial_compression=8, latent_rate=5.0, frame_levels=True,
      video_given=np.arange(4)[:, None, None] < np.ones((4, 1, 2)))
  row = packing.pack([clip], dataclasses.replace(PACK, max_clips=1, groups_per_clip=12))
  tokens = Tokens(*(np.stack([x] * 512) for x in row))
  levels = np.asarray(losses.draw_levels(jax.random.key(0), tokens, LossConfig(timesteps='uniform')))
  levels = np.take_along_axis(levels, tokens.group, 1)
  video, audio = levels[:, row.modality == VIDEO][:, ::2], levels[:, row.modality == AUDIO]
  assert np.all(video[:, 0] == 0) and np.abs(np.corrcoef(video[:, 1:].T) - np.eye(3)).max() < 0.2
  beside = latent_clip.sound_frames(clip, 8).clip(0, 3)
  np.testing.assert_array_equal(audio, video[:, beside])


def test_weights_weigh_the_modalities():
  tokens = rows(np.random.default_rng(3))

  class Zero:
    config = Knowing.config

    def __call__(self, t, noise):
      return jnp.zeros(t.latent.shape)
  run = lambda **weights: losses.diffusion_loss(Zero(), tokens, jax.random.key(1), LossConfig(**weights), Objective())
  loss, metrics = run(video_weight=2.0, audio_weight=0.5)
  assert float(loss) == pytest.approx(2 * float(metrics['video_loss']) + 0.5 * float(metrics['audio_loss']))


class Wrong:
  """Wrong by 1 on the tokens of chosen clips: those of `segment` in every row."""
  config = Knowing.config

  def __init__(self, tokens, objective, segment):
    self.knowing, self.segment = Knowing(tokens, objective), segment

  def __call__(self, tokens, noise):
    return self.knowing(tokens, noise) + jnp.asarray(tokens.segment == self.segment, jnp.float32)[..., None]


def a_long_and_a_short_clip(rng):
  """A video of 8 cells with 3 latents of sound, an image of 2 cells, and a sound of 6 latents."""
  def clip(video, sound):
    return latent_clip.LatentClip(
        video=rng.normal(size=(*video, 4)).astype('f') if video else None,
        audio=rng.normal(size=(sound, 6)).astype('f') if sound else None, text_ids=[2, 4, 3], fps=8.0, height=16,
        width=16, temporal_compression=4, spatial_compression=8, latent_rate=25.0)
  row = packing.pack([clip((2, 2, 2), 3), clip((1, 1, 2), 0), clip(None, 6)], PACK)
  return Tokens(*(np.stack([x, x]) for x in row))


@pytest.mark.parametrize('mean_over, video, audio', [
    ('clips', [1 / 2, 1 / 2, 0], [1 / 2, 0, 1 / 2]), ('tokens', [8 / 10, 2 / 10, 0], [3 / 9, 0, 6 / 9])])
def test_a_mean_over_clips_weighs_each_alike_and_one_over_tokens_by_its_size(mean_over, video, audio):
  tokens, objective = a_long_and_a_short_clip(np.random.default_rng(4)), Objective()
  for segment in (1, 2, 3):
    _, metrics = losses.diffusion_loss(Wrong(tokens, objective, segment), tokens, jax.random.key(0),
                                       LossConfig(mean_over=mean_over), objective)
    assert float(metrics['video_loss']) == pytest.approx(video[segment - 1], abs=1e-4)
    assert float(metrics['audio_loss']) == pytest.approx(audio[segment - 1], abs=1e-4)


def test_shares_and_levels_are_the_same_on_any_mesh():
  tokens = Tokens(*(np.concatenate([x] * 4) for x in a_long_and_a_short_clip(np.random.default_rng(5))))
  mask = jnp.asarray(tokens.modality == VIDEO, jnp.float32)
  want = losses.shares(mask, tokens)
  draw = lambda tokens: losses.draw_levels(jax.random.key(0), tokens, LossConfig(audio_lag=0.4))
  levels = draw(tokens)
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2, context=4))
  with jax.set_mesh(mesh):
    put = lambda x, spec: jax.device_put(x, sharding.named(mesh, spec))
    on_mesh = jax.tree.map(put, tokens, dit.TOKEN_SPECS)
    got, drawn = jax.jit(losses.shares)(put(mask, sharding.BL), on_mesh), jax.jit(draw)(on_mesh)
  np.testing.assert_allclose(got, want)
  np.testing.assert_allclose(drawn, levels, atol=1e-6)


def test_objectives_that_are_not_defined_are_refused():
  with pytest.raises(ValueError, match='edm'):
    Objective('flow', 'edm')
