"""The output folder of a preparation: claimed, filled from its pieces, and marked as finished.

Nothing that another preparation left is ever mixed with or lost: a folder is claimed under a lock and with a stamp of
how it is made, and another stamp is refused with the difference.
"""
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from veojax.data import datasets
from veojax.data.pieces import OutputError, write_json, writing
from veojax.data.tokenizer import Tokenizer

SHOWN = 5                  # names kept of each reason
IRRELEVANT = {'time_limit'}  # to what is written, so free to change


@dataclasses.dataclass(frozen=True)
class Stamp:
  """How an output is made: the builder's name, the PrepareConfig, the hash of the folder's listing."""
  name: str
  config: Any
  source: str | None

  def json(self) -> dict:
    # Through JSON and back, so that tuples compare equal to the lists that were read.
    return json.loads(json.dumps(dataclasses.asdict(self)))


@dataclasses.dataclass
class Found:
  """(reason, name) of what was rejected, and of what was kept but is worth knowing."""
  rejected: list[tuple[str, str]]
  notes: list[tuple[str, str]]


def piece_path(output: pathlib.Path, key: str) -> str:
  return str(output / 'pieces' / key)


def num_validation(count: int, fraction: float) -> int:
  """How many of `count` to hold back: at least one where a fraction is asked for, never all."""
  return min(max(1, round(count * fraction)), count - 1) if fraction else 0


@contextlib.contextmanager
def claimed(output: pathlib.Path, stamp: Stamp, overwrite: bool) -> Iterator[dict | None]:
  """Holds `output` for one preparation; gives the summary of a finished one with the same stamp, or None.

  ValueError where it was made otherwise, is being made by another process, or cannot be written.
  """
  done = _read(output / 'prepare.json')
  if done and not overwrite:
    _compare(output, done, stamp.json())
    yield done['summary']
    return
  folder = output / 'pieces'
  with writing(output):
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / 'lock', 'w')
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise ValueError(f'{output} is being prepared by another process; wait for it, or give another output') from None
    started = _read(folder / 'stamp.json')
    if overwrite:
      _remove(output, (started or done or {}).get('name'), folder, keep=lock.name)
    elif started:
      _compare(output, started, stamp.json(), listing=False)  # pieces are keyed by the state of their files
    elif (output / stamp.name).exists():
      raise ValueError(f'{output / stamp.name} is there and no preparation made it; give another output')
    for draft in folder.glob('*.tmp'):
      draft.unlink(missing_ok=True)
    write_json(str(folder / 'stamp.json'), stamp.json())
    yield None


def _read(path: pathlib.Path) -> dict | None:
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except NotADirectoryError:
    raise ValueError(f'{path.parent} is a file; give a folder as output') from None
  except PermissionError:
    raise ValueError(f'no permission to read {path}; give yourself access, or give another output') from None
  except json.JSONDecodeError:
    raise ValueError(f'{path} is damaged; remove it and prepare again') from None


def _compare(output: pathlib.Path, there: dict, asked: dict, listing: bool = True):
  remedy = 'give another output, or prepare again with overwrite'
  if there['name'] != asked['name']:
    raise ValueError(f'{output} holds a data set of the {there["name"]}, not of the {asked["name"]}; {remedy}')
  differences = list(_differences(there['config'], asked['config']))
  if differences:
    raise ValueError(f'{output} was prepared with other settings ({"; ".join(differences)}); {remedy}')
  if listing and there['source'] != asked['source']:
    raise ValueError(f'{output} was prepared from other files or captions than the source now has; {remedy}')


def _differences(there: dict, asked: dict, prefix: str = '') -> Iterator[str]:
  for key in sorted(set(there) | set(asked)):
    a, b = there.get(key), asked.get(key)
    if isinstance(a, dict) and isinstance(b, dict):
      yield from _differences(a, b, f'{prefix}{key}.')
    elif a != b and key not in IRRELEVANT:
      yield f'{prefix}{key}: {a} there, {b} asked'


def _remove(output: pathlib.Path, name: str | None, folder: pathlib.Path, keep: str):
  """Discards an earlier preparation; prepare.json first, so that what is half removed does not pass for whole."""
  with writing(output):
    for path in [output / 'prepare.json', output / 'text.model', *output.glob('index-*.npz')]:
      path.unlink(missing_ok=True)
    if name in datasets.BUILDERS and (output / name).exists():
      shutil.rmtree(output / name)
    for path in folder.iterdir():
      if str(path) != keep:
        path.unlink()


