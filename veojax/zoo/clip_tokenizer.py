"""CLIP's tokenizer (Radford et al. 2021): lower-cased text to pairs of bytes merged in the order in which they were
learned (Sennrich et al. 2016), from vocab.json and merges.txt, or from a tokenizer.json that holds both.

A text is cut into words (runs of letters, single numerals, runs of other signs, English contractions). A word is its
UTF-8 bytes, each written as one printable character; the last one is marked as the word's end. A row begins with the
start token, ends with the end token, and is filled with the padding token, which the tower does not tell from text.
"""
import functools
import json
import pathlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

END_OF_WORD = '</w>'
_SPACE = re.compile(r'[^\S\x1c-\x1f]+')  # Unicode's white space, to which Python adds four separators
_CONTRACTION = re.compile("'(?:s|t|re|ve|m|ll|d)")
_RUN = re.compile('l+|n|o+')


def printable_bytes() -> list[str]:
  """The character that stands for each byte: itself where it is printable and no space, else one from 256 on."""
  kept = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
  others = iter(range(256, 512))
  return [chr(byte if byte in kept else next(others)) for byte in range(256)]


_BYTES = printable_bytes()


class ClipTokenizer:
  """Texts to rows of ids. May be used from many threads."""

  def __init__(self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], special: dict[str, str],
               max_length: int):
    """special: tokens by their roles bos, eos, unk, pad. max_length: of a row."""
    if missing := [token for token in special.values() if token not in vocabulary]:
      raise ValueError(f'the tokenizer lacks {", ".join(missing)} in its vocabulary; copy its folder again')
    self.vocabulary, self.max_length = vocabulary, max_length
    self.bos_id, self.eos_id, self.unk_id, self.pad_id = (
        vocabulary[special[role]] for role in ('bos', 'eos', 'unk', 'pad'))
    self._rank = {pair: rank for rank, pair in enumerate(merges)}
    self._special = re.compile(f'({"|".join(map(re.escape, sorted(set(special.values()), key=len, reverse=True)))})')
    self._word_ids = functools.lru_cache(1 << 16)(self._merged)

  @property
  def vocab_size(self) -> int:
    return len(self.vocabulary)

  @classmethod
  def load(cls, folder) -> 'ClipTokenizer':
    """The tokenizer in a published folder; ValueError where a file is missing or damaged."""
    folder = pathlib.Path(folder)
    settings = {name: _json(folder / f'{name}.json') for name in ('special_tokens_map', 'tokenizer_config')
                if (folder / f'{name}.json').exists()}
    if (folder / 'vocab.json').exists():
      vocabulary = _json(folder / 'vocab.json')
      lines = _text(folder / 'merges.txt').split('\n')
      merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith('#version')]
    else:
      model = _json(folder / 'tokenizer.json').get('model') or {}
      vocabulary = model.get('vocab', {})
      merges = [tuple(pair.split() if isinstance(pair, str) else pair) for pair in model.get('merges', [])]
    if not vocabulary or any(len(pair) != 2 for pair in merges):
      raise ValueError(f'{folder} holds no vocabulary of byte pairs; copy it again')
    special = {'bos': '<|startoftext|>', 'eos': '<|endoftext|>', 'unk': '<|endoftext|>', 'pad': '<|endoftext|>'}
    for role in special:
      for tree in settings.values():
        named = tree.get(f'{role}_token') or special[role]
        special[role] = named if isinstance(named, str) else named['content']
    length = settings.get('tokenizer_config', {}).get('model_max_length', 77)
    return cls(vocabulary, merges, special, min(length, 77))

  def ids(self, text: str) -> list[int]:
    """The ids of a text, without start and end."""
    found = []
    for i, part in enumerate(self._special.split(text)):
      if i % 2:
        found.append(self.vocabulary[part])
      else:
        for word in words(part):
          found += self._word_ids(word)
    return found

  def encode(self, text: str) -> list[int]:
    """Start, text and end; a text that is too long loses its tail."""
    return [self.bos_id, *self.ids(text)[:self.max_length - 2], self.eos_id]

  def rows(self, texts: Sequence[str]) -> np.ndarray:
    """int32[B, max_length]."""
    out = np.full((len(texts), self.max_length), self.pad_id, np.int32)
    for row, text in zip(out, texts):
      ids = self.encode(text)
      row[:len(ids)] = ids
    return out

  def _merged(self, word: str) -> list[int]:
    """Of the neighbours the pair that was learned first is merged wherever it stands, until none is left."""
    parts = [_BYTES[byte] for byte in word.encode()]
    parts[-1] += END_OF_WORD
    while len(parts) > 1:
      first = min(zip(parts, parts[1:]), key=lambda pair: self._rank.get(pair, len(self._rank)))
      if first not in self._rank:
        break
      merged, i = [], 0
      while i < len(parts):
        together = tuple(parts[i:i + 2]) == first
        merged.append(''.join(first) if together else parts[i])
        i += 1 + together
      parts = merged
    return [self.vocabulary.get(part, self.unk_id) for part in parts]


def words(text: str) -> list[str]:
  """The words of a text, composed (NFC) and in lower case, character by character."""
  text = _SPACE.sub(' ', unicodedata.normalize('NFC', text))
  text = ''.join(map(str.lower, text))
  kinds = ''.join(map(_kind, text))
  found, at = [], 0
  while at < len(text):
    match = _CONTRACTION.match(text, at) or _RUN.match(kinds, at)
    if match:
      found.append(text[at:match.end()])
    at = match.end() if match else at + 1
  return found


def _kind(char: str) -> str:
  """l: letter, n: numeral, s: space, o: all else."""
  major = unicodedata.category(char)[0]
  return 'l' if major == 'L' else 'n' if major == 'N' else 's' if _SPACE.match(char) else 'o'


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f'{path} cannot be read ({error}); give the folder of a CLIP tokenizer, whole') from None


def _json(path: pathlib.Path) -> dict:
  try:
    tree = json.loads(_text(path))
  except json.JSONDecodeError as error:
    raise ValueError(f'{path} is damaged ({error}); copy it again') from None
  if not isinstance(tree, dict):
    raise ValueError(f'{path} holds no mapping; copy it again')
  return tree
