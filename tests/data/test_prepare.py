"""The whole preparation: what is kept, what is named, and that no interruption or failure changes or loses anything."""
import contextlib
import dataclasses
import os
import pathlib
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from veojax.data import datasets, media
from veojax.data import output as outputs
from veojax.data.prepare import PrepareConfig, prepare
from veojax.data.tokenizer import Tokenizer
from veojax.data.world import WorldConfig
from veojax.types import Clip

pytestmark = pytest.mark.smoke

RNG = np.random.default_rng(0)
TINY = WorldConfig(height=16, width=24, num_frames=5, sample_rate=4000)
WORLD = PrepareConfig(num_clips=5, world=TINY, validation_fraction=0.2, vocab_size=400)


def film(num_frames=12, fps=12.0, height=16, width=24, sound=True):
  pattern = RNG.integers(0, 256, (height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
  audio = np.full((round(num_frames / fps * 8000), 1), 0.1, np.float32) if sound else None
  return Clip(video=np.tile(pattern, (num_frames, 1, 1, 1)), audio=audio, fps=fps, sample_rate=8000 if sound else 0)


def fill(folder: pathlib.Path, count: int, **options) -> pathlib.Path:
  folder.mkdir()
  for i in range(count):
    media.write(folder / f'{i:03d}.mp4', film(**options))
    (folder / f'{i:03d}.txt').write_text(f'caption number {i}')
  return folder


def contents(output) -> dict:
  """Everything that a prepared folder holds, to be compared."""
  found = {'model': (pathlib.Path(output) / 'text.model').read_bytes()}
  for split in ('train', 'validation'):
    with contextlib.suppress(ValueError):
      dataset = datasets.open_dataset(output, split)
      found[split] = [(clip.text, clip.info, clip.video.tobytes(), clip.audio.tobytes()) for clip in map(
          dataset.__getitem__, range(len(dataset)))]
      found[split + ' index'] = {key: value.tolist() for key, value in dataset.index.items()}
  return found


@contextlib.contextmanager
def file_size_limit(num_bytes):
  """No file of this process and its children may grow beyond: what a full disk looks like, without filling one."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  output = tmp_path_factory.mktemp('world') / 'data'
  prepare('world', output, config=WORLD, workers=1, progress=False)
  return output


def test_the_world_has_its_splits_sizes_and_captions(world):
  train, validation = (datasets.open_dataset(world, split) for split in ('train', 'validation'))
  assert (len(train), len(validation)) == (4, 1)
  assert train[0].video.shape == (5, 16, 24, 3) and train[0].audio.shape[1] == 2
  assert train[0].info['objects'] and train[0].text == train.text(0) != train.text(1)
  assert {clip.info['split'] for clip in (train[0], validation[0])} == {'train', 'test'}
  assert Tokenizer.load(train.tokenizer_path).decode(Tokenizer.load(train.tokenizer_path).encode('a red ball', 50))
  assert sorted(path.name for path in world.iterdir()) == [
      'index-train.npz', 'index-validation.npz', 'prepare.json', 'text.model', 'world']


def test_rendered_clips_are_those_that_are_stored_and_take_no_room(world, tmp_path):
  prepare('world', tmp_path / 'data', config=dataclasses.replace(WORLD, store='rendered'), workers=1, progress=False)
  assert contents(tmp_path / 'data') == contents(world)
  assert len(datasets.open_dataset(tmp_path / 'data')._record(0)) < 1000 < len(datasets.open_dataset(world)._record(0))
  with pytest.raises(ValueError, match='give decoded or compressed'):
    prepare(fill(tmp_path / 'source', 1), tmp_path / 'other', config=PrepareConfig(store='rendered'), progress=False)


@pytest.mark.parametrize('only, absent', [('picture', 'audio'), ('sound', 'video')])
@pytest.mark.parametrize('store', ['decoded', 'compressed', 'rendered'])
def test_picture_or_sound_alone(world, tmp_path, only, absent, store):
  config = dataclasses.replace(WORLD, store=store, only=only, tokenizer=str(world / 'text.model'))
  prepare('world', tmp_path / 'data', config=config, workers=1, progress=False)
  whole, part = datasets.open_dataset(world), datasets.open_dataset(tmp_path / 'data')
  assert not part.index['num_samples' if only == 'picture' else 'num_frames'].any()
  assert getattr(part[0], absent) is None and part[0].text == whole[0].text
  kept = 'video' if only == 'picture' else 'audio'
  assert len(getattr(part[0], kept)) == len(getattr(whole[0], kept))
  if store != 'compressed':
    assert np.array_equal(getattr(part[0], kept), getattr(whole[0], kept))


def test_a_file_without_what_is_kept_is_named(tmp_path):
  folder = fill(tmp_path / 'source', 2)
  media.write(folder / 'silent.mp4', film(sound=False))
  summary = prepare(folder, tmp_path / 'data', progress=False, workers=1,
                    config=PrepareConfig(vocab_size=400, only='sound', validation_fraction=0))
  assert summary.kept == 2 and summary.rejected['without sound']['count'] == 1
  assert 'without picture' not in summary.notes
  with pytest.raises(ValueError, match="only='words'"):
    PrepareConfig(only='words')


def test_a_second_time_it_is_already_prepared(world, capsys):
  before = {path: path.stat().st_mtime_ns for path in world.rglob('*')}
  summary = prepare('world', world, config=WORLD)
  assert summary.already and summary.kept == 5
  assert 'already prepared' in ' '.join(capsys.readouterr().out.split())
  assert before == {path: path.stat().st_mtime_ns for path in world.rglob('*')}


def test_another_config_is_refused_with_the_difference(world, tmp_path):
  before = contents(world)
  for config, words in [
      (PrepareConfig(num_clips=6, world=TINY, validation_fraction=0.2, vocab_size=400), 'num_clips: 5 there, 6 asked'),
      (PrepareConfig(num_clips=5, validation_fraction=0.2, vocab_size=400), 'world.height: 16 there, 64 asked')]:
    with pytest.raises(ValueError, match=words):
      prepare('world', world, config=config, progress=False)
  with pytest.raises(ValueError, match='data set of the world, not of the folder'):
    prepare(fill(tmp_path / 'source', 1), world, progress=False)
  assert contents(world) == before


@pytest.fixture(scope='module')
def troubled(tmp_path_factory):
  """A folder with everything that goes wrong in folders, and its preparation by two processes."""
  folder = fill(tmp_path_factory.mktemp('troubled') / 'source', 3)
  media.write(folder / 'silent.mp4', film(sound=False))
  media.write(folder / 'short.mp4', film(num_frames=3))
  media.write(folder / 'picture.png', film(1))
  shutil.move(folder / 'picture.png', folder / 'mislabelled.mp4')
  whole = (folder / '000.mp4').read_bytes()
  (folder / 'truncated.mp4').write_bytes(whole[:len(whole) // 2])
  (folder / 'text.mp4').write_text('no film at all')
  (folder / 'noise.webm').write_bytes(RNG.bytes(5000))
  (folder / 'empty.mov').touch()
  (folder / 'readme.md').write_text('x')
  os.mkfifo(folder / 'pipe.mkv')
  output = folder.parent / 'data'
  return output, prepare(folder, output, config=PrepareConfig(vocab_size=400), workers=2, progress=False)


def test_what_cannot_be_used_is_named_and_skipped(troubled):
  _, summary = troubled
  assert summary.kept == 5 and summary.splits == {'train': 4, 'validation': 1}
  unreadable = summary.rejected['cannot be read']
  assert unreadable['count'] == 3
  assert [name.split(' (')[0] for name in unreadable['first']] == ['noise.webm', 'text.mp4', 'truncated.mp4']
  assert summary.rejected['empty file'] == {'count': 1, 'first': ['empty.mov']}
  assert summary.rejected['not a file'] == {'count': 1, 'first': ['pipe.mkv']}
  assert summary.rejected['shorter than min_seconds=0.5'] == {'count': 1, 'first': ['short.mp4']}
  assert summary.notes['without sound']['first'] == ['mislabelled.mp4', 'silent.mp4']
  assert summary.notes['without caption']['count'] == 6
  assert summary.notes['not media by its name, left out']['first'] == ['readme.md']


def test_the_table_says_it_all(troubled):
  from rich.console import Console
  console = Console(width=100, record=True, file=open(os.devnull, 'w'))
  with console.file:
    console.print(troubled[1].table())
  text = console.export_text()
  for word in ('5', 'kept', 'truncated.mp4', 'noise.webm', 'empty file', 'short.mp4', 'and 1 more'):
    assert word in text


def test_the_number_of_processes_changes_nothing(troubled, tmp_path):
  output, _ = troubled
  again = tmp_path / 'data'
  prepare(output.parent / 'source', again, config=PrepareConfig(vocab_size=400), workers=1, progress=False)
  texts = [[datasets.open_dataset(path).text(i) for i in range(4)] for path in (output, again)]
  assert texts[0] == texts[1]
  assert (output / 'text.model').read_bytes() == (again / 'text.model').read_bytes()


def test_a_run_that_is_killed_goes_on_where_it_stopped(tmp_path):
  source = fill(tmp_path / 'source', 24, num_frames=20)
  config = PrepareConfig(vocab_size=400, max_seconds=1.0)
  prepare(source, tmp_path / 'whole', config=config, workers=1, progress=False)
  output = tmp_path / 'data'
  code = (f'import sys, pickle; sys.path[:] = {sys.path!r}\nfrom veojax.data.prepare import prepare\n'
          f'prepare({str(source)!r}, {str(output)!r}, config=pickle.loads({pickle.dumps(config)!r}), workers=1)')
  process = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
  def finished():
    return sorted(path.stem for path in (output / 'pieces').glob('*.json') if path.stem != 'stamp')
  while len(finished()) < 3 and process.poll() is None:
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.wait()
  with pytest.raises(ValueError, match='is not finished'):
    datasets.open_dataset(output)
  kept = finished()
  assert 3 <= len(kept) <= 24
  # Files that are done are not read again: break one without it showing in its size or time.
  from veojax.data import sources
  done = next(entry for entry in sources.list_folder(source).entries if entry.key in kept)
  pathlib.Path(done.path).write_bytes(bytes(done.size))
  os.utime(done.path, ns=(done.modified, done.modified))
  summary = prepare(source, output, config=config, workers=2, progress=False)
  assert not summary.rejected and not (output / 'pieces').exists()
  assert contents(output) == contents(tmp_path / 'whole')


def test_captions_of_one_file_are_held_back_together():
  def split(texts):
    """Of files with so many captions each."""
    entry = lambda i: types.SimpleNamespace(path=f'{i}.mp4')
    tasks = [types.SimpleNamespace(name=f'{i}.mp4' + f'#{n + 1}' * (n > 0), entry=entry(i))
             for n in range(max(texts)) for i, count in enumerate(texts) if n < count]
    stamp = outputs.Stamp('folder', PrepareConfig(validation_fraction=.25), None)
    kept = list(range(len(tasks)))
    splits = {name: [tasks[i] for i in chosen] for name, chosen in outputs._split(kept, tasks, stamp).items()}
    assert sum(map(len, splits.values())) == len(tasks)
    return [{task.entry.path for task in splits.get(name, ())} for name in ('train', 'validation')]
  once, thrice = split([1] * 40), split([3, 1, 2, 1] * 10)
  assert once == thrice and not once[0] & once[1] and len(once[1]) == 10
  assert split([3]) == [{'0.mp4'}, set()]  # all is never held back


def test_files_that_hang_are_ended_and_named(tmp_path):
  # A limit that no file can keep: every one is ended and named.
  source = fill(tmp_path / 'source', 2)
  with pytest.raises(ValueError, match=r'nothing could be kept .*gave nothing for 1e-06 s: 00\d.mp4, 00\d.mp4'):
    prepare(source, tmp_path / 'data', config=PrepareConfig(time_limit=1e-6), workers=1, progress=False)
  assert prepare(source, tmp_path / 'data', config=PrepareConfig(), workers=1, progress=False).kept == 2


@pytest.mark.parametrize('limit', [5_000, 100_000])
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, limit):
  # The smaller limit stops the first piece; the larger one stops the data set itself, whose shard holds all pieces.
  rng = np.random.default_rng(1)
  source = tmp_path / 'source'
  source.mkdir()
  for i in range(3):
    media.write(source / f'{i}.png', Clip(video=rng.integers(0, 256, (1, 128, 160, 3), np.uint8), fps=24.0))
  config = PrepareConfig(validation_fraction=0)
  with file_size_limit(limit), pytest.raises(ValueError, match='cannot write .*finished pieces are kept') as caught:
    prepare(source, tmp_path / 'data', config=config, workers=1, progress=False)
  assert '\n' not in str(caught.value)
  pieces = list((tmp_path / 'data' / 'pieces').glob('*.examples'))
  assert len(pieces) == (0 if limit == 5_000 else 3)
  assert prepare(source, tmp_path / 'data', config=config, workers=1, progress=False).splits == {'train': 3}


def test_overwrite_replaces_and_spares_what_is_not_ours(tmp_path):
  output = tmp_path / 'data'
  source = fill(tmp_path / 'source', 3)
  prepare(source, output, config=PrepareConfig(validation_fraction=0), workers=1, progress=False)
  (output / 'mine.txt').write_text('keep')
  (source / '003.txt').write_text('no media')
  media.write(source / '003.mp4', film())
  with pytest.raises(ValueError, match='prepared from other files or captions'):
    prepare(source, output, config=PrepareConfig(validation_fraction=0), progress=False)
  assert len(datasets.open_dataset(output)) == 3
  summary = prepare(source, output, config=PrepareConfig(fps=6.0), workers=1, progress=False, overwrite=True)
  assert summary.kept == 4 and datasets.open_dataset(output)[0].fps == 6.0
  assert (output / 'mine.txt').read_text() == 'keep'


def test_no_folder_no_media_no_permission(tmp_path):
  with pytest.raises(ValueError, match='does not exist; give a folder'):
    prepare(tmp_path / 'nowhere', tmp_path / 'data', progress=False)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match='holds no media'):
    prepare(tmp_path / 'empty', tmp_path / 'data', progress=False)
  assert not (tmp_path / 'data').exists()
  (tmp_path / 'file').touch()
  for output in (tmp_path / 'file', tmp_path / 'file' / 'data', pathlib.Path('/proc/data')):
    with pytest.raises(ValueError, match='cannot write|is a file'):
      prepare('world', output, config=WORLD, progress=False)
  (tmp_path / 'taken' / 'world').mkdir(parents=True)
  with pytest.raises(ValueError, match='no preparation made it'):
    prepare('world', tmp_path / 'taken', config=WORLD, progress=False)
  with pytest.raises(ValueError, match='nowhere.model'):
    config = PrepareConfig(tokenizer=str(tmp_path / 'nowhere.model'))
    prepare('world', tmp_path / 'data', config=config, progress=False)


@pytest.mark.parametrize('setting', [
    dict(store='zip'), dict(max_side=64, height=32), dict(validation_fraction=1.0),
    dict(min_seconds=3, max_seconds=2),
    dict(scene_threshold=27), dict(num_clips=0), dict(time_limit=0), dict(vocab_size=10), dict(fps=-1),
    dict(channels=0), dict(loudness=3)])
def test_settings_that_make_no_sense_are_refused_with_their_value(setting):
  with pytest.raises(ValueError, match=f'{next(iter(setting))}={next(iter(setting.values()))!r}'):
    PrepareConfig(**setting)


def test_real_clips(clips_folder, tmp_path):
  source = tmp_path / 'source'
  source.mkdir()
  for name in ('nasa_13013.mp4', 'mdn_frog.webm'):
    shutil.copy(clips_folder / name, source / name)
  config = PrepareConfig(max_side=64, fps=8, sample_rate=16000, channels=1, validation_fraction=0)
  prepare(source, tmp_path / 'data', config=config, workers=2, progress=False)
  dataset = datasets.open_dataset(tmp_path / 'data')
  assert len(dataset) == 3  # the NASA film has one cut
  for i in range(3):
    clip = dataset[i]
    assert max(clip.video.shape[1:3]) == 64 and clip.audio.shape[1] == 1
    assert abs(len(clip.video) / 8 - len(clip.audio) / 16000) < 0.5 / 8
