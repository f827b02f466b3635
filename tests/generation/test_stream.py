"""Streams draw from the whole clip's distribution, with a window that does not grow."""
import gc
import weakref

import jax
import numpy as np
import pytest

from tests.generation import gaussian_world as world
from veojax import sharding
from veojax.data import packing
from veojax.data.latent_clip import LatentClip
from veojax.generation import model as models
from veojax.generation import long, sampling, stream
from veojax.types import AUDIO, VIDEO, Clip

FRAMES = 17  # 9 latent frames, and as many sound latents as frames


def times():
  """When what is seen and heard of the whole clip is, in seconds."""
  empty = np.zeros((9, 1, 1, 1), np.float32)
  whole = LatentClip(empty, np.zeros((FRAMES, 1), np.float32), (), world.FPS, 8, 8, world.TC, 8, world.RATE)
  row = packing.pack([whole], packing.PackConfig(32, 2, 1, 2, 1))
  return [row.position[row.modality == m, 0] for m in (VIDEO, AUDIO)]


def drawn(model, **options):
  """Latents of a whole stream, [tokens, CHANNELS], picture before sound; and the most latent frames in view."""
  made, view, video, audio = stream.Latents(model, 'a', FRAMES, 9, 2, 0, options), 0, [], []
  for piece, _, _ in made:
    view = max(view, len(made.held.video))
    assert len(made.held.audio) <= 2 * len(made.held.video) + 1
    video.append(piece.video[:, 0, 0])
    audio.append(piece.audio)
  return np.concatenate(video + audio), view


@pytest.fixture(autouse=True)
def one_device():
  with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
    yield


@pytest.fixture(scope='module')
def model():
  return world.make()


def test_a_stream_is_drawn_from_the_whole_clips_distribution(model):
  """The process forgets all but the present, so what left the window is not missed: mean and covariance are exact."""
  before = sampling.sample_rows._cache_size()
  latents, view = drawn(model)
  assert view == 5 and sampling.sample_rows._cache_size() == before + 1
  want = world.covariance(np.concatenate(times()))
  np.testing.assert_allclose(np.cov(latents), want, atol=0.1)
  np.testing.assert_allclose(latents.mean(1), 0, atol=0.08)


def test_a_stream_goes_on_from_a_beginning_as_the_conditional_says(model):
  """Of the residuals from the conditional mean: no mean, the conditional covariance, nothing left of what was given."""
  beginning = Clip(np.zeros((3, 8, 8, 3), np.uint8), np.zeros((3, 1), np.float32), world.FPS, 8)
  latents, _ = drawn(model, video=beginning, task='extend')
  time = np.concatenate(times())
  # Sound j is given where it is beside a given frame: up to the instant that the last one shows.
  known = np.flatnonzero(time <= 2 / world.FPS)
  made = np.setdiff1d(np.arange(len(time)), known)
  given = [model.video_codec._encode(None, (5, 1, 1, world.CHANNELS))[:2, 0, 0], model.audio_codec.encode(range(9))[:2]]
  np.testing.assert_array_equal(latents[known], np.concatenate(given))
  k = world.covariance(time)
  gain = k[np.ix_(made, known)] @ np.linalg.inv(k[np.ix_(known, known)])
  residual = latents[made] - gain @ latents[known]
  np.testing.assert_allclose(np.cov(residual), k[np.ix_(made, made)] - gain @ k[np.ix_(known, made)], atol=0.1)
  np.testing.assert_allclose(residual @ latents[known].T / world.CHANNELS, 0, atol=0.1)


@pytest.fixture(scope='module')
def random_model(model_folder):
  with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
    return models.load(model_folder)


def test_pieces_are_what_the_codecs_make_of_the_whole(random_model):
  """No seam: picture and sound are those of all latents decoded at once."""
  options = dict(window=9, overlap=4, seed=3)
  pieces = list(stream.stream(random_model, ['a red ball', 'a blue square'], 50, **options))
  made = stream.Latents(random_model, ['a red ball', 'a blue square'], 50, 9, 4, 3, {})
  latents, texts, _ = zip(*made)
  video, audio = (np.concatenate([getattr(x, half) for x in latents]) for half in ('video', 'audio'))
  assert len(pieces) > 2 and {p.text for p in pieces} == set(texts) == {'a red ball', 'a blue square'}
  whole = random_model.video_codec.decode(video, 50, 32, 32)
  np.testing.assert_array_equal(np.concatenate([p.video for p in pieces]), whole)
  samples = random_model.num_samples(50, 8.0)
  np.testing.assert_array_equal(np.concatenate([p.audio for p in pieces]),
                                random_model.audio_codec.decode(audio, samples))


@pytest.mark.parametrize('make', [stream.stream, long.pieces])
def test_nothing_of_earlier_pieces_is_kept(random_model, make):
  """What `benchmark_long.py` measures, as a property: of all frames and samples, the last piece's are left."""
  kept, frames = [], 0
  for piece in make(random_model, 'a ball', 60, window=9, overlap=4):
    frames += len(piece.video)
    kept += [weakref.ref(piece.video), weakref.ref(piece.audio)]
    del piece
    gc.collect()
    assert sum(ref() is not None for ref in kept) <= 4
  assert frames == 60 and len(kept) > 6


@pytest.mark.parametrize('options, message', [
    ({'overlap': 9}, 'overlap=9 leaves 0 of 3'), ({'overlap': 0}, 'overlap=0'), ({'strength': 0.5}, 'strength=0.5'),
    ({'last_image': np.zeros((32, 32, 3), np.uint8)}, 'takes a beginning'),
    ({'task': 'sound'}, 'has a picture'), ({'windwo': 3}, 'windwo')])
def test_what_a_stream_cannot_do_is_refused(random_model, options, message):
  with pytest.raises(ValueError, match=message):
    next(stream.stream(random_model, 'a ball', 30, **{'overlap': 4} | options))


def test_references_stay_in_view(random_model):
  image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
  plain, seen = (next(stream.stream(random_model, 'a ball', 12, overlap=4, **given)).video
                 for given in ({}, {'references': [image]}))
  assert np.any(plain != seen)
