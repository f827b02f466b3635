"""Runs in buckets, against emulators of Google's and Amazon's storage, where these are installed (extra [pod])."""
import contextlib
import importlib.util
import pathlib
import re
import socket
import sys
from http import HTTPStatus

import numpy as np
import pytest

from veojax import cli, files
from veojax.data.latents import LatentCache
from veojax.generation import export
from veojax.models import weights
from veojax.models import orbax_s3
from veojax.training import checkpoint, journal, loop, run, stopping


def load(name):
  spec = importlib.util.spec_from_file_location(name, pathlib.Path(__file__).with_name(f'{name}.py'))
  module = sys.modules[name] = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def complete(download):
  """The emulator's answer to a read, with what tensorstore needs of it beside: ranges that count from an object's end,
  and the object's generation."""
  def answer(request, response, storage, *rest):
    name = request.params['bucket_name'], request.params['object_id']
    get_header = request.get_header

    def header(key, default=None):
      value = get_header(key, default)
      if key == 'range' and (suffix := re.fullmatch(r'bytes=-(\d+)', value or '')):
        size = len(storage.get_file(*name))
        return f'bytes={max(0, size - int(suffix[1]))}-{size - 1}'
      return value
    request.get_header = header
    download(request, response, storage, *rest)
    if response.status != HTTPStatus.NOT_FOUND:
      response['x-goog-generation'] = storage.get_file_obj(*name)['generation']
  return answer


