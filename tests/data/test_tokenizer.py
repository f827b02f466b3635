"""Any text becomes ids and comes back; ids are bounded, begin with 2 and end with 3."""
import concurrent.futures
import logging
import pickle

import pytest
import sentencepiece

from veojax.data.tokenizer import Tokenizer

CAPTIONS = ['a red ball falls and bounces twice', 'a blue cube slides to the left', 'the camera pans', '球が落ちる', ''] * 20


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  return Tokenizer.train(CAPTIONS, tmp_path_factory.mktemp('text') / 'text.model', 400)


@pytest.mark.parametrize('text', [
    '', ' ', 'a red ball', 'Ein Ball fällt', '球が床に落ちて二回跳ねる', 'мяч падает', 'كرة حمراء', '🎾🔴', 'a\nb\tc', '\x00',
    'x' * 5000])
def test_any_text_has_ids_in_the_vocabulary(tokenizer, text):
  ids = tokenizer.encode(text, 64)
  assert ids[0] == 2 and ids[-1] == 3 and 2 <= len(ids) <= 64
  assert all(0 < i < tokenizer.vocab_size for i in ids) and 1 not in ids  # byte fallback: nothing is unknown


@pytest.mark.parametrize('text', ['a red ball', '球が床に', 'мяч', 'zebra crossing', '🎾'])
def test_text_comes_back(tokenizer, text):
  assert tokenizer.decode(tokenizer.encode(text, 100)) == text


def test_too_long_is_cut_and_said_once(tokenizer, caplog):
  fresh = pickle.loads(pickle.dumps(tokenizer))
  whole = fresh.encode('a red ball ' * 50, 1000)
  with caplog.at_level(logging.WARNING):
    assert fresh.encode('a red ball ' * 50, 9) == whole[:8] + [3]
    assert fresh.encode('a blue ball ' * 50, 9)[-1] == 3
  assert len(caplog.records) == 1
  with pytest.raises(ValueError, match='max_length'):
    fresh.encode('a', 1)


def test_the_file_and_a_pickle_are_the_same_tokenizer(tokenizer, tmp_path):
  trained = Tokenizer.train(CAPTIONS, tmp_path / 'a.model', 400)
  copies = [Tokenizer.load(tmp_path / 'a.model'), pickle.loads(pickle.dumps(trained)), tokenizer]
  assert len({tuple(copy.encode('a blue ball 球 pans', 50)) for copy in copies}) == 1


def test_many_threads_agree(tokenizer):
  texts = [f'a red ball {i}' for i in range(200)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(lambda text: tokenizer.encode(text, 32), texts)) == [tokenizer.encode(t, 32) for t in texts]


@pytest.mark.parametrize('captions', [[], [''], ['  ', '\n'], ['a']])
def test_hardly_any_captions(captions, tmp_path):
  tokenizer = Tokenizer.train(captions, tmp_path / 'text.model', 300)
  assert tokenizer.decode(tokenizer.encode('a red ball', 64)) == 'a red ball'


def test_a_given_model_without_a_beginning(tmp_path):
  path = tmp_path / 'given.model'
  with open(path, 'wb') as file:  # T5's special tokens
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS[:4]), model_writer=file, vocab_size=300, byte_fallback=True,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
  ids = Tokenizer.load(path).encode('a red ball', 32)
  assert ids[-1] == 1 and -1 not in ids and ids.count(1) == 1


def test_bad_input_names_the_remedy(tmp_path):
  with pytest.raises(ValueError, match='nowhere.model'):
    Tokenizer.load(tmp_path / 'nowhere.model')
  (tmp_path / 'text.model').write_bytes(b'not a model')
  with pytest.raises(ValueError, match='not a sentencepiece model'):
    Tokenizer.load(tmp_path / 'text.model')
  with pytest.raises(ValueError, match='vocab_size=10'):
    Tokenizer.train(['a'], tmp_path / 'small.model', 10)
  with pytest.raises(ValueError, match='larger'):
    Tokenizer.train([''.join(chr(0x4e00 + i) for i in range(500))] * 3, tmp_path / 'small.model', 300)


def test_words_of_a_small_language_are_whole_pieces(tmp_path):
  """However few different words there are, so that no word shares letters with another."""
  words = ('a', 'red', 'little', 'ball', 'bounces', 'twice')
  tokenizer = Tokenizer.train([' '.join(words)] * 30, tmp_path / 'text.model', 400)
  assert all(len(tokenizer.encode(word, 64)) == 3 for word in words)
