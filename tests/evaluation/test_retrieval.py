"""A clip is nearest to itself; another's sound or picture is told apart."""
import numpy as np
import pytest

from veojax.evaluation import retrieval
from veojax.types import Clip


def clips(n, rng, size=(12, 30, 44)):
  made = []
  for i in range(n):
    tone = np.sin(2 * np.pi * (200 + 300 * i) * np.arange(16000) / 8000)[:, None].repeat(2, 1) * 0.3
    made.append(Clip(rng.integers(0, 256, (*size, 3), np.uint8), tone.astype(np.float32) if i else None,
                     8.0, 8000, f'clip {i}'))
  return made


@pytest.fixture
def real():
  return clips(4, np.random.default_rng(0))


def test_clips_are_nearest_to_themselves(real):
  texts = [c.text for c in real]
  pixels, sound = retrieval.distances(real, texts, real)
  assert np.all(np.diag(pixels) == 0) and np.all(np.diag(sound)[1:] == 0) and np.isnan(sound[0]).all()
  assert retrieval.learned(pixels, sound).all()


def test_exchanged_pictures_or_sounds_are_not_learned(real):
  texts = [c.text for c in real]
  swapped = [real[0], Clip(real[2].video, real[1].audio, 8.0, 8000),
             Clip(real[2].video, real[3].audio, 8.0, 8000), real[3]]
  assert retrieval.learned(*retrieval.distances(swapped, texts, real)).tolist() == [True, False, False, True]


def test_features_are_area_means_of_any_size():
  video = np.full((3, 48, 64, 3), 51, np.uint8)
  np.testing.assert_allclose(retrieval.picture_features(video), 0.2, atol=1e-6)
  rng = np.random.default_rng(1)
  video = rng.integers(0, 256, (5, 48, 64, 3), np.uint8)
  want = video.reshape(5, 24, 2, 32, 2, 3).mean((2, 4)) / 255
  np.testing.assert_allclose(retrieval.picture_features(video), want, atol=1e-5)


def test_a_longer_clip_is_compared_over_the_time_that_both_have(real):
  texts = [c.text for c in real]
  longer = [Clip(np.concatenate([c.video, c.video[::-1]]), c.audio, 8.0, 8000) for c in real]
  pixels, sound = retrieval.distances(longer, texts, real)
  assert np.all(np.diag(pixels) == 0) and retrieval.learned(pixels, sound).all()
  twice = [Clip(c.video.repeat(2, 0), c.audio, 16.0, 8000) for c in real]  # at twice the rate, each frame shown twice
  assert np.all(np.diag(retrieval.distances(twice, texts, real)[0]) < 0.2)
  assert retrieval.learned(*retrieval.distances(twice, texts, real)).all()
