"""CLIP's tokenizer and text tower against transformers' own."""
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.zoo import parity
from tests.zoo import small_folders as small
from veojax.zoo import clip_text, text_encoders, weight_table
from veojax.zoo.clip_tokenizer import ClipTokenizer

TEXTS = ('', 'a photo of a cat', "It's  the dog's\tball; DON'T!! we'll", 'café CAFE\u0301 naïve Ünïcode',
         'ΑΣ ΣΣ İstanbul ŒUVRE ß ẞ',
         '日本語の猫 고양이 кошка קט', '1234 ½ Ⅷ ²x3',
         'snow_man ☃ 🏳️‍🌈 e\u0301\u0323', 'a\x1cb\u00a0c\u2028d\u200be',
         "!!'s 's 'S ''ll", 'one<|endoftext|>two <|ENDOFTEXT|> <|startoftext|>', ' word' * 90, 'x' * 300,
         'in the thin then thinner')


def published_vocabulary(path):
  """CLIP's own, of the list of merges that its makers published."""
  with gzip.open(path) as file:
    lines = file.read().decode().split('\n')[1:49152 - 256 - 2 + 1]
  return [tuple(line.split()) for line in lines]


def agree(folder):
  parity.libraries()
  import transformers
  theirs = transformers.CLIPTokenizer.from_pretrained(folder)
  rng = np.random.default_rng(0)
  ranges = ((32, 127), (32, 127), (160, 592), (0x370, 0x530), (0x1e00, 0x2100), (0x1f300, 0x1f650))
  drawn = [''.join(chr(rng.integers(*ranges[rng.integers(len(ranges))])) for _ in range(40)) for _ in range(300)]
  ours = ClipTokenizer.load(folder)
  texts = [*TEXTS, *drawn]
  expected = theirs(texts, padding='max_length', max_length=77, truncation=True).input_ids
  for text, row, wanted in zip(texts, ours.rows(texts), expected, strict=True):
    assert row.tolist() == wanted, text
  assert len(ours.encode(TEXTS[-3])) == 77 and ours.encode('') == [ours.bos_id, ours.eos_id]


@pytest.mark.parametrize('one_file', [False, True], ids=['vocab and merges', 'tokenizer.json'])
def test_a_small_vocabulary(one_file, tmp_path):
  small.write_clip_tokenizer(tmp_path / 'a')
  agree(tmp_path / 'a')
  if one_file:
    import transformers
    transformers.CLIPTokenizer.from_pretrained(tmp_path / 'a').save_pretrained(tmp_path / 'b')
    assert not (tmp_path / 'b' / 'vocab.json').exists()
    agree(tmp_path / 'b')


def test_the_published_vocabulary(anchors_folder, tmp_path):
  small.write_clip_tokenizer(tmp_path / 'a', published_vocabulary(anchors_folder / 'clip_bpe_simple_vocab_16e6.txt.gz'))
  tokenizer = ClipTokenizer.load(tmp_path / 'a')
  assert tokenizer.vocab_size == 49408
  assert tokenizer.encode('a photo of a cat') == [49406, 320, 1125, 539, 320, 2368, 49407]
  agree(tmp_path / 'a')


def test_other_padding(tmp_path):
  """'!' fills rows of Stable Diffusion 2, and is then no word."""
  folder = small.write_clip_tokenizer(tmp_path / 'a')
  (folder / 'special_tokens_map.json').write_text(json.dumps({'pad_token': '!'}))
  (folder / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': 'CLIPTokenizer', 'pad_token': '!',
                                                            'model_max_length': 77}))
  agree(folder)
  assert ClipTokenizer.load(folder).rows(['a'])[0, -1] == 0


def test_damaged_tokenizers_are_refused(tmp_path):
  folder = small.write_clip_tokenizer(tmp_path / 'a')
  (folder / 'merges.txt').rename(folder / 'elsewhere')
  with pytest.raises(ValueError, match='merges.txt cannot be read'):
    ClipTokenizer.load(folder)
  (folder / 'merges.txt').write_text('#version: 0.2\na b c\n')
  with pytest.raises(ValueError, match='no vocabulary of byte pairs'):
    ClipTokenizer.load(folder)
  (folder / 'vocab.json').write_text('{"a": 0')
  with pytest.raises(ValueError, match='is damaged'):
    ClipTokenizer.load(folder)
  (folder / 'merges.txt').write_text('')
  (folder / 'vocab.json').write_text('{"a": 0}')
  with pytest.raises(ValueError, match='lacks <|startoftext|>'.replace('|', '\\|')):
    ClipTokenizer.load(folder)


