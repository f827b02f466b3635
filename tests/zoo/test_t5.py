"""T5 and UMT5 against transformers' own, through the folders it writes; padding; real vocabularies; bad folders."""
import json

import jax
import numpy as np
import pytest

from veojax import sharding
from veojax.data.tokenizer import Tokenizer
from veojax.zoo import t5, weight_table

TEXTS = ['A red ball bounces twice.', 'rain', '', 'The camera pans over a quiet harbour at dawn while gulls cry. ' * 3]
SMALL = dict(vocab_size=320, d_model=24, d_kv=10, d_ff=40, num_layers=3, num_heads=2, feed_forward_proj='gated-gelu')
CONFIGS = {  # K·N equal to D or not; few and many buckets; one layer; another epsilon
    't5': ('t5', 24, SMALL),
    't5 wide heads': ('t5', 17, {**SMALL, 'd_kv': 16, 'num_heads': 3, 'relative_attention_num_buckets': 8,
                                 'relative_attention_max_distance': 12, 'layer_norm_epsilon': 1e-3}),
    't5 long': ('t5', 200, {**SMALL, 'd_kv': 12, 'num_layers': 1}),
    'umt5': ('umt5', 24, SMALL),
    'umt5 long': ('umt5', 200, {**SMALL, 'num_heads': 4, 'd_ff': 33, 'num_layers': 2}),
}


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  path = tmp_path_factory.mktemp('vocabulary') / 'spiece.model'
  Tokenizer.train(TEXTS * 4, path, 320)
  return path.read_bytes()


def published(folder, kind, config, vocabulary):
  """A folder that transformers wrote, with all weights drawn anew; and the PyTorch module."""
  torch = pytest.importorskip('torch', reason="PyTorch is not installed: pip install -e '.[parity]'")
  transformers = pytest.importorskip('transformers', reason="transformers is not installed: pip install -e '.[parity]'")
  classes = {'t5': (transformers.T5Config, transformers.T5EncoderModel),
             'umt5': (transformers.UMT5Config, transformers.UMT5EncoderModel)}
  transformers.logging.disable_progress_bar()
  module = classes[kind][1](classes[kind][0](**config)).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, p in module.named_parameters():
      is_scale = name.endswith('layer_norm.weight')
      # Of a size that makes logits spread by several units, so that softmax, bias and mask all matter.
      sd = .1 if is_scale else 1 if 'relative' in name or 'shared' in name else 1.5 * p.shape[1] ** -.5
      p.copy_(is_scale + sd * torch.randn(p.shape, generator=generator))
  module.save_pretrained(folder)
  (folder / 'spiece.model').write_bytes(vocabulary)
  return module


@pytest.mark.parametrize('name', CONFIGS)
def test_embeddings_are_those_of_transformers(name, tmp_path, vocabulary):
  kind, length, config = CONFIGS[name]
  module = published(tmp_path, kind, config, vocabulary)
  import torch
  with jax.default_matmul_precision('highest'):
    model = t5.load(tmp_path)
    embedding, mask = model.encode(TEXTS, length)
  assert embedding.shape == (4, length, config['d_model']) and embedding.dtype == np.float32
  assert not mask.all() and mask.any(1).all()
  ids = np.zeros(mask.shape, np.int64)
  ids[mask] = np.concatenate([model.tokenizer.encode(text, length) for text in TEXTS])
  with torch.no_grad():
    expected = module(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
  error = np.abs(embedding - expected)[mask].max() / np.abs(expected[mask]).max()
  print(f'{name}: largest relative difference {error:.2e}')  # shown by pytest -s
  assert error < 3e-5


@pytest.mark.parametrize('kind', ['t5', 'umt5'])
def test_weights_go_back_as_transformers_wrote_them(kind, tmp_path, vocabulary):
  module = published(tmp_path / 'a', kind, SMALL, vocabulary)
  model = t5.load(tmp_path / 'a')
  weight_table.save(tmp_path / 'b', t5.TABLES[kind], model.encoder)
  (tmp_path / 'b' / 'config.json').write_bytes((tmp_path / 'a' / 'config.json').read_bytes())
  again, report = type(module).from_pretrained(tmp_path / 'b', output_loading_info=True)
  assert not report['missing_keys'] and not report['unexpected_keys']
  for ours, theirs in zip(again.parameters(), module.parameters(), strict=True):
    np.testing.assert_array_equal(ours.detach().numpy(), theirs.detach().numpy())


def written(folder, kind, vocabulary, **changes):
  """A folder of our own making, where PyTorch is not needed."""
  folder.mkdir(exist_ok=True)
  config = t5.T5Config(model_type=kind, **SMALL)
  encoder = t5.ENCODERS[kind](config, rngs=t5.nnx.Rngs(0))
  weight_table.save(folder, t5.TABLES[kind], encoder)
  tree = {'architectures': ['T5EncoderModel'], 'dropout_rate': 0.1, 'model_type': kind, **SMALL, **changes}
  (folder / 'config.json').write_text(json.dumps({k: v for k, v in tree.items() if v is not None}))
  (folder / 'spiece.model').write_bytes(vocabulary)
  return folder


@pytest.mark.parametrize('kind', ['t5', 'umt5'])
def test_padding_and_neighbours_change_nothing(kind, tmp_path, vocabulary):
  model = t5.load(written(tmp_path / 'a', kind, vocabulary))
  together, mask = model.encode(TEXTS, 40)
  for row, text in enumerate(TEXTS):
    alone, its_mask = model.encode([text], max(2, int(mask[row].sum())))
    assert its_mask.all() or not text
    np.testing.assert_allclose(alone[its_mask], together[row][mask[row]], atol=1e-5)
  swapped, _ = model.encode([TEXTS[0], 'rain rain'], 40)
  assert np.abs(swapped[1] - together[1])[mask[1]].max() > 1e-3
  np.testing.assert_allclose(swapped[0][mask[0]], together[0][mask[0]], atol=1e-6)


def test_order_matters_only_by_distance(vocabulary, tmp_path):
  """Buckets: symmetric in size, split by side, one per small distance, none beyond the last."""
  config = t5.read_config(written(tmp_path / 'a', 't5', vocabulary) / 'config.json')
  bucket = t5.buckets(400, config)
  assert bucket.min() == 0 and bucket.max() == 31
  np.testing.assert_array_equal(bucket[np.tril_indices(400, -1)], bucket.T[np.tril_indices(400, -1)] - 16)
  for shift in (1, 37):
    np.testing.assert_array_equal(bucket[shift:, shift:], bucket[:-shift, :-shift])
  assert list(bucket[:9, 0]) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
  assert (np.diff(bucket[:, 0]) >= 0).all() and (bucket[128:, 0] == 15).all() and bucket[90, 0] < 15


def test_runs_on_a_mesh(tmp_path, vocabulary):
  folder = written(tmp_path / 'a', 'umt5', vocabulary)
  expected, mask = t5.load(folder).encode(TEXTS[:3], 24)
  with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))):
    embedding, _ = t5.load(folder).encode(TEXTS[:3], 24)
  np.testing.assert_allclose(embedding[mask], expected[mask], atol=1e-5)