@contextlib.contextmanager
def google(patch):
  emulator = pytest.importorskip('gcp_storage_emulator.server', reason='gcp-storage-emulator is not installed')
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  for name in ('STORAGE_EMULATOR_HOST', 'TENSORSTORE_GCS_HTTP_URL'):  # gcsfs; tensorstore
    patch.setenv(name, f'http://127.0.0.1:{port}')
  for name, value in (('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'any'), ('NO_GCE_CHECK', 'true'),
                      ('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')):
    patch.setenv(name, value)
  pytest.importorskip('gcsfs', reason='gcsfs is not installed')  # it reads its variable when it is imported
  original, whole = emulator.objects.download, complete(emulator.objects.download)
  patch.setattr(emulator.objects, 'download', whole)
  for _, handlers in emulator.HANDLERS:
    for method in [m for m, handler in handlers.items() if handler is original]:
      patch.setitem(handlers, method, whole)
  server = emulator.create_server('127.0.0.1', port, in_memory=True, default_bucket='runs')
  server.start()
  yield files.path('gs://runs')
  server.stop()


@contextlib.contextmanager
def amazon(patch):
  s3fs = pytest.importorskip('s3fs', reason='s3fs is not installed')
  pytest.importorskip('flask_cors', reason='flask-cors is not installed')
  emulator = pytest.importorskip('moto.server', reason='moto is not installed')
  server = emulator.ThreadedMotoServer('127.0.0.1', 0, verbose=False)
  server.start()
  for name, value in (('AWS_ENDPOINT_URL', 'http://{}:{}'.format(*server.get_host_and_port())),
                      ('AWS_ACCESS_KEY_ID', 'any'), ('AWS_SECRET_ACCESS_KEY', 'any'),
                      ('AWS_DEFAULT_REGION', 'us-east-1')):
    patch.setenv(name, value)
  s3fs.S3FileSystem().mkdir('runs')
  yield files.path('s3://runs')
  server.stop()


@pytest.fixture(scope='module', params=[google, amazon], ids=['gs', 's3'])
def bucket(request):
  with pytest.MonkeyPatch.context() as patch, request.param(patch) as bucket:
    yield bucket


def test_a_file_appears_whole_or_not_at_all_on_a_disk(tmp_path):
  path = files.path(tmp_path) / 'a.json'
  files.write(path, b'one')
  with pytest.raises(ZeroDivisionError):
    with files.writing(path) as draft:
      draft.write_bytes(b'two')
      raise ZeroDivisionError
  with files.reading(path) as copy:
    assert copy.read_bytes() == b'one' and [p.name for p in tmp_path.iterdir()] == ['a.json']


def test_a_file_appears_whole_or_not_at_all_in_a_bucket(bucket):
  path = bucket / 'files' / 'a.json'
  files.write(path, b'one')
  with pytest.raises(ZeroDivisionError):
    with files.writing(path) as draft:
      assert draft.suffix == '.json'
      draft.write_bytes(b'two')
      raise ZeroDivisionError
  with files.reading(path) as copy:
    assert copy.read_bytes() == b'one'
  assert [p.name for p in (bucket / 'files').iterdir()] == ['a.json']


def test_tensorstore_is_told_what_fsspec_reads_from_the_environment(monkeypatch):
  for name in ('AWS_ENDPOINT_URL_S3', 'AWS_ENDPOINT_URL', 'AWS_REGION', 'AWS_DEFAULT_REGION'):
    monkeypatch.delenv(name, raising=False)
  plain = {'driver': 's3', 'bucket': 'runs', 'path': 'a/latents/'}
  assert files.kvstore('s3://runs/a/latents') == plain
  monkeypatch.setenv('AWS_ENDPOINT_URL', 'http://store:9000')
  monkeypatch.setenv('AWS_REGION', 'here')
  assert files.kvstore('s3://runs/a/latents') == {**plain, 'endpoint': 'http://store:9000', 'aws_region': 'here'}
  assert files.kvstore('gs://runs/a') == 'gs://runs/a/'


def test_an_orbax_that_is_not_known_is_refused(monkeypatch):
  monkeypatch.delattr(orbax_s3.tensorstore_utils, '_use_gcs_driver')
  with pytest.raises(ValueError, match='s3:// do not work with this version of orbax-checkpoint .*_use_gcs_driver'):
    orbax_s3.enable()


def test_latents_in_a_bucket_are_those_on_a_disk(bucket, tmp_path):
  fakes = load('test_latents')
  for folder in (tmp_path, bucket / 'latents'):
    fakes.write(folder)
  fakes.equal(LatentCache.open(bucket / 'latents', 'v', 'a'), LatentCache.open(tmp_path, 'v', 'a'))
  idle = fakes.Video()
  fakes.write(bucket / 'latents', video=idle)
  assert idle.calls == 0


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_and_ends_as_one_on_a_disk(bucket, tmp_path, monkeypatch):
  """Stopped at a step and begun again, with checkpoints, metrics and weights in the bucket."""
  worker, folders = load('pod_worker'), [files.path(tmp_path), bucket / 'run']
  original = loop.interludes
  for folder in folders:
    notice = []
    def interludes(stage, state, row, step, *rest, notice=notice):
      original(stage, state, row, step, *rest)
      if step == 3:
        notice.append(15)
    with monkeypatch.context() as patch:
      patch.setattr(loop, 'interludes', interludes)
      patch.setattr(stopping.Notice, 'reached', lambda self: notice[0] if notice else None)
      with pytest.raises(stopping.Stopped, match='step 3'):
        loop.fit(worker.Toy(6), folder)
    loop.fit(worker.Toy(6), folder)
    assert (folder / 'done').read_text() == '6\n'
  for name in ('metrics.jsonl', 'done', 'weights.safetensors', 'checkpoints'):
    assert (bucket / 'run' / name).exists(), name
  assert [line['step'] for line in journal.read(bucket / 'run') if 'loss' in line] == [1, 2, 3, 4, 5, 6]
  a, b = (weights.load(folder / 'weights.safetensors')[0] for folder in folders)
  assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def objects(folder):
  """All files below a folder of a bucket."""
  for path in folder.iterdir():
    yield from objects(path) if path.is_dir() else [path]


@pytest.mark.slow
def test_a_checkpoint_without_its_end_is_not_read_and_a_damaged_one_is_set_aside(bucket):
  """A process that is killed while it saves leaves a folder without the file that says it is whole."""
  fakes, folder = load('test_checkpoint'), bucket / 'checkpoints'
  with contextlib.closing(checkpoint.Checkpoints(folder, keep=9)) as saved:
    for step in (3, 5, 7):
      saved.save(fakes.state_at(step), 10 * step)
  (folder / '7' / 'commit_success.txt').unlink()
  for path in objects(folder / '5'):
    if len(data := path.read_bytes()) > 64:
      path.write_bytes(data[:len(data) // 2])
  with contextlib.closing(checkpoint.Checkpoints(folder, keep=9)) as saved:
    assert saved.latest == 5
    state, row = saved.restore(fakes.abstract())
    assert row == 30 and (folder / 'damaged-5').exists()
    fakes.equal(state, fakes.state_at(3))
    for step in (5, 7):
      saved.save(fakes.state_at(step), 10 * step)
  with contextlib.closing(checkpoint.Checkpoints(folder, keep=9)) as saved:
    fakes.equal(saved.restore(fakes.abstract())[0], fakes.state_at(7))


@pytest.mark.slow
def test_a_model_is_trained_in_a_bucket_goes_on_there_and_generates_from_there(bucket, tmp_path, capsys):
  """With its codec, its cache of latents and its samples in the bucket; the data lie on a disk."""
  pod = load('pod')
  pod.prepare(tmp_path)
  for num_steps in (2, 4):
    run.train(pod.tree(tmp_path, num_steps=num_steps), bucket / 'model')
  assert sorted(p.name for p in (bucket / 'model' / 'checkpoints').iterdir()) == ['2', '4']
  assert (bucket / 'model' / 'latents').is_dir() and (bucket / 'model' / 'audio_vae' / 'codec.safetensors').exists()
  assert [line['step'] for line in journal.read(bucket / 'model') if 'loss' in line] == [1, 2, 3, 4]
  clip = tmp_path / 'clip.wav'
  assert cli.main(['generate', '--model', f'{bucket}/model', '--prompt', 'a ball falls', '--output', str(clip),
                   '--num_frames=4', '--fps=8', '--num_inference_steps=2']) == 0
  assert np.isfinite(export.read(clip).audio).all()
  assert cli.main(['info', '--model', f'{bucket}/model']) == 0
  assert 'sample rate: 8000' in capsys.readouterr().out
