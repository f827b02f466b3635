"""Files of a run: on a disk, or in a bucket (gs://, s3://), which fsspec and tensorstore reach.

What a run keeps may live in a bucket: its work directory with checkpoints, latents, samples and metrics, and a model's
folder. Data sets are read by array_record, which knows only files: mount their bucket (gcsfuse, mountpoint-s3).
"""
import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

BLOCK = 2**24  # bytes copied at a time


def path(name: str | os.PathLike) -> epath.Path:
  """Like a pathlib.Path, of a bucket too."""
  return epath.Path(name)


def absolute(name: str | os.PathLike) -> epath.Path:
  return path(name) if is_remote(name) else path(name).resolve()


def is_remote(name: str | os.PathLike) -> bool:
  return '://' in os.fspath(name)


def kvstore(name: str | os.PathLike) -> dict | str:
  """What tensorstore takes for a folder."""
  folder = os.path.join(os.fspath(name), '')
  return folder if is_remote(folder) else {'driver': 'file', 'path': folder}


@contextlib.contextmanager
def writing(name: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A file to be written, on a disk and with the same ending, that becomes `name`, whole or not at all."""
  target = path(name)
  with tempfile.TemporaryDirectory() if is_remote(target) else contextlib.nullcontext(target.parent) as folder:
    draft = pathlib.Path(folder) / f'{target.stem}.{os.getpid()}.partial{target.suffix}'
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
