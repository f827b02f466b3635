"""What codecs keep: sounds against plain recomputations by scipy, and rows that depend on nothing else."""
import dataclasses

import numpy as np
import pytest
import safetensors.numpy
import scipy.signal

from veojax.evaluation import evaluate, reconstruction
from veojax.evaluation.benchmark import Subject
from veojax.evaluation.reconstruction import Reconstruction
from veojax.evaluation.world_benchmark import World
from veojax.generation import codecs
from veojax.types import Clip

RATE = 8000


def sounds(noise=.1, seed=0):
  rng = np.random.default_rng(seed)
  t = np.arange(4000) / RATE
  true = np.stack([.5 * np.sin(2 * np.pi * 440 * t), np.zeros_like(t)], 1)
  true[:, 1] = .3 * np.sin(2 * np.pi * 700 * t) * (t > .1)
  return (true + noise * rng.normal(size=true.shape)).astype(np.float32), true.astype(np.float32)


def spectrum(x, size):
  """Magnitudes by scipy: hop a quarter, periodic Hann, a sine of amplitude 1 is 1."""
  found = scipy.signal.stft(x, window='hann', nperseg=size, noverlap=size - size // 4, boundary=None, padded=False)[2]
  return 2 * np.abs(found)


def test_sound_distances_by_scipy():
  made, true = sounds()
  values = reconstruction.sounds(made, true, RATE)
  # SI-SDR by least squares.
  want = []
  for x, y in zip(made.T.astype(float), true.T.astype(float)):
    target = np.linalg.lstsq(y[:, None], x, rcond=None)[0] * y
    want.append(10 * np.log10(np.sum(target ** 2) / np.sum((x - target) ** 2)))
  assert values['si_sdr'] == pytest.approx(np.mean(want), rel=1e-4)
  distances = []
  for size in (64, 256, 1024):
    a, b = ([spectrum(np.pad(c, size // 2), size) for c in x.T.astype(float)] for x in (made, true))
    a, b = np.stack(a), np.stack(b)
    convergence = np.sqrt(np.sum((a - b) ** 2) / (np.sum(b ** 2) + 1e-6 * b.size))
    distances.append(convergence + np.mean(np.abs(np.log(a + 1e-3) - np.log(b + 1e-3))))
  assert values['stft'] == pytest.approx(np.mean(distances), rel=2e-3)
  assert values['log_mel'] > 0


def test_what_is_exact_and_what_is_silent():
  _, true = sounds()
  exact = reconstruction.measure(Clip(audio=true, sample_rate=RATE), Clip(audio=true, sample_rate=RATE))
  assert exact['log_mel'] == exact['stft'] == 0 and exact.get('si_sdr', 200) > 100
  silent = np.zeros_like(true)
  values = reconstruction.measure(Clip(audio=true, sample_rate=RATE), Clip(audio=silent, sample_rate=RATE))
  assert 'si_sdr' not in values and values['log_mel'] > .1
  short = reconstruction.measure(*(Clip(audio=true[:100], sample_rate=RATE),) * 2)
  assert 'log_mel' not in short
  worse = [reconstruction.sounds(*sounds(noise), RATE) for noise in (.01, .1)]
  assert worse[0]['si_sdr'] > worse[1]['si_sdr'] and all(worse[0][k] < worse[1][k] for k in ('log_mel', 'stft'))


@pytest.fixture(scope='module')
def subject():
  return Subject('roundtrip', codecs=tuple(codecs.load('world', kind) for kind in ('video', 'audio')))


def test_the_worlds_codecs_lie_between_ceiling_and_floor(subject):
  bench = Reconstruction(num_clips=2).fitted(subject)
  shown = []
  columns = bench.rows(subject, 'codec', range(2), lambda *what: shown.append(what[:2]))
  columns |= bench.rows(subject, 'truth', range(2))
  scores = bench.scores(columns)
  for name, metric in bench.METRICS.items():
    if metric.better and name != 'lpips':
      codec, floor = scores[name]['codec'].value, scores[name]['shuffled'].value
      assert codec > floor if metric.better == 'higher' else codec < floor, name
  assert scores['psnr']['truth'].value == pytest.approx(120) and 30 < scores['psnr']['codec'].value < 45
  assert 'lpips' not in scores and shown == [('codec', i) for i in range(2)]
  alone = bench.rows(subject, 'codec', [1])
  assert alone['codec'][0] == columns['codec'][1] and alone['shuffled'][0] == columns['shuffled'][1]


def test_lpips_runs_with_the_users_weights(tmp_path):
  rng, flat, inputs = np.random.default_rng(0), {}, 3
  for n, (outputs, side) in zip((0, 3, 6, 8, 10), ((64, 11), (192, 5), (384, 3), (256, 3), (256, 3))):
    flat |= {f'features.{n}.weight': .05 * rng.standard_normal((outputs, inputs, side, side), np.float32),
             f'features.{n}.bias': np.zeros(outputs, np.float32)}
    inputs = outputs
  safetensors.numpy.save_file(flat, tmp_path / 'alexnet.safetensors')
  lpips = reconstruction._lpips(str(tmp_path / 'alexnet.safetensors'), '')
  true = rng.integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
  made = dataclasses.replace(Clip(video=true, fps=8.), video=np.clip(true + rng.normal(0, 9, true.shape), 0, 255)
                             .astype(np.uint8))
  assert reconstruction.measure(made, Clip(video=true, fps=8.), lpips)['lpips'] > 0
  assert reconstruction.measure(made, made, lpips)['lpips'] < 1e-9

  def network():
    weights = str(tmp_path / 'alexnet.safetensors')
    return evaluate.judged('roundtrip', 'reconstruction', {'lpips_weights': weights})[1].network
  before = network()
  safetensors.numpy.save_file(flat | {'features.0.bias': np.ones(64, np.float32)}, tmp_path / 'alexnet.safetensors')
  assert before != network() != ''


def test_without_codecs_there_is_nothing_to_measure():
  assert Reconstruction().parts(Subject('truth')) == ()
  with pytest.raises(ValueError, match='truth has no codecs'):
    Reconstruction().fitted(Subject('truth'))


class Exact:
  """A codec of sound that loses nothing."""
  sample_rate, channels = 8000, 1

  def reconstruct(self, audio):
    assert audio.shape[1] == self.channels
    return audio


def test_the_ceiling_is_that_of_the_codecs_rate_and_channels():
  subject = Subject('exact', codecs=(None, Exact()))
  bench = dataclasses.replace(Reconstruction(num_clips=1).fitted(subject), scenes=World(num_frames=17, sample_rate=16000))
  truth, codec = (bench.rows(subject, part, [0])[part][0].values for part in ('truth', 'codec'))
  assert truth['log_mel'] == codec['log_mel'] == 0 and truth['stft'] == codec['stft'] == 0
