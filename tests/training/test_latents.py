import errno
import json
import os
import pickle
import threading

import jax
import numpy as np
import pytest

from veojax.data.latents import LatentCache
from veojax.data.packing import PackConfig
from veojax.data.pipeline import RowSource, make_iterator
from veojax.training import latents, watch
from veojax.training.latents import CacheConfig
from veojax.types import Clip

CONFIG = CacheConfig(shard_tokens=64, chunk_tokens=8)


class Data:
  """Clips of any shape; some without picture, some without sound, one with neither."""

  def __init__(self, n=30, seed=0):
    rng = np.random.default_rng(seed)
    frames, samples = rng.integers(1, 14, n), rng.integers(1, 90, n)
    frames[[2, 5]], samples[[5, 6]] = 0, 0
    self.index = {'num_frames': frames, 'height': rng.integers(8, 30, n) * (frames > 0),
                  'width': rng.integers(8, 30, n) * (frames > 0), 'fps': rng.integers(5, 30, n) * 1.0,
                  'num_samples': samples, 'sample_rate': np.full(n, 100), 'channels': np.full(n, 2)}
    self.info = {'config': {'seed': seed}}

  def __len__(self):
    return len(self.index['fps'])

  def text(self, i):
    return f'clip {i} – 球' * (i % 3)

  def __getitem__(self, i):
    rng = np.random.default_rng(i)
    t, h, w, r = (int(self.index[k][i]) for k in ('num_frames', 'height', 'width', 'num_samples'))
    return Clip(rng.integers(0, 256, (t, h, w, 3), dtype=np.uint8) if t else None,
                rng.uniform(-1, 1, (r, 2)).astype(np.float32) if r else None, float(self.index['fps'][i]), 100,
                self.text(i))


