"""A folder of media with captions, listed: which files, with which caption, and what of the folder is left aside.

Captions come from `metadata.jsonl`, `metadata.csv` or `metadata.json` in the folder (one row a clip; the file under
`file_name`, `video`, `media_path` or `video_path`, relative to it; the caption under `text` or `caption`; optionally a
sound of its own under `audio`), or else from a `.txt` of the same name beside each file. With a metadata file, only
what it names is used. Nothing is decoded here.
"""
import csv
import dataclasses
import hashlib
import io
import json
import os
import pathlib

METADATA = ('metadata.jsonl', 'metadata.csv', 'metadata.json')
FILE_KEYS = ('file_name', 'video', 'media_path', 'video_path')
TEXT_KEYS = ('text', 'caption')
VIDEO = {'.mp4', '.m4v', '.mov', '.mkv', '.webm', '.avi', '.gif', '.mpg', '.mpeg', '.ts', '.flv', '.wmv', '.ogv'}
AUDIO = {'.wav', '.flac', '.mp3', '.ogg', '.oga', '.opus', '.m4a', '.aac'}
IMAGE = {'.png', '.jpg', '.jpeg', '.webp', '.bmp', '.tif', '.tiff'}
SUFFIXES = VIDEO | AUDIO | IMAGE


@dataclasses.dataclass(frozen=True)
class Sound:
  """A file whose sound is heard with another's picture."""
  path: str
  size: int
  modified: int  # ns


@dataclasses.dataclass(frozen=True)
class Entry:
  """One file to prepare. `name` is unique in its listing; `audio` replaces the file's own sound."""
  name: str
  path: str
  text: str
  size: int
  modified: int  # ns
  audio: Sound | None = None

  @property
  def key(self) -> str:
    """Names the file as it is now; another text, or another size or time of change of it or its sound, makes another
    key."""
    return hashlib.blake2b(repr(dataclasses.astuple(self)).encode(), digest_size=12).hexdigest()


@dataclasses.dataclass(frozen=True)
class Listing:
  """entries: what to prepare, in order. rejected and notes: (reason, name) of what cannot be, and of what is odd."""
  entries: list[Entry]
  rejected: list[tuple[str, str]]
  notes: list[tuple[str, str]]

  @property
  def hash(self) -> str:
    """Of names, sizes (of sounds of their own too) and captions; a copy of the folder has the same."""
    rows = [(e.name, e.text, e.size, bool(e.audio) and e.audio.size) for e in self.entries]
    return hashlib.blake2b(repr(rows).encode(), digest_size=12).hexdigest()


def list_folder(source, exclude=None) -> Listing:
  """The media of the folder `source`, or of the metadata file `source`. `exclude`: a folder inside it to pass over.

  Raises ValueError with the remedy where there is no such folder, nothing in it, or its metadata cannot be read.
  """
  source = pathlib.Path(source)
  try:
    if source.is_file() and source.suffix.lower() in ('.jsonl', '.csv', '.json'):
      folder, metadata = source.parent, source
    elif source.is_dir():
      folder = source
      metadata = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    else:
      state = 'is a single file' if source.exists() else 'does not exist'
      raise ValueError(f'{source} {state}; give a folder of media files, or the word world')
    files = _files(folder, pathlib.Path(exclude).resolve() if exclude else None)
    rows = _rows(metadata) if metadata else None
  except PermissionError as error:
    raise ValueError(f'no permission to read {error.filename}; give yourself read access to it') from None
  listing = Listing([], [], [])
  if rows is None:
    _list_beside(folder, files, listing)
  else:
    _list_rows(folder, files, rows, listing)
  if not listing.entries:
    why = f'; {listing.rejected[0][1]}: {listing.rejected[0][0]}' if listing.rejected else ''
    raise ValueError(f'{source} holds no media that can be prepared{why}; put video, sound or image files there '
                     '(mp4, mov, webm, wav, png, ...)')
  return listing


