"""Protocols against PyTorch's resizing, the refusal of unknown networks, and the distance from rows alone."""
import dataclasses

import numpy as np
import pytest

from veojax.evaluation import fvd
from veojax.evaluation.benchmark import Row, Subject
from veojax.evaluation.frechet import Moments, distance
from veojax.evaluation.set_distance import NUM_BLOCKS
from veojax.evaluation.fvd import FVD, PROTOCOLS
from veojax.zoo import i3d, origin


class Pixels:
  """In place of the network: the pixels that it would see."""

  def __call__(self, video_BTHWC, epsilon):
    return video_BTHWC


def seen(monkeypatch, video, protocol):
  monkeypatch.setattr(fvd, '_logits', fvd._logits.__wrapped__)
  return fvd.features(Pixels(), video, PROTOCOLS[protocol])


@pytest.mark.parametrize('height, width', [(40, 60), (300, 260)])
@pytest.mark.parametrize('protocol', list(PROTOCOLS))
def test_pixels_are_those_of_the_protocols(monkeypatch, protocol, height, width):
  torch = pytest.importorskip('torch', reason="PyTorch is not installed: pip install -e '.[parity]'")
  video = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
  got = seen(monkeypatch, video, protocol)
  x = torch.tensor(video).permute(0, 3, 1, 2).float() / 255
  resize = lambda size: torch.nn.functional.interpolate(x, size=size, mode='bilinear', align_corners=False)
  if protocol == 'videogpt':
    scale = 224 / min(height, width)
    size = (224, int(np.ceil(width * scale))) if height < width else (int(np.ceil(height * scale)), 224)
    want = resize(size)
    top, left = (want.shape[2] - 224) // 2, (want.shape[3] - 224) // 2
    want = want[:, :, top:top + 224, left:left + 224]
  elif protocol == 'google':
    # Corners at 0: as PyTorch samples a grid whose first point is the first pixel's centre.
    y, x_at = (torch.clip(torch.arange(224) * (n / 224), max=n - 1) / (n - 1) * 2 - 1 for n in (height, width))
    grid = torch.stack(torch.meshgrid(y, x_at, indexing='ij')[::-1], -1)[None].expand(2, -1, -1, -1)
    want = torch.nn.functional.grid_sample(x, grid.float(), mode='bilinear', align_corners=True)
  else:
    want = resize((224, 224))
  assert got.shape == (2, 224, 224, 3)
  np.testing.assert_allclose(got, 2 * want.permute(0, 2, 3, 1).numpy() - 1, atol=2e-4)


def test_frames_that_are_looked_at():
  video = np.arange(40)
  first = FVD(num_frames=12, stride=2, protocol='fastvideo')
  assert first.window(video, 3, True).tolist() == first.window(video, 3, False).tolist() == list(range(0, 24, 2))
  anywhere = FVD(num_frames=12, protocol='stylegan-v')
  starts = {int(anywhere.window(video, i, True)[0]) for i in range(50)}
  assert len(starts) > 10 and max(starts) <= 28 and anywhere.window(video, 7, False)[0] == 0
  assert anywhere.window(video, 7, True).tolist() == anywhere.window(video, 7, True).tolist()
  assert anywhere.window(video[:11], 0, True) is None
  with pytest.raises(ValueError, match='takes 11'):
    FVD(num_frames=10, protocol='videogpt')


@pytest.fixture
def unknown(tmp_path):
  path = tmp_path / 'i3d.safetensors'
  origin.write({'x': np.zeros(1, np.float32)}, path, {'sha256': 'ab' * 32})
  return str(path)


def test_other_networks_are_refused_and_never_called_fvd_or_kvd(unknown, tmp_path):
  fvd.load.cache_clear()
  with pytest.raises(ValueError, match='needs the weights of its I3D: i3d_torchscript.pt .*veojax.zoo.origin'):
    FVD().fitted(Subject('truth'))
  with pytest.raises(ValueError, match='unknown network .*abab.* FVD is by'):
    fvd.load(unknown, False)
  assert list(FVD(weights=unknown, allow_unknown_weights=True).METRICS) == [
      'frechet-i3d/stylegan-v', 'frechet-i3d/stylegan-v/halves', 'mmd-i3d/stylegan-v', 'mmd-i3d/stylegan-v/halves']
  with pytest.raises(ValueError, match='no I3D under any'):
    fvd.load(unknown, True)  # allowed, and then read
  sha256 = next(key for key in i3d.OTHERS if key.startswith('sha256')).removeprefix('sha256:')
  imagenet, true = tmp_path / 'imagenet.safetensors', tmp_path / 'true.safetensors'
  origin.write({'x': np.zeros(1, np.float32)}, imagenet, {'sha256': sha256})
  with pytest.raises(ValueError, match='rgb_imagenet.pt .*FVD is by'):
    fvd.load(str(imagenet), False)
  sha256 = next(iter(i3d.FVD)).removeprefix('sha256:')
  origin.write({'x': np.zeros(1, np.float32)}, true, {'sha256': sha256})
  assert list(FVD(weights=str(true), protocol='google').METRICS) == [
      'fvd/google', 'fvd/google/halves', 'kvd/google', 'kvd/google/halves']


