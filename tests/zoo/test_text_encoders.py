"""Text features through transformers: any folder that AutoModel reads, against the library itself."""
import json

import numpy as np
import pytest

from veojax.zoo import text_encoders


def test_a_language_model_gives_its_last_hidden_state(tmp_path):
  """Padding, and texts that are too long, included."""
  reason = "PyTorch and transformers are not installed: pip install -e '.[parity]'"
  torch, transformers = (pytest.importorskip(name, reason=reason) for name in ('torch', 'transformers'))
  tokenizers = pytest.importorskip('tokenizers', reason=reason)
  words = ['[PAD]', '[UNK]', 'a', 'red', 'ball', 'falls']
  plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, '[UNK]'))
  plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token='[PAD]', unk_token='[UNK]').save_pretrained(
      tmp_path)
  config = transformers.LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                    num_attention_heads=2, max_position_embeddings=32)
  transformers.logging.disable_progress_bar()
  module = transformers.LlamaModel(config).eval()
  module.save_pretrained(tmp_path)
  texts = ['a red ball falls', 'ball', 'a red red red red red ball']
  features = text_encoders.open_encoder(tmp_path, 5)(texts)
  assert [f.shape for f in features] == [(4, 16), (1, 16), (5, 16)]
  for text, ours in zip(texts, features):
    ids = torch.tensor([[words.index(w) for w in text.split()][:5]])
    with torch.no_grad():
      np.testing.assert_allclose(ours, module(input_ids=ids).last_hidden_state[0].numpy(), atol=1e-5)


def test_other_folders_are_refused(tmp_path):
  with pytest.raises(ValueError, match='config.json cannot be read'):
    text_encoders.open_encoder(tmp_path, 8)
  pytest.importorskip('transformers', reason='transformers is not installed')
  (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'nothing'}))
  with pytest.raises(ValueError, match='is no text encoder that transformers can read'):
    text_encoders.open_encoder(tmp_path, 8)
