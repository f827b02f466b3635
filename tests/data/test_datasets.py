"""What is stored comes back, through TFDS and without TensorFlow, from any thread and after pickling."""
import base64
import concurrent.futures
import dataclasses
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from veojax.data import datasets, media, world_clip
from veojax.data.world import WorldConfig
from veojax.types import Clip

RNG = np.random.default_rng(0)


def video(*shape):
  return RNG.integers(0, 256, (*shape, 3), np.uint8)


def audio(*shape):
  return RNG.uniform(-1, 1, shape).astype(np.float32)


CLIPS = [
    Clip(video=video(5, 6, 8), audio=audio(700, 2), fps=7.5, sample_rate=1050, text='both',
         info={'a': [1, {'b': None}]}),
    Clip(video=video(1, 33, 17), fps=24.0, text='an image: 球'),
    Clip(audio=audio(300, 1), sample_rate=8000, text=''),
    Clip(video=video(1, 1, 2), audio=audio(1, 1), fps=1.0, sample_rate=16000, text='the smallest'),
    Clip(video=video(9, 4, 4), audio=audio(9, 6), fps=30000 / 1001, sample_rate=48000, text='x' * 10000)]


def assert_same(clip, expected):
  for name in ('video', 'audio'):
    one, other = getattr(clip, name), getattr(expected, name)
    assert (one is None) == (other is None)
    if one is not None:
      assert one.dtype == other.dtype
      np.testing.assert_array_equal(one, other)
  assert clip.text == expected.text and clip.info == expected.info
  assert np.float32(clip.fps) == np.float32(expected.fps) and clip.sample_rate == expected.sample_rate


@pytest.mark.parametrize('clip', CLIPS, ids=lambda clip: clip.text[:10])
def test_a_decoded_example_is_exact(clip):
  assert_same(datasets.deserialize(datasets.serialize('id', clip)), clip)


@pytest.mark.parametrize('clip, format', [
    (Clip(video=np.full((7, 19, 23, 3), 100, np.uint8), audio=np.zeros((4000, 2), np.float32), fps=14.0,
          sample_rate=8000), 'mp4'),
    (Clip(video=video(1, 9, 11), fps=24.0), 'png'), (Clip(audio=audio(999, 2), sample_rate=8000), 'flac')])
def test_a_compressed_example_has_the_sizes_of_its_clip(clip, format):
  clip.text = 'kept'
  back = datasets.deserialize(datasets.serialize('id', clip, media.encode(clip, format)))
  assert datasets.sizes(back) == datasets.sizes(clip) and back.text == 'kept'
  if clip.video is not None:
    assert np.abs(back.video.astype(int) - clip.video).mean() < 3
  if clip.audio is not None:
    assert np.abs(back.audio - clip.audio).max() < 1e-3


@pytest.fixture(scope='module')
def output(tmp_path_factory):
  """A data set of CLIPS, written by the builder in two shards."""
  output = tmp_path_factory.mktemp('data')
  rows = [(i, datasets.serialize(str(i), clip)) for i, clip in enumerate(CLIPS)]
  datasets.write('folder', output, {'train': [lambda: iter(rows[:2]), lambda: iter(rows[2:])]})
  sizes = [datasets.sizes(clip) for clip in CLIPS]
  np.savez(output / 'index-train.npz', **{k: np.asarray([s[k] for s in sizes], t) for k, t in datasets.INDEX.items()})
  (output / 'prepare.json').write_text('{"name": "folder"}')
  return output


def test_the_data_set_gives_the_clips_in_order(output):
  dataset = datasets.open_dataset(output)
  assert len(dataset) == len(CLIPS) and dataset.info['name'] == 'folder'
  for i, expected in enumerate(CLIPS):
    assert_same(dataset[i], expected)
    assert dataset.text(np.int64(i)) == expected.text
    assert {key: array[i] for key, array in dataset.index.items()} == pytest.approx(datasets.sizes(expected))
  for i in (-1, len(CLIPS)):
    with pytest.raises(IndexError):
      dataset[i]


def test_threads_and_pickles_read_the_same(output):
  dataset = datasets.open_dataset(output)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:  # the first read of all is concurrent
    for i, clip in zip(list(range(5)) * 20, pool.map(dataset.__getitem__, list(range(5)) * 20)):
      assert_same(clip, CLIPS[i])
  assert_same(pickle.loads(pickle.dumps(dataset))[4], CLIPS[4])


def test_tfds_reads_it_without_us(output):
  source = tfds.builder_from_directory(output / 'folder' / '1.0.0').as_data_source(split='train')
  np.testing.assert_array_equal(source[0]['video'], CLIPS[0].video)
  assert [example['text'].decode() for example in source] == [clip.text for clip in CLIPS]
  assert [path.name for path in output.joinpath('folder').iterdir()] == ['1.0.0']


def test_reading_needs_neither_tensorflow_nor_pyav_nor_jax(output):
  code = (f'import sys; sys.path[:] = {sys.path!r}\nfrom veojax.data import datasets\n'
          f'print(datasets.open_dataset({str(output)!r})[0].text)\n'
          'print([name for name in ("tensorflow", "av", "jax") if name in sys.modules])')
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout.split('\n')[:2] == ['both', '[]']


def test_what_is_not_there_is_said_with_the_remedy(output, tmp_path):
  with pytest.raises(ValueError, match='does not exist; run: veojax prepare'):
    datasets.open_dataset(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match='holds no prepared data set; run: veojax prepare'):
    datasets.open_dataset(tmp_path)
  (tmp_path / 'pieces').mkdir()
  with pytest.raises(ValueError, match='is not finished; run: veojax prepare'):
    datasets.open_dataset(tmp_path)
  with pytest.raises(ValueError, match="no split 'validation', only train; .*validation_fraction"):
    datasets.open_dataset(output, 'validation')
  for bucket in ('gs://bucket/data', 's3://bucket/data'):
    with pytest.raises(ValueError, match=f'read from a disk, which {bucket} is not; .*mount the bucket .*its folder$'):
      datasets.open_dataset(bucket)


def test_sizes_of_a_clip_without_samples_are_those_of_silence():
  clip = dataclasses.replace(CLIPS[1], audio=np.zeros((0, 2), np.float32), sample_rate=8000)
  assert datasets.sizes(clip) == datasets.sizes(CLIPS[1])
  assert datasets.deserialize(datasets.serialize('id', clip)).audio is None


@pytest.mark.parametrize('stored', ['decoded', 'compressed', 'a scene'])
def test_a_clip_plays_in_a_notebook(stored):
  """With the sizes and the rate that it has, larger by whole pixels."""
  world = WorldConfig(num_frames=5, height=16, width=24, sample_rate=8000)
  clip = world_clip.make(3, world)
  held = {'decoded': None, 'compressed': media.encode(clip, 'mp4'), 'a scene': datasets.scene(3, world)}[stored]
  shown = datasets.deserialize(datasets.serialize('id', clip, held))._repr_html_()
  info = media.probe(base64.b64decode(re.search('data:video/mp4;base64,([^"]*)', shown)[1]))
  assert (info.num_frames, info.fps, info.has_audio) == (5, clip.fps, True)
  assert info.width % 24 == 0 and info.width * 16 == info.height * 24