GELU = {**small.CLIP, 'hidden_act': 'gelu', 'hidden_size': 24, 'num_attention_heads': 3, 'num_hidden_layers': 3,
        'intermediate_size': 40, 'eos_token_id': 2}


@pytest.mark.parametrize('config', [small.CLIP, GELU], ids=['quick GELU', 'GELU'])
def test_the_tower_is_transformers(config, tmp_path):
  torch, _ = parity.libraries()
  import transformers
  module = small.write_part(tmp_path / 'a', clip_text.PART, config, 'model', 1)
  theirs, report = transformers.CLIPTextModel.from_pretrained(tmp_path / 'a', output_loading_info=True)
  assert not report['missing_keys'] and not report['unexpected_keys']
  small.write_clip_tokenizer(tmp_path / 'tokenizer')
  ids = ClipTokenizer.load(tmp_path / 'tokenizer').rows(TEXTS[:6])
  with jax.default_matmul_precision('highest'), torch.no_grad():
    features, pooled = jax.jit(lambda m, ids: m(ids))(module, ids)
    expected = theirs(torch.tensor(ids, dtype=torch.int64))
  errors = parity.relative(features, expected.last_hidden_state), parity.relative(pooled, expected.pooler_output)
  print('features, pooled: largest relative differences', *(f'{e:.2e}' for e in errors))
  assert max(errors) < 1e-5


def test_the_text_tower_of_both(tmp_path):
  """CLIP's own folder, in whose config transformers leaves out its defaults; and with all fields, as first published."""
  torch, _ = parity.libraries()
  import transformers
  folder = small.write_clip_tokenizer(tmp_path / 'clip')
  sizes = {'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 2}
  text = {**sizes, 'num_attention_heads': 4, 'vocab_size': 530, 'eos_token_id': 523}
  vision = {**sizes, 'num_attention_heads': 2, 'patch_size': 56}
  config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
  theirs = parity.draw(torch, transformers.CLIPModel(config), 0)
  theirs.save_pretrained(folder)
  ids = torch.tensor(ClipTokenizer.load(folder).rows(TEXTS[:3]), dtype=torch.int64)
  with torch.no_grad():
    expected = theirs.text_model(ids).last_hidden_state
  stored = json.loads((folder / 'config.json').read_text())
  for fields in (stored['text_config'], config.text_config.to_dict()):
    (folder / 'config.json').write_text(json.dumps({**stored, 'text_config': fields}))
    encode = text_encoders.open_encoder(folder, 77)
    assert parity.relative(np.stack(encode(TEXTS[:3])), expected) < 1e-4


def test_a_token_sees_what_is_before_it():
  module = small.drawn(clip_text.PART.shapes(clip_text.PART.build(small.CLIP, 'config')), 2)
  ids = jnp.arange(12)[None]
  tower = jax.jit(lambda module, ids: module(ids)[0])
  features, changed = tower(module, ids), tower(module, ids.at[0, 7].set(100))
  moved = np.abs(np.asarray(features - changed)).max((0, 2)) > 0
  assert not moved[:7].any() and moved[7:].all()


@pytest.mark.parametrize('prefix', ['text_model.', ''])
def test_older_and_newer_names_go_back_as_they_came(prefix, tmp_path):
  config = clip_text.PART.build(small.CLIP, 'config')
  module = small.drawn(clip_text.PART.shapes(config), 3)
  table = clip_text.table(config)
  weight_table.save(tmp_path / 'old', table, module)
  old = small.load_tensors(tmp_path / 'old')
  named = {prefix + key.removeprefix('text_model.'): value for key, value in old.items()}
  if prefix:
    named['text_model.embeddings.position_ids'] = np.arange(77)[None]
  wanted = weight_table.entries(table, module, named)
  assert wanted.keys() == named.keys() - {'text_model.embeddings.position_ids'}
  small.save_tensors(tmp_path / 'new' / 'model.safetensors', named)
  again = weight_table.load(tmp_path / 'new', table, clip_text.PART.shapes(config))
  jax.tree.map(np.testing.assert_array_equal, module, again)
  del named[f'{prefix}final_layer_norm.bias']
  small.save_tensors(tmp_path / 'less' / 'model.safetensors', named)
  with pytest.raises(ValueError, match='missing \\(1\\): .*final_layer_norm.bias'):
    weight_table.load(tmp_path / 'less', table, clip_text.PART.shapes(config))
