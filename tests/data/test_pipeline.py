import os
import pickle
import subprocess
import sys

import cloudpickle
import numpy as np
import pytest

from veojax.data import pipeline
from veojax.data.latent_clip import LatentClip
from veojax.data.packing import PackConfig
from veojax.types import Clip

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the fakes below travel to Grain's worker processes


class Data:
  """Clips whose pixels and samples say which clip, frame and sample they are."""

  def __init__(self, n=9, rate=100):
    self.index = {
        'num_frames': np.array([0 if i % 4 == 3 else 5 + i for i in range(n)]), 'height': np.full(n, 10),
        'width': np.array([6 + i for i in range(n)]), 'fps': np.full(n, 8.0),
        'num_samples': np.array([0 if i % 4 == 1 else 30 + i for i in range(n)]), 'sample_rate': np.full(n, rate),
        'channels': np.full(n, 2)}

  def __len__(self):
    return len(self.index['fps'])

  def text(self, i):
    return 'word ' * (i % 5)

  def __getitem__(self, i):
    t, h, w, r = (int(self.index[k][i]) for k in ('num_frames', 'height', 'width', 'num_samples'))
    video = np.full((t, h, w, 3), i, np.uint8) if t else None
    if t:
      video[..., 1] = np.arange(t)[:, None, None]
    audio = np.stack([np.full(r, i), np.arange(r)], 1).astype(np.float32) if r else None
    return Clip(video, audio, fps=8.0 if t else 0.0, sample_rate=100 if r else 0)


class Latents:
  """Clips whose latents say which clip they are."""

  def __init__(self, n=23, seed=0):
    rng = np.random.default_rng(seed)
    video = np.stack([rng.integers(1, 5, n), np.full(n, 2), rng.integers(2, 5, n)], 1)
    video[::5] = 0
    self.lengths = pipeline.Lengths(video, rng.integers(1, 9, n))

  def __len__(self):
    return len(self.lengths.audio)

  def text(self, i):
    return 'a b c d e'[:i % 9]

  def __getitem__(self, i):
    shape, sound = self.lengths.video[i], self.lengths.audio[i]
    video = np.full((*shape, 4), i + 1.0, np.float16) if shape.all() else None
    return LatentClip(video, np.full((sound, 3), i + 1.0, np.float16), (), 8.0, 16, 16, 4, 8, 25.0, self.text(i))


class Words:

  def encode(self, text, max_length):
    return ([1] + [3 + ord(c) for c in text if c != ' '] + [2])[:max_length]


PACK = PackConfig(row_tokens=96, text_tokens=32, max_clips=5, max_text=8, channels=4)
SOURCES = {
    'crop': lambda: pipeline.CropSource(Data(), 4, 8, 8, seed=1),
    'sound': lambda: pipeline.SoundSource(Data(), 16, 1, 100, seed=1),
    'rows': lambda: pipeline.RowSource(Latents(), Words(), PACK, seed=1, caption_dropout=0.3),
}


def equal(a, b):
  a, b = (x if isinstance(x, dict) else x._asdict() for x in (a, b))
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


def take(source, batches, start=0, size=4, **kwargs):
  with pipeline.make_iterator(source, start, size, **kwargs) as iterator:
    out = [next(iterator) for _ in range(batches)]
    assert iterator.next_row == start + batches * size
  return out


@pytest.mark.parametrize('name', SOURCES)
@pytest.mark.parametrize('num_threads', [0, 1, 7])
def test_batches_are_the_rows_in_order_whatever_the_threads(name, num_threads):
  source = SOURCES[name]()
  for g, batch in enumerate(take(source, 6, start=5, num_threads=num_threads)):
    equal(batch, pipeline.stack([source[5 + 4 * g + j] for j in range(4)]))


@pytest.mark.parametrize('num_workers', [1, 2])
def test_batches_are_the_rows_in_order_whatever_the_workers(num_workers):
  source = SOURCES['rows']()
  for g, batch in enumerate(take(source, 5, start=3, num_threads=2, num_workers=num_workers)):
    equal(batch, pipeline.stack([source[3 + 4 * g + j] for j in range(4)]))


@pytest.mark.parametrize('name', SOURCES)
def test_resuming_at_any_row_goes_on_exactly(name):
  whole = take(SOURCES[name](), 12, size=1, num_threads=3)
  for row in range(12):
    for got, want in zip(take(SOURCES[name](), 3, start=row, size=1, num_threads=row % 3), whole[row:]):
      equal(got, want)


@pytest.mark.parametrize('name', SOURCES)
@pytest.mark.parametrize('shares', [([0, 1], [2, 3]), ([0], [1, 2], [3])])
def test_processes_share_each_batch(name, shares):
  whole = take(SOURCES[name](), 4, start=7, num_threads=2)
  parts = [take(SOURCES[name](), 4, start=7, num_threads=2, positions=positions) for positions in shares]
  for g, want in enumerate(whole):
    stacked = [part[g] if isinstance(part[g], dict) else part[g]._asdict() for part in parts]
    joined = {k: np.concatenate([p[k] for p in stacked]) for k in stacked[0]}
    equal(joined, want if isinstance(want, dict) else want._asdict())


@pytest.mark.parametrize('start', [0, 2])
def test_nothing_is_lost_or_twice_within_an_epoch(start):
  source = SOURCES['rows']()
  n = source.rows_per_epoch
  rows = [r for batch in take(source, 3 * n, start=start, size=2) for r in batch.latent]
  for epoch in range(1, 5):
    seen = [v for row in rows[epoch * n - start:(epoch + 1) * n - start] for v in np.unique(row[:, 0]) if v]
    assert sorted(seen) == [i + 1.0 for i in range(23)]
  crop = SOURCES['crop']()
  for epoch in range(3):
    seen = [int(crop[epoch * crop.rows_per_epoch + r]['video'][0, 0, 0, 0]) for r in range(crop.rows_per_epoch)]
    assert sorted(seen) == [0, 1, 2, 4, 5, 6, 8]