def _files(folder: pathlib.Path, exclude: pathlib.Path | None) -> list[str]:
  """Relative paths of all files below, in a fixed order; hidden ones left out. Links to folders are followed, and what
  several lead to is listed once."""
  def refuse(error: OSError):
    raise error
  found, seen, starts = [], set(), [folder]
  for start in starts:  # links are added as they are met: a folder that is there itself keeps its own name
    for root, folders, names in os.walk(start, onerror=refuse):
      if (real := os.path.realpath(root)) in seen:
        folders.clear()
        continue
      seen.add(real)
      paths = [pathlib.Path(root, name) for name in sorted(folders) if not name.startswith('.')]
      paths = [path for path in paths if path.resolve() != exclude]
      folders[:] = [path.name for path in paths]
      starts += [path for path in paths if path.is_symlink()]
      found += [pathlib.Path(root, name).relative_to(folder).as_posix() for name in names if not name.startswith('.')]
  return sorted(found)


def _rows(metadata: pathlib.Path) -> list[dict]:
  """The rows of a metadata file, keys in lower case; ValueError with the line where it is broken."""
  text = metadata.read_text(encoding='utf-8-sig')
  rows = []
  try:
    if metadata.suffix.lower() == '.csv':
      rows = list(csv.DictReader(io.StringIO(text, newline='')))
    elif metadata.suffix.lower() == '.json':
      rows = json.loads(text)
    else:
      for number, line in enumerate(text.split('\n'), 1):  # captions may hold what splitlines takes for an end
        if line.strip():
          rows.append(json.loads(line))
  except (json.JSONDecodeError, csv.Error) as error:
    where = f'line {number}' if metadata.suffix.lower() == '.jsonl' else 'it'
    raise ValueError(f'{metadata}: {where} cannot be read ({error}); correct it') from None
  if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
    raise ValueError(f'{metadata} is no list of objects; give one {{"file_name": ..., "text": ...}} a clip')
  rows = [{str(key).strip().lower(): value for key, value in row.items()} for row in rows]
  if rows and not any(key in rows[0] for key in FILE_KEYS):
    raise ValueError(f'{metadata} has the columns {", ".join(rows[0]) or "(none)"} and none of '
                     f'{", ".join(FILE_KEYS)}; name the column of the files file_name')
  return rows


def _first(row: dict, keys: tuple[str, ...]) -> str:
  return next((str(row[key]).strip() for key in keys if row.get(key) not in (None, '')), '')


def _list_rows(folder: pathlib.Path, files: list[str], rows: list[dict], listing: Listing):
  named = {}
  for row in rows:
    file, audio = _first(row, FILE_KEYS), _first(row, ('audio',))
    if not file:
      listing.rejected.append(('row without a file', _first(row, TEXT_KEYS)[:60] or '(empty row)'))
      continue
    named[file] = named.get(file, 0) + 1
    name = file if named[file] == 1 else f'{file}#{named[file]}'  # one file may carry several captions
    if audio and not (folder / audio).is_file():
      listing.rejected.append(('its sound is missing', f'{name}: {audio}'))
      continue
    _add(folder, name, file, _first(row, TEXT_KEYS), _sound(folder / audio) if audio else None, listing)
    named.setdefault(audio, 1)
  left = [file for file in files if file not in named and pathlib.Path(file).suffix.lower() in SUFFIXES]
  listing.notes.extend(('not named in the metadata, left out', file) for file in left)


def _list_beside(folder: pathlib.Path, files: list[str], listing: Listing):
  known = set(files)
  for file in files:
    path = pathlib.Path(file)
    if path.suffix.lower() not in SUFFIXES:
      if path.suffix.lower() != '.txt':
        listing.notes.append(('not media by its name, left out', file))
      continue
    caption = path.with_suffix('.txt').as_posix()
    text = (folder / caption).read_text(encoding='utf-8-sig', errors='replace') if caption in known else ''
    _add(folder, file, file, ' '.join(text.split()), None, listing)


def _sound(path: pathlib.Path) -> Sound:
  state = path.stat()
  return Sound(str(path), state.st_size, state.st_mtime_ns)


def _add(folder: pathlib.Path, name: str, file: str, text: str, audio: Sound | None, listing: Listing):
  path = folder / file
  if not path.exists():
    listing.rejected.append(('missing file', name))
  elif not path.is_file():
    listing.rejected.append(('not a file', name))
  elif not os.access(path, os.R_OK):
    listing.rejected.append(('no permission to read', name))
  elif not path.stat().st_size:
    listing.rejected.append(('empty file', name))
  else:
    state = path.stat()
    listing.entries.append(Entry(name, str(path), text, state.st_size, state.st_mtime_ns, audio))
    if not text:
      listing.notes.append(('without caption', name))