class Video:
  """Causal averages over 4 x 8 x 8 cells, in three channels."""
  temporal_compression, spatial_compression, mean_C = 4, 8, np.zeros(3)

  def __init__(self, name='v', fail_at=None):
    self.name, self.fail_at, self.calls, self.lock, self.devices = name, fail_at, 0, threading.Lock(), set()

  def hash(self):
    return self.name

  def on(self, device):
    self.devices.add(device)
    return self

  def latent_shape(self, num_frames, height, width):
    return 1 + -(-(num_frames - 1) // 4), -(-height // 8), -(-width // 8), 3

  def encode(self, video):
    with self.lock:
      if self.calls == self.fail_at:
        raise KeyboardInterrupt
      self.calls += 1
    t, h, w, _ = self.latent_shape(*video.shape[:3])
    T, H, W = video.shape[:3]
    video = np.pad(video, ((3, 4 * t - 3 - T), (0, 8 * h - H), (0, 8 * w - W), (0, 0)), 'edge')
    return video.reshape(t, 4, h, 8, w, 8, 3).mean((1, 3, 5), dtype=np.float32) / 128 - 1


class Audio:
  sample_rate, channels, latent_rate, mean_C = 100, 1, 10.0, np.zeros(10)

  def __init__(self, name='a'):
    self.name = name

  def hash(self):
    return self.name

  def on(self, device):
    return self

  def latent_length(self, num_samples):
    return -(-num_samples // 10)

  def encode(self, audio):
    assert audio.shape[1] == 1
    return np.pad(audio[:, 0], (0, -len(audio) % 10)).reshape(-1, 10)


def write(path, data=None, video=None, audio=None, **kwargs):
  codecs = video or Video(), audio or Audio()
  return latents.write(path, data or Data(), *codecs, config=CONFIG, progress=False, **kwargs)


def equal(a, b):
  assert len(a) == len(b)
  for i in range(len(a)):
    for got, want in zip(a[i], b[i]):
      assert (got is None) == (want is None)
      if isinstance(want, np.ndarray):
        np.testing.assert_allclose(got, want, atol=1e-3)
      else:
        assert got == want
    assert a.text(i) == b.text(i)
  for got, want in zip(a.lengths, b.lengths):
    np.testing.assert_array_equal(got, want)


def test_the_cache_holds_what_encoding_at_access_gives(tmp_path):
  equal(write(tmp_path / 'cache'), latents.EncodedSource(Data(), Video(), Audio()))
  equal(LatentCache.open(tmp_path / 'cache', 'v', 'a'), latents.EncodedSource(Data(), Video(), Audio()))


def test_a_data_set_is_known_by_the_files_it_was_prepared_from():
  world, folder, changed = Data(), Data(), Data()
  world.info, folder.info['source'], changed.info['source'] = world.info | {'source': None}, 'a', 'b'
  assert latents.fingerprint(Data()) == latents.fingerprint(world)
  assert len({latents.fingerprint(data) for data in (world, folder, changed)}) == 3


def test_all_devices_encode_where_there_are_clips_enough(tmp_path, monkeypatch):
  for least, devices in ((1, jax.local_devices()), (len(Data()) // 2, jax.local_devices()[:2])):
    monkeypatch.setattr(latents, 'CLIPS_A_DEVICE', least)
    video = Video()
    write(tmp_path / f'{least}', video=video)
    assert video.devices == set(devices) and len(devices) in (2, 8)


def test_stills_are_frames_encoded_alone(tmp_path):
  cache, data = write(tmp_path / 'c', num_stills=2), Data()
  for i in range(len(data)):
    got, want = cache[i], latents.EncodedSource(Data(), Video(), Audio(), num_stills=2)[i]
    assert [s.time for s in got.stills] == [s.time for s in want.stills]
    assert len(got.stills) == (2 if data.index['num_frames'][i] > 1 else 0)
    for a, b in zip(got.stills, want.stills):
      np.testing.assert_allclose(a.latent, b.latent, atol=1e-3)
      frame = round(a.time * got.fps)
      np.testing.assert_allclose(b.latent, Video().encode(data[i].video[frame:frame + 1])[0])
    if got.video is not None:
      np.testing.assert_allclose(got.video, want.video, atol=1e-3)
  with pytest.raises(ValueError, match='2 stills a clip, the tasks want 0'):
    write(tmp_path / 'c')


@pytest.mark.parametrize('codecs', [(Video(), None), (None, Audio())])
def test_one_codec_alone(tmp_path, codecs):
  cache = latents.write(tmp_path / 'c', Data(), *codecs, config=CONFIG, progress=False)
  equal(cache, latents.EncodedSource(Data(), *codecs))


def test_processes_write_one_cache(tmp_path):
  """In the order in which the last process comes first, and with a process more in a second start."""
  assert write(tmp_path / 'c', process_index=2, process_count=3) is None
  with pytest.raises(ValueError, match='not finished: .* of '):
    LatentCache.open(tmp_path / 'c', 'v', 'a')
  assert write(tmp_path / 'c', process_index=0, process_count=3) is None
  for p in range(4):
    cache = write(tmp_path / 'c', process_index=p, process_count=4)
  equal(cache, latents.EncodedSource(Data(), Video(), Audio()))


@pytest.mark.parametrize('fail_at', [0, 7, 25])
def test_an_interrupted_run_goes_on_and_encodes_only_what_is_missing(tmp_path, fail_at):
  with pytest.raises(KeyboardInterrupt):
    write(tmp_path / 'c', video=Video(fail_at=fail_at))
  done = {int(p) for p in os.listdir(tmp_path / 'c' / 'parts')}
  again = Video()
  equal(write(tmp_path / 'c', video=again), latents.EncodedSource(Data(), Video(), Audio()))
  layout = latents._layout(latents.EncodedSource(Data(), Video(), Audio()), CONFIG.shard_tokens)
  kept = [i for p in done for i in range(layout.parts[p], layout.parts[p + 1])]
  assert again.calls == sum(Data().index['num_frames'] > 0) - sum(Data().index['num_frames'][kept] > 0)
  assert (fail_at < 25) or done
  idle = Video()
  write(tmp_path / 'c', video=idle)
  assert idle.calls == 0


def test_no_two_parts_share_a_file(tmp_path):
  source = latents.EncodedSource(Data(200), Video(), Audio())
  lengths, layout = source.lengths, latents._layout(source, CONFIG.shard_tokens)
  for name, tokens in (('video', lengths.video.prod(1)), ('audio', lengths.audio)):
    files = [{s // 64 for i in range(a, b) for s in range(layout.start[name][i], layout.start[name][i] + tokens[i])}
             for a, b in zip(layout.parts, layout.parts[1:])]
    assert sum(map(len, files)) == len(set().union(*files))
  assert layout.parts[0] == 0 and layout.parts[-1] == 200 and (np.diff(layout.parts) > 0).all()


def test_latents_of_other_codecs_are_refused_by_both_names(tmp_path):
  write(tmp_path / 'c')
  for hashes, names in ((('other', 'a'), ('video codec v', 'other')), (('v', ''), ('audio codec a', 'none'))):
    with pytest.raises(ValueError, match='encode again') as error:
      LatentCache.open(tmp_path / 'c', *hashes)
    assert all(name in str(error.value) for name in names)
  with pytest.raises(ValueError, match='video codec v'):
    write(tmp_path / 'c', video=Video('new'))
  with pytest.raises(ValueError, match='another data set'):
    write(tmp_path / 'c', data=Data(29))
  equal(LatentCache.open(tmp_path / 'c', 'v', 'a'), latents.EncodedSource(Data(), Video(), Audio()))


def test_what_is_not_a_cache_is_refused(tmp_path):
  with pytest.raises(ValueError, match='no latents at'):
    LatentCache.open(tmp_path / 'nothing', 'v', 'a')
  (tmp_path / 'cache.json').write_text('{')
  with pytest.raises(ValueError, match='cannot be read'):
    LatentCache.open(tmp_path, 'v', 'a')
  (tmp_path / 'cache.json').write_text(json.dumps({'format': 0}))
  with pytest.raises(ValueError, match='format'):
    LatentCache.open(tmp_path, 'v', 'a')


def test_a_path_that_cannot_be_written_to_is_refused(tmp_path):
  (tmp_path / 'file').write_text('mine')
  with pytest.raises(ValueError, match='cannot write latents'):
    write(tmp_path / 'file')
  assert (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.parametrize('call', ['makedirs', 'replace'])
def test_no_permission_is_one_line(tmp_path, monkeypatch, call):
  def refuse(*_, **__):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
  monkeypatch.setattr(os, call, refuse)
  with pytest.raises(ValueError, match='Permission denied.*another folder') as error:
    write(tmp_path / 'c')
  assert '\n' not in str(error.value)


def test_broken_latents_are_refused(tmp_path):
  class Broken(Video):
    def encode(self, video):
      return super().encode(video) * np.float32(np.nan)
  class Short(Video):
    def encode(self, video):
      return super().encode(video)[1:]
  with pytest.raises(ValueError, match='clip 0.*not finite'):
    write(tmp_path / 'a', video=Broken())
  with pytest.raises(ValueError, match='clip 0.*index'):
    write(tmp_path / 'b', video=Short())


def test_sound_of_another_rate_is_refused(tmp_path):
  data = Data()
  data.index['sample_rate'][4] = 44100
  with pytest.raises(ValueError, match='sample_rate=100'):
    write(tmp_path / 'c', data=data)


def test_a_clip_outside_is_an_index_error(tmp_path):
  cache = write(tmp_path / 'c')
  for i in (-1, len(cache)):
    with pytest.raises(IndexError):
      cache[i]


def test_training_rows_come_from_the_cache_by_threads_and_after_pickling(tmp_path):
  class Letters:
    def encode(self, text, max_length):
      return [1, *(3 + b for b in text.encode()), 2][:max_length]
  source = RowSource(write(tmp_path / 'c'), Letters(), PackConfig(128, 64, 6, 16, 10))
  want = [source[r] for r in range(6)]
  copy = RowSource(pickle.loads(pickle.dumps(source.latents)), Letters(), PackConfig(128, 64, 6, 16, 10))
  with make_iterator(copy, 0, 2, num_threads=4) as batches:
    for g in range(3):
      for got, a, b in zip(next(batches), want[2 * g], want[2 * g + 1]):
        np.testing.assert_array_equal(got, np.stack([a, b]))
  assert source.report['left out'] == 1


def test_progress_is_shown(tmp_path, capsys):
  latents.write(tmp_path / 'c', Data(7), Video(), None, config=CONFIG)
  assert 'encoding latents' in capsys.readouterr().out


def test_config_refuses_shards_that_are_not_whole_chunks():
  with pytest.raises(ValueError, match='multiple'):
    CacheConfig(shard_tokens=100, chunk_tokens=8)


def test_a_process_that_encodes_says_how_far_it_is(tmp_path):
  """So one that hangs in it is told from one that has done its part and waits."""
  class Seen(Video):
    counts = []

    def encode(self, video):
      self.counts.append(watch.Watch.in_force.own)
      return super().encode(video)
  with watch.Watch(0.0) as found:
    latents.cached(tmp_path, Data(), Seen(), Audio())
    assert None not in Seen.counts and 0 < max(Seen.counts) < len(Data())
    assert found.own is None and found.marks == 1
