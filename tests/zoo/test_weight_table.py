"""Weight tables: every transform undoes itself, a model comes back as the bytes it came from, all errors at once."""
import json
import weakref

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx
from jax.sharding import PartitionSpec as P

from veojax import sharding
from veojax.models import layers, transformer
from veojax.zoo import transforms, weight_files, weight_table
from veojax.zoo.transforms import CONV, FLAT, LINEAR, LINEAR_FROM_HEADS, SAME
from veojax.zoo.weight_table import Rule, drop

D, N, K, F, L, VOCAB = 8, 2, 3, 4, 3, 8


class Block(nnx.Module):

  def __init__(self, *, rngs):
    init, key = layers.normal(1.0), rngs.params()
    self.w_q, self.w_k, self.w_v = (layers.param(init, key, (D, N, K), sharding.D_NK) for _ in 'qkv')
    self.b_q = layers.param(init, key, (N, K))
    self.w_out = layers.param(init, key, (N, K, D), sharding.NK_D)
    self.w_up, self.w_gate = (layers.param(init, key, (D, F)) for _ in 'ug')


class Toy(nnx.Module):

  def __init__(self, *, rngs):
    init, key = layers.normal(1.0), rngs.params()
    self.embedding = layers.param(init, key, (VOCAB, D), P('fsdp'))
    self.scale = layers.param(init, key, ())
    self.blocks = transformer.stack(lambda r: Block(rngs=r), L, rngs)
    self.convs = nnx.List([layers.param(init, key, (3, 2, D, F)), layers.param(init, key, (3, 2, F, D))])


TABLE = (
    Rule('shared.weight', 'embedding'),
    Rule('encoder.embed.weight', 'embedding'),
    Rule('scale', 'scale'),
    Rule('layers.{layer}.qkv.weight', ('blocks.w_q', 'blocks.w_k', 'blocks.w_v'), LINEAR),
    Rule('layers.{layer}.{part:q}.bias', 'blocks.b_{part}', FLAT),
    Rule('layers.{layer}.out.weight', 'blocks.w_out', LINEAR_FROM_HEADS),
    Rule('layers.{layer}.mlp.0.proj.weight', ('blocks.w_up', 'blocks.w_gate'), LINEAR),
    Rule('convs.{n}.weight', 'convs.{n}', CONV),
    drop('decoder.{rest:.*}', 'only the encoder is used'),
)


def shapes():
  return jax.eval_shape(lambda: Toy(rngs=nnx.Rngs(0)))


def published(dtype=np.float32):
  rng = np.random.default_rng(0)
  draw = lambda *shape: np.asarray(rng.normal(size=shape)).astype(dtype)
  out = {'shared.weight': draw(VOCAB, D), 'scale': draw(), 'convs.0.weight': draw(F, D, 3, 2),
         'convs.1.weight': draw(D, F, 3, 2)}
  for i in range(L):
    out |= {f'layers.{i}.qkv.weight': draw(3 * N * K, D), f'layers.{i}.q.bias': draw(N * K),
            f'layers.{i}.out.weight': draw(D, N * K), f'layers.{i}.mlp.0.proj.weight': draw(2 * F, D)}
  return out


def stored(path, tensors):
  safetensors.numpy.save_file(tensors, path)
  return path


def as_bytes(folder):
  out = {}
  for path in folder.glob('*.safetensors'):
    with safetensors.safe_open(path, 'numpy') as file:
      out |= {key: (file.get_tensor(key).dtype, file.get_tensor(key).shape, file.get_tensor(key).tobytes())
              for key in file.keys()}
  return out


@pytest.mark.parametrize('transform, source, target', [
    (SAME, (3, 4), (3, 4)), (FLAT, (6,), (2, 3)), (LINEAR, (6, 4), (4, 2, 3)), (LINEAR, (6, 4), (4, 6)),
    (LINEAR_FROM_HEADS, (4, 6), (2, 3, 4)), (CONV, (5, 4, 3), (3, 4, 5)), (CONV, (6, 5, 4, 3, 2), (4, 3, 2, 5, 6)),
    (transforms.pointwise(2), (5, 4, 1, 1), (4, 5)), (transforms.patch(2, 3), (7, 5, 2, 3), (30, 7))])
def test_transforms_undo_themselves(transform, source, target):
  x = np.arange(np.prod(source)).reshape(source)
  y = transform.forward(x).reshape(target)
  assert transform.source_shape(target) == source
  np.testing.assert_array_equal(transform.back(y), x)