def rows(seed, count, shift=0., dim=5):
  x = np.random.default_rng(seed).normal(shift, 1, (count, dim))
  return [Row(i, kept={'logits': [x[i].tolist()]}) for i in range(count)], x


def test_the_distance_and_its_floor_come_from_rows_alone(unknown):
  (made, x), (true, y) = rows(0, 60, .5), rows(1, 60)
  made[7].kept = {}  # a clip that was too short
  scores = FVD(num_clips=60, weights=unknown, allow_unknown_weights=True).scores({'made': made, 'truth': true})
  whole, = scores['frechet-i3d/stylegan-v'].values()  # no floor of fewer clips beside it
  value = distance(Moments.of(np.delete(x, 7, 0)), Moments.of(y))
  assert whole.value == pytest.approx(value) and whole.coverage == pytest.approx(59 / 60) and whole.num_clips == 60
  assert whole.low < value < whole.high
  halves = scores['frechet-i3d/stylegan-v/halves']
  assert {column: score.num_clips for column, score in halves.items()} == {'made': 30, 'truth': 30}
  assert halves['truth'].value < halves['made'].value
  assert FVD().scores({'made': made}) == {}


def test_a_perfect_model_gets_the_floor_of_as_many_clips():
  """Of all clips it lies below a floor of half as many, whose bias is twice as large."""
  gaps, wholes = [], []
  for seed in range(20):
    (made, _), (true, _) = rows(2 * seed, 64, dim=8), rows(2 * seed + 1, 64, dim=8)
    whole, halves, *_ = FVD().scores({'made': made, 'truth': true}).values()
    gaps.append(halves['made'].value / halves['truth'].value)
    wholes.append(whole['made'].value / halves['truth'].value)
  assert np.mean(gaps) == pytest.approx(1, abs=.1) and np.mean(wholes) < .7


def squared_discrepancy(x, y):
  """By its definition, pair by pair, under the cubic kernel."""
  kernel = lambda a, b: (np.dot(a, b) / len(a) + 1) ** 3
  within = lambda z: np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])
  return within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def test_the_kernels_distance_is_its_definition_over_the_clips(unknown):
  (made, x), (true, y) = rows(0, 40, .5), rows(1, 40)
  made[7].kept = {}
  scores = FVD(num_clips=40, weights=unknown, allow_unknown_weights=True).scores({'made': made, 'truth': true})
  whole, = scores['mmd-i3d/stylegan-v'].values()
  assert whole.value == pytest.approx(squared_discrepancy(np.delete(x, 7, 0), y), rel=1e-9)
  assert whole.low < whole.value < whole.high and whole.coverage == pytest.approx(39 / 40)
  halves = scores['mmd-i3d/stylegan-v/halves']
  assert set(halves) == {'made', 'truth'} and halves['made'].value > halves['truth'].high


def test_the_kernels_distance_of_equal_distributions_is_zero_in_the_mean():
  """Of halves as of all, however few the clips, and to either side of it: it is unbiased."""
  found = []
  for seed in range(60):
    (made, _), (true, _) = rows(2 * seed, NUM_BLOCKS, dim=3), rows(2 * seed + 1, NUM_BLOCKS, dim=3)
    _, _, whole, halves = FVD().scores({'made': made, 'truth': true}).values()
    found.append([whole['made'].value, halves['made'].value, halves['truth'].value])
  found = np.array(found)
  assert (np.abs(found.mean(0)) < 3 * found.std(0) / np.sqrt(len(found))).all()
  assert (found.min(0) < 0).all() and (found.max(0) > 0).all()


def test_features_are_summed_as_they_are_read(monkeypatch):
  (made, x), (true, y) = rows(0, 50, .5), rows(1, 50)
  parts, alive = [{'made': made[i:i + 7], 'truth': true[i:i + 7]} for i in range(0, 50, 7)], []

  def reading():
    for part in parts:
      alive.append(part)
      yield part
      for row in (row for column in part.values() for row in column):
        row.kept.clear()  # what was read is needed no more
  whole = FVD().scores({'made': list(map(copied, made)), 'truth': list(map(copied, true))})
  columns, scores = FVD().read(reading())
  assert len(alive) == len(parts) and [row.index for row in columns['made']] == list(range(50))
  assert not any(row.kept for column in columns.values() for row in column)
  for metric in whole:
    for column, score in whole[metric].items():
      np.testing.assert_allclose(scores[metric][column], score, rtol=1e-9)


def copied(row):
  return dataclasses.replace(row, kept=dict(row.kept))


def test_the_interval_covers_the_spread_of_other_draws():
  found, covered = [], 0
  for seed in range(40):
    (made, _), (true, _) = rows(2 * seed, 40, 1.), rows(2 * seed + 1, 40)
    found.append(FVD().scores({'made': made, 'truth': true})['frechet-i3d/stylegan-v']['made'])
  centre = np.mean([s.value for s in found])
  covered = np.mean([s.low <= centre <= s.high for s in found])
  assert .8 < covered <= 1
