"""A published folder becomes a run, and the same bytes again; what does not fit is refused before a byte is written."""
import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import veojax
from veojax import cli
from veojax.zoo import convert, part_checkpoint, published, weight_files, weight_table
from veojax.zoo.mochi import MOCHI


@pytest.fixture(scope='module')
def run(mochi_folder, tmp_path_factory):
  output = tmp_path_factory.mktemp('run') / 'mochi'
  assert cli.main(['convert', '--source', str(mochi_folder), '--output', str(output)]) == 0
  return output


def contents(folder):
  return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def test_a_run_goes_back_to_the_very_files(mochi_folder, run, tmp_path):
  assert cli.main(['convert', '--source', str(run), '--output', str(tmp_path / 'back'), '--reverse']) == 0
  before, after = contents(mochi_folder), contents(tmp_path / 'back')
  assert len(list((mochi_folder / 'transformer').glob('*.safetensors'))) > 1
  assert before.keys() == after.keys()
  assert before == after


def test_the_record_says_what_it_is_and_from_where(mochi_folder, run):
  record = json.loads((run / 'published.json').read_text())
  assert record['class_name'] == 'MochiPipeline' and record['licence'] == 'Apache-2.0'
  assert record['source'] == str(mochi_folder)
  for name in MOCHI.parts:
    for file, digest in record['parts'][name]['files'].items():
      assert hashlib.sha256((mochi_folder / name / file).read_bytes()).hexdigest() == digest


def test_parts_load_as_they_were_and_as_they_are_to_lie(mochi_folder, run):
  """Bit for bit, on one device and split over eight."""
  part = MOCHI.parts['transformer']
  config = part.read_config(mochi_folder / 'transformer' / 'config.json')
  straight = weight_table.load(mochi_folder / 'transformer', part.table(config), part.shapes(config))
  loaded = part_checkpoint.read(run / 'transformer' / 'weights', part.shapes(config))
  jax.tree.map(np.testing.assert_array_equal, straight, loaded)
  with jax.set_mesh(veojax.sharding.make_mesh(veojax.sharding.MeshConfig(data=1, fsdp=4, tensor=2))):
    split = part_checkpoint.read(run / 'transformer' / 'weights', part.shapes(config))
  assert split.blocks.mlp.w_up[...].sharding.shard_shape(split.blocks.mlp.w_up.shape) != split.blocks.mlp.w_up.shape
  jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, straight), jax.tree.map(np.asarray, split))


def test_memory_holds_a_parameter_and_a_batch(mochi_folder, run, tmp_path, monkeypatch):
  """Parameters are written before the next ones are read, down to one at a time."""
  alive, most = {}, []
  put, save = weight_table._leaf, part_checkpoint.ocp.partial.save

  def leaf(path, *rest):
    alive[path] = True
    most.append(len(alive))
    return put(path, *rest)

  def saved(folder, batch):
    save(folder, batch)
    for path in batch:
      del alive[path]
  monkeypatch.setattr(weight_table, '_leaf', leaf)
  monkeypatch.setattr(part_checkpoint.ocp.partial, 'save', saved)
  monkeypatch.setattr(part_checkpoint, 'BATCH_BYTES', 4000)
  part = MOCHI.parts['text_encoder']
  config = part.read_config(mochi_folder / 'text_encoder' / 'config.json')
  with weight_files.opened(mochi_folder / 'text_encoder') as files:
    part_checkpoint.write(tmp_path / 'w', weight_table.leaves('x', files, part.table(config), part.shapes(config)))
  assert len(most) == len(jax.tree.leaves(part.shapes(config))) and max(most) <= 3
  jax.tree.map(np.testing.assert_array_equal, part_checkpoint.read(tmp_path / 'w', part.shapes(config)),
               part_checkpoint.read(run / 'text_encoder' / 'weights', part.shapes(config)))


@pytest.fixture
def broken(mochi_folder, tmp_path):
  return shutil.copytree(mochi_folder, tmp_path / 'broken')


def refused(source, output, *more):
  with pytest.raises(ValueError) as error:
    convert.convert(source, output, **dict(more))
  assert not output.exists() and not list(output.parent.glob('*.partial'))
  return str(error.value)