def test_transforms_mean_what_pytorch_means():
  """By the definitions of the operations, as sums over the source's own indices."""
  rng = np.random.default_rng(0)
  w, x = rng.normal(size=(N * K, D)), rng.normal(size=(5, D))
  heads = np.einsum('ld,dnk->lnk', x, LINEAR.forward(w).reshape(D, N, K))
  np.testing.assert_allclose(heads.reshape(5, -1), x @ w.T)
  w, x = rng.normal(size=(D, N * K)), rng.normal(size=(5, N * K))
  np.testing.assert_allclose(
      np.einsum('lnk,nkd->ld', x.reshape(5, N, K), LINEAR_FROM_HEADS.forward(w).reshape(N, K, D)), x @ w.T)
  # A convolution (out d, in c, y, x) of kernel and stride (2, 3) over an image of 2 × 3 such patches.
  w, image = rng.normal(size=(7, 5, 2, 3)), rng.normal(size=(5, 2, 2, 3, 3))  # (c, h, y, w, x)
  patches = image.transpose(1, 3, 2, 4, 0).reshape(2, 3, -1)
  np.testing.assert_allclose(patches @ transforms.patch(2, 3).forward(w).reshape(-1, 7),
                             np.einsum('dcyx,chywx->hwd', w, image))


@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize('shard_bytes', [10 ** 9, 1000])
def test_a_model_comes_back_as_the_bytes_it_came_from(tmp_path, dtype, shard_bytes):
  stored(tmp_path / 'model.safetensors', published(dtype))
  model = weight_table.load(tmp_path / 'model.safetensors', TABLE, shapes())
  assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {np.dtype(dtype)}
  weight_table.save(tmp_path / 'back', TABLE, model, shard_bytes)
  assert as_bytes(tmp_path / 'back') == as_bytes(tmp_path)
  shards = list((tmp_path / 'back').glob('model-*.safetensors'))
  assert len(shards) > 2 if shard_bytes == 1000 else not shards
  again = weight_table.load(tmp_path / 'back', TABLE, shapes())  # through the index, where there is one
  jax.tree.map(np.testing.assert_array_equal, model, again)


def test_values_reach_their_places(tmp_path):
  source = published()
  model = weight_table.load(stored(tmp_path / 'a.safetensors', source), TABLE, shapes())
  for i in range(L):
    q, k, v = np.split(source[f'layers.{i}.qkv.weight'], 3)
    for name, w in (('w_q', q), ('w_k', k), ('w_v', v)):
      np.testing.assert_array_equal(getattr(model.blocks, name)[i].reshape(D, -1), w.T)
    up, gate = np.split(source[f'layers.{i}.mlp.0.proj.weight'], 2)
    np.testing.assert_array_equal(model.blocks.w_up[i], up.T)
    np.testing.assert_array_equal(model.blocks.w_gate[i], gate.T)
  assert model.scale[...] == source['scale']


def test_one_error_lists_all_that_does_not_fit(tmp_path):
  source = published()
  source['layers.1.out.wieght'] = source.pop('layers.1.out.weight')
  source['layers.3.q.bias'] = source['layers.0.q.bias']  # a layer more than the model has
  source['convs.0.weight'] = source['convs.0.weight'].swapaxes(0, 1).copy()
  source['layers.2.q.bias'] = source['layers.2.q.bias'].astype(np.float16)
  source['decoder.block.0.weight'] = np.zeros(3, np.float32)
  with pytest.raises(ValueError) as error:
    weight_table.load(stored(tmp_path / 'a.safetensors', source), TABLE, shapes())
  text = str(error.value)
  assert 'missing (1): layers.1.out.weight;' in text
  assert 'unexpected (2)' in text and 'layers.3.q.bias' in text
  assert 'layers.1.out.wieght (near layers.1.out.weight)' in text
  assert 'misshapen (2)' in text and 'convs.0.weight [8, 4, 3, 2] for [4, 8, 3, 2] (convolution)' in text
  assert 'layers.2.q.bias of F16 for F32' in text
  assert 'decoder' not in text  # dropped with a reason


def test_a_square_matrix_that_is_missing_in_one_layer_is_not_taken_from_another(tmp_path):
  source = {key: value for key, value in published().items() if key != 'layers.1.qkv.weight'}
  with pytest.raises(ValueError, match=r'missing \(1\): layers.1.qkv.weight'):
    weight_table.load(stored(tmp_path / 'a.safetensors', source), TABLE, shapes())