def test_an_epoch_is_shuffled_anew():
  source = SOURCES['crop']()
  order = [[int(source[e * 7 + r]['video'][0, 0, 0, 0]) for r in range(7)] for e in range(4)]
  assert len({tuple(o) for o in order}) > 1


def test_crops_are_windows_continued_by_their_edge():
  source = pipeline.CropSource(Data(), 9, 12, 8)
  starts = set()
  for row in range(40):
    video = source[row]['video']
    assert video.shape == (9, 12, 8, 3) and video.dtype == np.uint8
    clip, frames = video[0, 0, 0, 0], video[:, 0, 0, 1].astype(int)
    assert (video[..., 0] == clip).all() and (np.diff(frames) >= 0).all()
    np.testing.assert_array_equal(frames, np.minimum(frames[0] + np.arange(9), 4 + clip))
    starts.add((clip, frames[0]))
  assert len(starts) > 10


def test_sound_is_a_window_mixed_to_the_channels_and_ends_in_silence():
  for channels, expected in ((1, 1), (2, 2)):
    source = pipeline.SoundSource(Data(), 33, channels, 100)
    for row in range(14):
      audio = source[row]['audio']
      assert audio.shape == (33, expected) and audio.dtype == np.float32
      last = 33 if channels == 1 else np.flatnonzero(audio[:, 1])[-1] + 1
      if channels == 2:
        np.testing.assert_array_equal(np.diff(audio[:last, 1]), 1)
        assert not audio[last:].any()


def test_sources_without_anything_to_train_on_are_refused():
  data = Data()
  data.index['num_frames'][:] = 0
  data.index['num_samples'][:] = 0
  with pytest.raises(ValueError, match='picture'):
    pipeline.CropSource(data, 4, 8, 8)
  with pytest.raises(ValueError, match='sound'):
    pipeline.SoundSource(data, 16, 1, 100)
  with pytest.raises(ValueError, match='sample_rate=50'):
    pipeline.SoundSource(Data(), 16, 1, 50)


def test_captions_are_dropped_at_their_rate_and_differ_by_epoch():
  latents = Latents(200)
  full, dropped, none = (pipeline.RowSource(latents, Words(), PACK, caption_dropout=p) for p in (0.0, 0.3, 1.0))
  def words(source, epoch):
    rows = range(epoch * source.rows_per_epoch, (epoch + 1) * source.rows_per_epoch)
    return sum(int((source[r].text > 2).sum()) for r in rows)
  assert words(none, 0) == 0
  assert words(full, 0) == words(full, 1) > 0
  assert 0.55 < words(dropped, 0) / words(full, 0) < 0.85
  assert words(dropped, 0) != words(dropped, 1)


def test_clips_too_long_are_cut_and_those_that_cannot_fit_are_left_out_and_counted(caplog):
  latents = Latents()
  latents.lengths.video[1], latents.lengths.video[2] = (50, 2, 2), (1, 10, 10)
  latents.lengths.video[5], latents.lengths.audio[5] = (0, 0, 0), 0
  source = pipeline.RowSource(latents, Words(), PACK, caption_dropout=0.0)
  assert (source.report['left out'], source.report['cut'], source.report['clips']) == (2, 1, 21)
  assert '1 clips cut' in caplog.text and '2 left out' in caplog.text
  seen = np.concatenate([np.unique(source[r].latent[:, 0]) for r in range(source.rows_per_epoch)])
  assert sorted(seen[seen > 0] - 1) == [i for i in range(23) if i not in (2, 5)]
  latents.lengths.audio[:] = 0
  with pytest.raises(ValueError, match='row_tokens'):
    pipeline.RowSource(latents, Words(), PackConfig(row_tokens=3, text_tokens=2, max_text=2))


def test_sources_travel_to_other_processes():
  source = SOURCES['rows']()
  source[0]
  equal(pickle.loads(cloudpickle.dumps(source))[2], source[2])


@pytest.mark.parametrize('kwargs', [dict(positions=[3, 4]), dict(positions=[]), dict(batch_size=0), dict(start_row=-1)])
def test_impossible_batches_are_refused(kwargs):
  with pytest.raises(ValueError):
    pipeline.make_iterator(SOURCES['crop'](), **{'start_row': 0, 'batch_size': 4, **kwargs})


def test_an_error_while_reading_reaches_the_caller():
  class Broken:
    rows_per_epoch = 5
    def __getitem__(self, row):
      if row == 5:
        raise OSError(f'row {row} cannot be read')
      return {'x': np.zeros(2)}
  with pipeline.make_iterator(Broken(), 0, 2, num_threads=3) as iterator:
    next(iterator)
    next(iterator)
    with pytest.raises(OSError, match='row 5'):
      next(iterator)
    assert iterator.next_row == 4


def test_closed_batches_say_so():
  with pipeline.make_iterator(SOURCES['crop'](), 3, 2, num_threads=1) as iterator:
    next(iterator)
  iterator.close()
  with pytest.raises(ValueError, match='row 5'):
    next(iterator)


def test_importing_the_data_layer_brings_neither_jax_nor_pyav():
  code = ('import sys, veojax.data.pipeline, veojax.data.latents\n'
          'assert not {"jax", "av", "grain", "tensorflow_datasets"} & set(sys.modules), sys.modules.keys()')
  subprocess.run([sys.executable, '-c', code], check=True, env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
