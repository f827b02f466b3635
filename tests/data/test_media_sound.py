"""Sound: resampling against scipy, mixing by its gains, both through files."""
import numpy as np
import pytest
import scipy.signal

from veojax.data import media
from veojax.types import Clip


def test_resampling_against_scipy(tmp_path):
  rng = np.random.default_rng(0)
  band = scipy.signal.firwin(255, 3000, fs=44100)
  audio = 0.2 * scipy.signal.lfilter(band, 1, rng.standard_normal((44100, 2)), axis=0) / np.sqrt(np.sum(band**2))
  path = tmp_path / 'a.wav'
  media.write(path, Clip(audio=audio.astype(np.float32), sample_rate=44100))
  for rate, up, down in [(48000, 160, 147), (16000, 160, 441), (22050, 1, 2)]:
    expected = scipy.signal.resample_poly(audio, up, down)
    clip = media.read(path, sample_rate=rate)
    assert clip.audio.shape == (rate, 2)
    error = (clip.audio - expected)[200:-200]
    assert np.sqrt(np.mean(error**2)) < 0.01 * np.sqrt(np.mean(expected**2))


def test_mixing_of_channels(tmp_path):
  audio = np.zeros((6000, 6), np.float32)
  for channel in range(6):
    audio[1000 * channel:1000 * (channel + 1), channel] = 0.5
  media.write(tmp_path / 'a.wav', Clip(audio=audio, sample_rate=16000))
  assert media.read(tmp_path / 'a.wav').audio.shape == (6000, 6)
  stereo = media.read(tmp_path / 'a.wav', channels=2).audio.reshape(6, 1000, 2).mean(1)
  front_left, front_right, centre, low, back_left, back_right = stereo
  assert front_left[0] > 0.15 and front_left[1] == 0 and front_right[1] == front_left[0] and front_right[0] == 0
  assert centre[0] == centre[1] == pytest.approx(front_left[0] * 0.5**0.5, rel=1e-3)
  assert not low.any() and back_left[0] > 0 == back_left[1] and back_right[1] > 0 == back_right[0]
  mono = media.read(tmp_path / 'a.wav', channels=1).audio.reshape(6, 1000).mean(1)
  np.testing.assert_allclose(mono, stereo.mean(1), atol=1e-6)
  full = np.ones((1000, 6), np.float32)
  media.write(tmp_path / 'b.wav', Clip(audio=full, sample_rate=16000))
  assert np.abs(media.read(tmp_path / 'b.wav', channels=2).audio).max() <= 1
  media.write(tmp_path / 'c.wav', Clip(audio=full[:, :1] * 0.5, sample_rate=16000))
  np.testing.assert_allclose(media.read(tmp_path / 'c.wav', channels=2).audio, 0.5, atol=1e-4)