def test_a_tensor_stored_twice_must_be_equal(tmp_path):
  source = published()
  source['encoder.embed.weight'] = source['shared.weight'].copy()
  weight_table.load(stored(tmp_path / 'a.safetensors', source), TABLE, shapes())
  source['encoder.embed.weight'][1, 2] += 1
  with pytest.raises(ValueError, match='two values of one parameter'):
    weight_table.load(stored(tmp_path / 'b.safetensors', source), TABLE, shapes())
  alone = {**source}
  del alone['shared.weight']  # the second name alone will do
  model = weight_table.load(stored(tmp_path / 'c.safetensors', alone), TABLE, shapes())
  np.testing.assert_array_equal(model.embedding[...], alone['encoder.embed.weight'])


def test_values_that_are_not_finite_are_refused(tmp_path):
  source = published(ml_dtypes.bfloat16)
  source['convs.1.weight'][0, 0, 0, 0] = np.inf
  with pytest.raises(ValueError, match='convs.1.weight holds values that are not finite'):
    weight_table.load(stored(tmp_path / 'a.safetensors', source), TABLE, shapes())


def test_weights_lie_as_the_model_says(tmp_path):
  path = stored(tmp_path / 'a.safetensors', published())
  whole = weight_table.load(path, TABLE, shapes())
  with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=4, tensor=2))):
    split = weight_table.load(path, TABLE, shapes())
    assert split.blocks.w_q[...].sharding.spec == P(None, sharding.PARTS, 'tensor', None)
    assert split.embedding[...].addressable_shards[0].data.shape == (VOCAB // 4, D)
    weight_table.save(tmp_path / 'back', TABLE, split)
  jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, whole), jax.tree.map(np.asarray, split))
  assert as_bytes(tmp_path / 'back') == as_bytes(tmp_path)


def test_files_that_cannot_be_read_say_what_to_do(tmp_path):
  load = lambda source: weight_table.load(source, TABLE, shapes())
  with pytest.raises(ValueError, match='does not exist'):
    load(tmp_path / 'none')
  with pytest.raises(ValueError, match='holds no .safetensors'):
    load(tmp_path)
  for name in ('model.pth', 'model.ckpt', 'pytorch_model.bin'):
    (tmp_path / name).write_bytes(b'\x80')
    with pytest.raises(ValueError, match='convert it once in PyTorch'):
      load(tmp_path / name)
  with pytest.raises(ValueError, match='convert it once in PyTorch'):
    load(tmp_path)
  path = stored(tmp_path / 'a.safetensors', published())
  load(tmp_path)  # beside a safetensors file a pickle is passed over
  (tmp_path / 'b.safetensors').write_bytes(path.read_bytes()[:-7])
  with pytest.raises(ValueError, match='b.safetensors is truncated'):
    load(tmp_path / 'b.safetensors')
  with pytest.raises(ValueError, match='a.safetensors, b.safetensors; give the one file'):
    load(tmp_path)
  index = tmp_path / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': {'scale': 'a.safetensors', 'shared.weight': 'c.safetensors'}}))
  with pytest.raises(ValueError, match='names c.safetensors, which is not beside it'):
    load(tmp_path)
  index.write_text('{}')
  with pytest.raises(ValueError, match='lacks a weight_map'):
    load(tmp_path)


def test_host_memory_holds_one_tensor(tmp_path, monkeypatch):
  """A layer is read after the one before was let go. (An unstacked leaf on a CPU is the tensor that was read.)"""
  alive = []
  read = weight_files.WeightFiles.read

  def counted(self, key):
    assert not [r for r in alive if r() is not None], key
    tensor = read(self, key)
    if key.startswith('layers.'):
      alive.append(weakref.ref(tensor))
    return tensor
  monkeypatch.setattr(weight_files.WeightFiles, 'read', counted)
  weight_table.load(stored(tmp_path / 'a.safetensors', published()), TABLE, shapes())


def test_a_rule_that_cannot_be_read_back_is_refused():
  with pytest.raises(AssertionError, match='different groups'):
    Rule('layers.{n}.{part:a|b}.weight', 'blocks.{n}.w')
  with pytest.raises(AssertionError, match='reason'):
    Rule('layers.{n}.weight')