def gather(output: pathlib.Path, stamp: Stamp, tasks: list, made: dict[int, dict], found: Found,
           advance: Callable[[], None] = lambda: None) -> dict:
  """Writes the data set, the indices and the tokenizer from the pieces. Returns what the summary says of them.

  made: task number → summary of its piece. The order of the clips is that of the tasks. advance: called for each.
  """
  for i in sorted(made):
    found.rejected += map(tuple, made[i]['rejected'])
    found.notes += map(tuple, made[i]['notes'])
  kept = [i for i in sorted(made) if made[i]['clips']]
  rejected, notes = _tally(found.rejected), _tally(found.notes)
  if not kept:
    reasons = '; '.join(f'{tally["count"]} {reason}: {", ".join(tally["first"])}' for reason, tally in rejected.items())
    raise ValueError(f'nothing could be kept ({reasons}); look at these files, or relax the limits')
  splits = _split(kept, tasks, stamp)
  clips = {split: [(tasks[i].path, clip) for i in chosen for clip in made[i]['clips']]
           for split, chosen in splits.items()}
  needed = sum(clip['bytes'] for rows in clips.values() for _, clip in rows)
  free = shutil.disk_usage(output).free
  if free < needed:
    raise OutputError(f'cannot write {output}: {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free; make room and '
                      'run again, finished pieces are kept')
  with writing(output):
    shutil.rmtree(output / stamp.name, ignore_errors=True)  # of a run stopped while gathering
    datasets.write(stamp.name, output, {split: list(_shards(rows, advance)) for split, rows in clips.items()})
    for split, rows in clips.items():
      _write_index(output, split, [clip for _, clip in rows])
    if stamp.config.tokenizer:
      shutil.copyfile(stamp.config.tokenizer, output / 'text.model')
    else:
      Tokenizer.train([clip['text'] for _, clip in clips['train']], output / 'text.model', stamp.config.vocab_size)
  seconds = sum(clip['seconds'] for rows in clips.values() for _, clip in rows)
  counts = {split: len(rows) for split, rows in clips.items()}
  return dict(splits=counts, seconds=seconds, rejected=rejected, notes=notes)


def _split(kept: list[int], tasks: list, stamp: Stamp) -> dict[str, list[int]]:
  """Task numbers by split. Files are held back by a hash of their names, so adding some moves few of the others; a file
  that is named several times, with all its captions."""
  if stamp.name == 'world':
    held = {i for i in kept if tasks[i].split == 'validation'}
  else:
    by_file = {}
    for i in kept:
      by_file.setdefault(tasks[i].entry.path, []).append(i)
    digest = lambda same: hashlib.blake2b(f'{stamp.config.seed}:{tasks[same[0]].name}'.encode()).digest()
    count = num_validation(len(by_file), stamp.config.validation_fraction)
    held = {i for same in sorted(by_file.values(), key=digest)[:count] for i in same}
  splits = {'train': [i for i in kept if i not in held], 'validation': [i for i in kept if i in held]}
  return {split: chosen for split, chosen in splits.items() if chosen}


def _shards(rows: list[tuple[str, dict]], advance: Callable[[], None]) -> Iterator:
  """Callables that iterate (number, serialized example), each over at most about SHARD_BYTES."""
  shard, size, place, offset = [], 0, None, 0
  for number, (path, clip) in enumerate(rows):
    offset = offset if path == place else 0
    if shard and size + clip['bytes'] > datasets.SHARD_BYTES:
      yield _Shard(shard, advance)
      shard, size = [], 0
    shard.append((number, path, offset, clip['bytes']))
    size, place, offset = size + clip['bytes'], path, offset + clip['bytes']
  yield _Shard(shard, advance)


@dataclasses.dataclass(frozen=True)
class _Shard:
  rows: list[tuple[int, str, int, int]]  # number, piece, offset and length in bytes
  advance: Callable[[], None]

  def __call__(self) -> Iterator[tuple[int, bytes]]:
    for number, path, offset, size in self.rows:
      with open(path + '.examples', 'rb') as file:
        file.seek(offset)
        yield number, file.read(size)
      self.advance()


def _write_index(output: pathlib.Path, split: str, clips: list[dict]):
  arrays = {key: np.asarray([clip[key] for clip in clips], dtype) for key, dtype in datasets.INDEX.items()}
  draft = output / f'.index-{split}.npz'
  np.savez(draft, **arrays)
  os.replace(draft, output / f'index-{split}.npz')


def _tally(found: list[tuple[str, str]]) -> dict:
  tallies = {}
  for reason, name in found:
    tally = tallies.setdefault(reason, {'count': 0, 'first': []})
    tally['count'] += 1
    if len(tally['first']) < SHOWN:
      tally['first'].append(name)
  return tallies


def finish(output: pathlib.Path, stamp: Stamp, summary: dict):
  """Marks the output as finished, then drops the pieces."""
  write_json(str(output / 'prepare.json'), stamp.json() | {'version': datasets.VERSION, 'summary': summary})
  shutil.rmtree(output / 'pieces', ignore_errors=True)
