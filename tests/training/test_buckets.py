"""A run in a bucket, against an emulator of Google's storage, where gcsfs and gcp-storage-emulator are installed."""
import importlib.util
import pathlib
import re
import socket
import sys
from http import HTTPStatus

import numpy as np
import pytest

from veojax import files
from veojax.data.latents import LatentCache
from veojax.models import weights
from veojax.training import journal, loop, stopping


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


@pytest.fixture(scope='module')
def bucket():
  pytest.importorskip('gcsfs', reason='gcsfs is not installed')
  emulator = pytest.importorskip('gcp_storage_emulator.server', reason='gcp-storage-emulator is not installed')
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  with pytest.MonkeyPatch.context() as patch:
    for name in ('STORAGE_EMULATOR_HOST', 'TENSORSTORE_GCS_HTTP_URL'):  # gcsfs; tensorstore
      patch.setenv(name, f'http://127.0.0.1:{port}')
    for name, value in (('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'any'), ('NO_GCE_CHECK', 'true'),
                        ('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')):
      patch.setenv(name, value)
    original, whole = emulator.objects.download, complete(emulator.objects.download)
    patch.setattr(emulator.objects, 'download', whole)
    for _, handlers in emulator.HANDLERS:
      for method in [m for m, handler in handlers.items() if handler is original]:
        patch.setitem(handlers, method, whole)
    server = emulator.create_server('127.0.0.1', port, in_memory=True, default_bucket='runs')
    server.start()
    yield files.path('gs://runs')
    server.stop()


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


def test_latents_in_a_bucket_are_those_on_a_disk(bucket, tmp_path):
  fakes = load('test_latents')
  for folder in (tmp_path, bucket / 'latents'):
    fakes.write(folder)
  fakes.equal(LatentCache.open(bucket / 'latents', 'v', 'a'), LatentCache.open(tmp_path, 'v', 'a'))
  idle = fakes.Video()
  fakes.write(bucket / 'latents', video=idle)
  assert idle.calls == 0


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
