"""What a converted file remembers of its source, and that no other is taken for it."""
import hashlib
import subprocess
import warnings

import numpy as np
import pytest
import safetensors.numpy

from veojax.evaluation import fad, fvd
from veojax.zoo import i3d, origin, vggish


def torch_or_skip():
  return pytest.importorskip('torch', reason="PyTorch is not installed: pip install -e '.[parity]'")


@pytest.mark.parametrize('scripted', [True, False])
def test_a_pytorch_file_keeps_its_values_and_its_hashes(tmp_path, scripted):
  torch = torch_or_skip()
  layer, source, output = torch.nn.Linear(3, 2), tmp_path / 'net.pt', tmp_path / 'net.safetensors'
  if scripted:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', DeprecationWarning)
      torch.jit.trace(layer, torch.zeros(1, 3)).save(source)
  else:
    torch.save(layer.state_dict(), source)
  origin.convert(source, output)
  flat = safetensors.numpy.load_file(output)
  assert {k: v.tolist() for k, v in flat.items()} == {k: v.tolist() for k, v in layer.state_dict().items()}
  sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
  git = subprocess.run(['git', 'hash-object', source], capture_output=True, text=True, check=True).stdout.strip()
  assert origin.hashes(source) == {'sha256': sha256, 'git': git}
  for key in (f'sha256:{sha256}', f'sha256:{sha256[:8]}', f'git:{git}'):
    assert origin.identify(output, {'sha256:' + '0' * 64: 'other', key: 'net'}) == origin.Origin('net', sha256)
  assert origin.identify(output, {'sha256:' + '0' * 64: 'other'}) == origin.Origin('', sha256)


def test_a_file_that_remembers_nothing_is_known_by_itself(tmp_path):
  path = tmp_path / 'a.safetensors'
  safetensors.numpy.save_file({'x': np.zeros(3, np.float32)}, path)
  sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
  assert origin.identify(path, i3d.FVD | vggish.FAD) == origin.Origin('', sha256)
  assert origin.identify(path, {f'sha256:{sha256}': 'a'}).name == 'a'


def test_a_name_is_of_the_tensors_that_were_read(tmp_path):
  path, source, known = tmp_path / 'a.safetensors', {'sha256': 'ab' * 32, 'git': 'cd' * 20}, {'git:' + 'cd' * 20: 'net'}
  tensors = {'x': np.arange(6, dtype=np.float32).reshape(2, 3), 'y': np.zeros(1, np.int64)}
  origin.write(tensors, path, source)
  assert origin.identify(path, known) == origin.Origin('net', 'ab' * 32)
  with safetensors.safe_open(path, framework='numpy') as file:
    told = file.metadata()
  changes = {'value': {**tensors, 'x': tensors['x'] + 1}, 'shape': {**tensors, 'x': tensors['x'].T.copy()},
             'name': {'z': tensors['x'], 'y': tensors['y']}, 'kind': {**tensors, 'y': tensors['y'].view(np.uint64)}}
  for changed in changes.values():
    safetensors.numpy.save_file(changed, path, told)
    found = origin.identify(path, known)
    assert (found.name, found.hash) == ('', hashlib.sha256(path.read_bytes()).hexdigest())
    assert 'not those that were read from its source; convert it again' in found.doubt
  safetensors.numpy.save_file(tensors, path, source)  # as none is written any more
  found = origin.identify(path, known)
  assert not found.name and found.hash != 'ab' * 32 and 'no hash of its tensors; convert it again' in found.doubt
  for load, says in ((fvd.load, 'an unknown network'), (fad.load, 'not known to be FAD')):
    with pytest.raises(ValueError, match=f'{says}.*convert it again.*; allow_unknown_weights=True'):
      load(str(path), False)


def test_missing_files_are_named(tmp_path):
  with pytest.raises(ValueError, match='no file and no checkpoint'):
    origin.convert(tmp_path / 'model.ckpt', tmp_path / 'out.safetensors')
  with pytest.raises(ValueError, match='veojax.zoo.origin SOURCE'):
    origin.identify(tmp_path / 'none.safetensors', {})
