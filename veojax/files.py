"""Files of a run: on a disk, or in a bucket (gs://, s3://), which fsspec and tensorstore reach.

What a run keeps may live in a bucket: its work directory with checkpoints, latents, samples and metrics, and a model's
folder. Data sets are read by array_record, which knows only files: mount their bucket (gcsfuse, mountpoint-s3).
"""
import contextlib
import os
import pathlib
import platform
import shutil
import tempfile
from collections.abc import Iterator

import fsspec
from etils import epath

# A listing that is kept would not show what tensorstore or another process has written or removed since.
for protocol in ('gs', 'gcs', 's3'):
  fsspec.config.conf.setdefault(protocol, {})['use_listings_cache'] = False

BLOCK = 2**24  # bytes copied at a time
S3 = 's3://'


def path(name: str | os.PathLike) -> epath.Path:
  """Like a pathlib.Path, of a bucket too."""
  return epath.Path(name)


def absolute(name: str | os.PathLike) -> epath.Path:
  return path(name) if is_remote(name) else path(name).resolve()


def is_remote(name: str | os.PathLike) -> bool:
  return '://' in os.fspath(name)


def on_disk(name: str | os.PathLike, what: str, use: str = 'written to') -> pathlib.Path:
  """The path of what is written to, or 'read from', disks alone. Raises ValueError where it is in a bucket."""
  if is_remote(name):
    raise ValueError(f'{what} is {use} a disk, which {name} is not; give a folder on one, or mount the bucket '
                     '(gcsfuse, mountpoint-s3) and give its folder')
  return pathlib.Path(name)


def kvstore(name: str | os.PathLike) -> dict | str:
  """What tensorstore takes for a folder."""
  folder = os.path.join(os.fspath(name), '')
  if folder.startswith(S3):
    return s3_kvstore(folder)
  return folder if is_remote(folder) else {'driver': 'file', 'path': folder}


def s3_kvstore(name: str) -> dict:
  """What tensorstore takes for an s3:// folder or file: it reads the keys from the environment by itself, but not, as
  fsspec does, where a store other than Amazon's is (AWS_ENDPOINT_URL), nor the region, which it asks Amazon for."""
  bucket, _, key = name.removeprefix(S3).partition('/')
  told = {'endpoint': ('AWS_ENDPOINT_URL_S3', 'AWS_ENDPOINT_URL'), 'aws_region': ('AWS_REGION', 'AWS_DEFAULT_REGION')}
  found = {field: next(filter(None, map(os.environ.get, names)), None) for field, names in told.items()}
  return {'driver': 's3', 'bucket': bucket, 'path': key, **{field: value for field, value in found.items() if value}}


@contextlib.contextmanager
def writing(name: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A file to be written, on a disk and with the same ending, that becomes `name`, whole or not at all."""
  target = path(name)
  with tempfile.TemporaryDirectory() if is_remote(target) else contextlib.nullcontext(target.parent) as folder:
    # Other processes, of other machines that share the disk too, may be writing the same file.
    draft = pathlib.Path(folder) / f'{target.stem}.{platform.node()}.{os.getpid()}.partial{target.suffix}'
    try:
      yield draft
      if is_remote(target):
        with draft.open('rb') as source, target.open('wb') as file:
          shutil.copyfileobj(source, file, BLOCK)
      else:
        draft.replace(target)
    finally:
      draft.unlink(missing_ok=True)


def write(name: str | os.PathLike, data: bytes):
  """Writes a file whole or not at all."""
  with writing(name) as draft:
    draft.write_bytes(data)


@contextlib.contextmanager
def reading(name: str | os.PathLike) -> Iterator[pathlib.Path]:
  """The file on a disk, for as long as it is read."""
  if not is_remote(name):
    yield pathlib.Path(name)
    return
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / path(name).name
    with path(name).open('rb') as source, copy.open('wb') as file:
      shutil.copyfileobj(source, file, BLOCK)
    yield copy


def rename_folder(name: str | os.PathLike, new: str | os.PathLike):
  """Renames a folder to one that is not there; in a bucket, which has no folders, by copying all that is in it."""
  if not is_remote(name):
    path(name).rename(new)
    return
  store, _ = fsspec.url_to_fs(os.fspath(name))
  store.copy(os.fspath(name), os.fspath(new), recursive=True)
  store.rm(os.fspath(name), recursive=True)