def test_what_cannot_be_is_told_before_anything_is_written(broken, tmp_path):
  new = tmp_path / 'new'
  shard = sorted((broken / 'transformer').glob('*.safetensors'))[0]
  whole = shard.read_bytes()
  shard.write_bytes(whole[:-9])
  assert f'{shard} is truncated' in refused(broken, new)
  shard.unlink()
  assert f'names {shard.name}, which is not beside it' in refused(broken, new)
  shard.write_bytes(whole)
  weights = broken / 'vae' / 'diffusion_pytorch_model.safetensors'
  tensors = safetensors.numpy.load_file(weights)
  tensors['decoder.conv_inn.bias'] = tensors.pop('decoder.conv_in.bias')
  tensors['decoder.proj_out.bias'] = np.zeros(4, np.float32)
  safetensors.numpy.save_file(tensors, weights)
  text = refused(broken, new)
  assert 'missing (1): decoder.conv_in.bias' in text and 'decoder.conv_inn.bias (near decoder.conv_in.bias)' in text
  assert 'decoder.proj_out.bias [4] for [3]' in text
  weights.rename(weights.with_suffix('.bin'))
  assert 'is a pickle' in refused(broken, new) and 'save_file' in refused(broken, new)


def test_pickles_are_refused_wherever_they_are_named(broken, animatediff_folder, tmp_path):
  new, pickles = tmp_path / 'new', tmp_path / 'pickles'
  pickles.mkdir()
  file = pickles / 'mm_sd_v15_v2.ckpt'
  file.write_bytes(b'PK')
  for source, parts in ((file, {}), (pickles, {}), *(
      (source, {name: str(place)}) for place in (file, pickles) for source, name in (
          (animatediff_folder / 'sd', 'motion_adapter'), (broken, 'text_encoder')))):
    text = refused(source, new, ('parts', parts))
    assert f'{file} is a pickle' in text and "save_file(tensors.get('state_dict', tensors)" in text


def test_folders_of_other_models_are_refused(broken, tmp_path):
  new = tmp_path / 'new'
  assert 'is no folder' in refused(tmp_path / 'nowhere', new)
  assert 'holds no model_index.json' in refused(broken / 'vae', new)
  config = broken / 'transformer' / 'config.json'
  tree = json.loads(config.read_text())
  config.write_text(json.dumps({**tree, 'num_layerz': 2}))
  assert "did you mean 'num_layers'" in refused(broken, new)
  config.write_text(json.dumps({**tree, '_class_name': 'WanTransformer3DModel'}))
  assert 'is that of a WanTransformer3DModel, not of a MochiTransformer3DModel' in refused(broken, new)
  shutil.rmtree(broken / 'text_encoder')
  assert '--text_encoder FOLDER' in refused(broken, new)
  (broken / 'model_index.json').write_text(json.dumps({'_class_name': 'MochePipeline'}))
  assert "is a MochePipeline" in refused(broken, new) and "did you mean 'MochiPipeline'" in refused(broken, new)
  new.mkdir()
  (new / 'mine').write_text('')
  with pytest.raises(ValueError, match='holds something already'):
    convert.convert(broken, new)


def test_a_damaged_run_says_so(run, tmp_path):
  with pytest.raises(ValueError, match='is no converted model'):
    convert.reverse(tmp_path, tmp_path / 'back')
  copy = shutil.copytree(run, tmp_path / 'copy')
  shutil.rmtree(copy / 'vae' / 'weights' / 'state')
  with pytest.raises(ValueError, match='convert the model again'):
    part_checkpoint.stored(copy / 'vae' / 'weights')
  record = json.loads((copy / published.RECORD).read_text())
  (copy / published.RECORD).write_text(json.dumps({**record, 'model': 'Moche 1'}))
  with pytest.raises(ValueError, match="did you mean 'Mochi 1'"):
    veojax.load(copy)


def test_a_converted_model_prints_the_tree_of_its_parts(run):
  model = veojax.load(run)
  first, *lines = repr(model).split('\n')
  assert first == f'PublishedModel {str(run)!r}'
  assert [line.split('  ')[0] for line in lines if line[0] not in '├└│ '] == list(MOCHI.parts)
  stored = [part_checkpoint.stored(run / name / 'weights') for name in MOCHI.parts]
  assert sum(line.endswith(']') for line in lines) == sum(map(len, stored))
