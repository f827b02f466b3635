"""Captions to integers: sentencepiece, trained on the captions of a data set or given as a `.model` file.

A trained model has 0 padding, 1 unknown, 2 beginning, 3 end, and a token for every byte, so no text of any script is
out of its vocabulary. Its pieces are those of byte pair encoding (Sennrich et al. 2016), which makes a frequent word one
piece however few different words there are; sentencepiece's unigram models want a piece to be part of several words. A given model keeps its own ids; a special token
that it lacks is left out (T5's has no beginning).
"""
import hashlib
import io
import itertools
import logging
import threading
from collections.abc import Iterable

import sentencepiece

from veojax import files

SENTENCE_CHARS = 4096      # longer captions teach the trainer nothing new and cost it quadratic time
SENTENCES = 500_000
SMALLEST_VOCABULARY = 300  # 256 bytes, 4 special tokens, and room for an alphabet

_logger = logging.getLogger(__name__)


class Tokenizer:
  """A sentencepiece model. Pickles, and may be used from many threads."""

  def __init__(self, model: bytes):
    self._model = model
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    self._warned = threading.Event()

  @classmethod
  def load(cls, path) -> 'Tokenizer':
    """The tokenizer in the file `path`; ValueError when it is missing or is no sentencepiece model."""
    try:
      return cls(files.path(path).read_bytes())
    except OSError as error:
      raise ValueError(f'{path}: {error.strerror}; give the path of a sentencepiece .model file') from None
    except RuntimeError:
      raise ValueError(f'{path} is not a sentencepiece model; give a .model file written by sentencepiece') from None

  @classmethod
  def train(cls, captions: Iterable[str], path, vocab_size: int) -> 'Tokenizer':
    """Trains on the captions and writes `path`. `vocab_size` is an upper bound: few captions make fewer pieces."""
    if vocab_size < SMALLEST_VOCABULARY:
      raise ValueError(f'vocab_size={vocab_size} has no room for the 256 bytes; give at least {SMALLEST_VOCABULARY}')
    lines = (' '.join(text.split())[:SENTENCE_CHARS] for text in captions)
    lines = itertools.islice((line for line in lines if line), SENTENCES)
    # The trainer refuses an empty corpus; one letter leaves the vocabulary to the bytes.
    first = next(lines, 'a')
    model = io.BytesIO()
    try:
      sentencepiece.SentencePieceTrainer.train(
          sentence_iterator=itertools.chain([first], lines), model_writer=model, vocab_size=vocab_size, model_type='bpe',
          hard_vocab_limit=False, byte_fallback=True, pad_id=0, unk_id=1, bos_id=2, eos_id=3, minloglevel=2,
          num_threads=1, max_sentence_length=16 * SENTENCE_CHARS)
    except RuntimeError as error:
      if 'required_chars' not in str(error):
        raise
      raise ValueError(f'vocab_size={vocab_size} is smaller than the number of different characters in the captions; '
                       'give a larger one') from None
    tokenizer = cls(model.getvalue())
    tokenizer.save(path)
    return tokenizer

  def save(self, path):
    """Writes the `.model` file."""
    files.write(path, self._model)

  def hash(self) -> str:
    """Sixteen hex digits that change with any piece."""
    return hashlib.sha256(self._model).hexdigest()[:16]

  @property
  def vocab_size(self) -> int:
    return self._processor.vocab_size()

  @property
  def pad_id(self) -> int:
    """The padding id; 0 where the model has none."""
    return max(self._processor.pad_id(), 0)

  def encode(self, text: str, max_length: int) -> list[int]:
    """Ids of `text` between beginning and end, at most `max_length` of them in all.

    A text that is too long loses its tail but keeps its end; the first time, a warning says so.
    """
    if max_length < 2:
      raise ValueError(f'max_length={max_length} leaves no room for beginning and end; give at least 2')
    before = [i for i in (self._processor.bos_id(),) if i >= 0]
    after = [i for i in (self._processor.eos_id(),) if i >= 0]
    ids = self._processor.encode(text)
    room = max_length - len(before) - len(after)
    if len(ids) > room and not self._warned.is_set():
      self._warned.set()
      _logger.warning('a caption of %d tokens is cut to %d: %.60s... (said once)', len(ids), room, text)
    return before + ids[:room] + after

  def decode(self, ids: Iterable[int]) -> str:
    """The text of `ids`, special tokens left out."""
    return self._processor.decode([int(i) for i in ids])

  def __reduce__(self):
    return Tokenizer, (self._model,)