def test_bfloat16_is_near(tmp_path, vocabulary):
  folder = written(tmp_path / 'a', 't5', vocabulary)
  exact, mask = t5.load(folder).encode(TEXTS, 24)
  rough, _ = t5.load(folder, dtype='bfloat16').encode(TEXTS, 24)
  assert rough.dtype == np.float32
  assert 1e-4 < np.sqrt(np.mean((rough - exact)[mask] ** 2)) / exact[mask].std() < 0.05


@pytest.mark.parametrize('changes, message', [
    ({'feed_forward_proj': 'relu'}, 'feed_forward_proj'), ({'model_type': 'mt5'}, 'model_type'),
    ({'d_kv': None}, 'd_kv'),
    ({'num_layerz': 2}, "did you mean 'num_layers'"), ({'num_layers': 4}, r'missing \(9\): encoder.block.3'),
    ({'num_layers': 2}, r'unexpected \(9\): encoder.block.2'), ({'d_ff': 41}, r'misshapen \(9\)'),
    ({'vocab_size': 100}, 'embeds 100')])
def test_folders_that_do_not_fit_are_refused(changes, message, tmp_path, vocabulary):
  folder = written(tmp_path / 'a', 't5', vocabulary, **changes)
  with pytest.raises(ValueError, match=message):
    t5.load(folder)


def test_bad_arguments_are_refused(tmp_path, vocabulary):
  folder = written(tmp_path / 'a', 't5', vocabulary)
  for texts in ('rain', []):
    with pytest.raises(ValueError, match='a list of at least one text'):
      t5.load(folder).encode(texts, 8)
  (folder / 'spiece.model').unlink()
  with pytest.raises(ValueError, match='spiece.model'):
    t5.load(folder)
  with pytest.raises(ValueError, match='config.json cannot be read'):
    t5.load(tmp_path / 'none')


# From the documentation of transformers and of T5.
PUBLISHED = {'The house is wonderful.': [37, 629, 19, 1627, 5, 1],
             'translate English to German: The house is wonderful.':
                 [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5, 1],
             'Das Haus ist wunderbar.': [644, 4598, 229, 19250, 5, 1]}


def test_the_published_vocabulary(anchors_folder, tmp_path):
  """The copy at hand has one piece more than T5's, a beginning at id 2; without it the ids are T5's own."""
  path = anchors_folder / 't5_cc_all.32000.100extra_plus_bos.model'
  if not path.exists():
    pytest.skip('no T5 vocabulary in shared/anchors')
  with_beginning = Tokenizer.load(path)
  for text, ids in PUBLISHED.items():
    first, *rest = with_beginning.encode(text, 32)
    assert first == 2 and [i if i < 2 else i - 1 for i in rest] == ids
  model_pb2 = pytest.importorskip('sentencepiece.sentencepiece_model_pb2')
  proto = model_pb2.ModelProto.FromString(path.read_bytes())
  del proto.pieces[2]
  proto.trainer_spec.bos_id = -1
  (tmp_path / 'spiece.model').write_bytes(proto.SerializeToString())
  tokenizer = Tokenizer.load(tmp_path / 'spiece.model')
  assert tokenizer.pad_id == 0 and tokenizer.vocab_size == 32100
  for text, ids in PUBLISHED.items():
    assert tokenizer.encode(text, 32) == ids
    assert tokenizer.encode(text, 4) == ids[:3] + [1]
