"""Tags: what a file says of itself where other programs show it.

  mp4    title, artist, comment, description   iTunes atoms
  webm   all five                              Matroska tags
  wav    title, artist, comment                RIFF INFO: INAM, IART, ICMT; UTF-8, which old players take for Latin-1
  flac   title, artist, comment, software      Vorbis comments; comment stands under DESCRIPTION, as usual there
  png    all five                              iTXt chunks: Title, Author, Comment, Description, Software
  gif    all five                              one comment extension, a line `name: text` each, breaks become spaces

Text is UTF-8 everywhere. ffmpeg writes mp4, webm, wav and flac, and its own name as their encoder.
"""
import struct
import zlib

NAMES = ('title', 'artist', 'comment', 'description', 'software')
CARRIED = {'mp4': ('title', 'artist', 'comment', 'description'), 'webm': NAMES, 'wav': ('title', 'artist', 'comment'),
           'flac': ('title', 'artist', 'comment', 'software'), 'png': NAMES, 'gif': NAMES}
PNG_KEYWORDS = {'title': 'Title', 'artist': 'Author', 'comment': 'Comment', 'description': 'Description',
                'software': 'Software'}
PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
PNG_HEADER = len(PNG_SIGNATURE) + 25  # with IHDR
MAX_PNG_TEXT = 1 << 20  # bytes of one tag


def fitting(tags: dict[str, str] | None, format: str) -> dict[str, str]:
  """Those of the tags that `format` carries, without empty ones. ValueError for a name that is not in NAMES."""
  for name in tags or {}:
    if name not in NAMES:
      raise ValueError(f'unknown tag {name!r}; known are {", ".join(NAMES)}')
  # NUL ends a text in most formats; half a surrogate pair is in no UTF-8.
  texts = {name: str(text).replace('\0', '').encode('utf-8', 'replace').decode() for name, text in (tags or {}).items()}
  return {name: texts[name] for name in CARRIED[format] if texts.get(name)}


def into_png(data: bytes, tags: dict[str, str]) -> bytes:
  """The png with a text chunk for each tag after its header."""
  chunks = b''
  for name, text in tags.items():
    body = b'iTXt' + PNG_KEYWORDS[name].encode() + bytes(5) + text.encode()  # not compressed, no language
    chunks += struct.pack('>I', len(body) - 4) + body + struct.pack('>I', zlib.crc32(body))
  return data[:PNG_HEADER] + chunks + data[PNG_HEADER:]


def from_png(file) -> dict[str, str]:
  """Tags in the tEXt, zTXt and iTXt chunks of an open png; a chunk that makes no sense is passed over."""
  names, tags = {keyword.encode(): name for name, keyword in PNG_KEYWORDS.items()}, {}
  file.seek(len(PNG_SIGNATURE))
  while len(head := file.read(8)) == 8:
    size, kind = struct.unpack('>I4s', head)
    if kind not in (b'tEXt', b'zTXt', b'iTXt') or size > MAX_PNG_TEXT:
      file.seek(size + 4, 1)
      continue
    keyword, _, body = file.read(size + 4)[:size].partition(b'\0')
    if keyword in names:
      try:
        tags.setdefault(names[keyword], _png_text(kind, body))
      except (ValueError, IndexError, zlib.error):
        continue
  return tags


def _png_text(kind: bytes, body: bytes) -> str:
  """Of a chunk behind its keyword (PNG specification, 11.3.3)."""
  if kind == b'tEXt':
    return body.decode('latin-1')
  compressed = kind == b'zTXt' or body[0] == 1
  text = body[1:] if kind == b'zTXt' else body[2:].split(b'\0', 2)[2]
  if compressed:
    text = zlib.decompressobj().decompress(text, MAX_PNG_TEXT)
  return text.decode('latin-1' if kind == b'zTXt' else 'utf-8')


def into_gif(data: bytes, tags: dict[str, str]) -> bytes:
  """The gif with the tags as a comment extension before its first picture."""
  text = '\n'.join(f'{name}: {" ".join(text.splitlines())}' for name, text in tags.items()).encode()
  pieces = [text[i:i + 255] for i in range(0, len(text), 255)]
  comment = b'\x21\xfe' + b''.join(bytes([len(piece)]) + piece for piece in pieces) + b'\0'
  palette = 3 << (data[10] & 7) + 1 if data[10] & 128 else 0
  return data[:13 + palette] + comment + data[13 + palette:]


def from_gif(comment: str) -> dict[str, str]:
  """The comment's lines as tags where each of them is one, else the comment as it is."""
  lines = [line.partition(': ') for line in comment.split('\n')]
  if all(name in NAMES for name, _, _ in lines):
    return {name: text for name, _, text in lines}
  return {'comment': comment}
