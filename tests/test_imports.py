"""Imports go one way, heavy packages wait until they are used, and training from cached latents needs no PyAV."""
import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A part may import itself and what stands in its row.
ALLOWED = {
    'types': set(), 'sharding': set(), 'processes': set(), 'config': set(), 'host': set(), 'files': set(),
    'arguments': set(),
    'data': {'types', 'files'},
    'diffusion': {'types'},
    'models': {'types', 'sharding', 'processes', 'files', 'config'},
    'generation': {'types', 'sharding', 'processes', 'files', 'config', 'data', 'diffusion', 'models', 'zoo'},
    'training': {'types', 'sharding', 'processes', 'files', 'config', 'data', 'diffusion', 'models', 'generation',
                 'zoo'},
    'compiling': {'types', 'sharding', 'config', 'host', 'data', 'diffusion', 'models', 'generation', 'training',
                  'zoo'},
    'benchmarking': {'types', 'sharding', 'config', 'host', 'files', 'data', 'diffusion', 'models', 'generation', 'training',
                     'compiling', 'zoo'},
    'zoo': {'types', 'sharding', 'processes', 'files', 'config', 'host', 'data', 'diffusion', 'models'},
    'evaluation': {'types', 'sharding', 'processes', 'files', 'config', 'data', 'diffusion', 'models', 'generation',
                   'training', 'zoo', 'arguments', 'host'},
    'cli': {'types', 'sharding', 'processes', 'files', 'config', 'data', 'diffusion', 'models', 'generation',
            'training', 'zoo', 'evaluation', 'compiling', 'benchmarking', 'host', 'arguments'},
}
FILES = sorted((ROOT / 'veojax').rglob('*.py'))


def imported(path):
  """Dotted names a file imports, at its top or anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      yield node.module
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
  parts = path.relative_to(ROOT / 'veojax').with_suffix('').parts
  if parts[0] == '__init__':
    return
  for name in imported(path):
    if name.startswith('veojax.'):
      other = name.split('.')[1]
      assert other == parts[0] or other in ALLOWED[parts[0]], f'{parts[0]} imports {name}'


@pytest.mark.parametrize('path', [p for p in FILES if 'data' in p.relative_to(ROOT).parts], ids=lambda p: p.name)
def test_data_is_numpy_without_jax(path):
  assert not [name for name in imported(path) if name.split('.')[0] in ('jax', 'flax')]


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_media_imports_pyav(path):
  if not path.name.startswith('media'):
    assert not [name for name in imported(path) if name.split('.')[0] == 'av']


def loaded_after(code: str) -> set[str]:
  out = subprocess.run([sys.executable, '-c', f'{code}\nimport sys; print(" ".join(sys.modules))'], cwd=ROOT,
                       capture_output=True, text=True, check=True)
  return set(out.stdout.split())


def test_importing_veojax_loads_nothing_heavy():
  modules = loaded_after('import veojax')
  assert not modules & {'jax', 'flax', 'numpy', 'tensorflow_datasets', 'grain', 'av', 'orbax'}


def test_training_from_cached_latents_loads_no_pyav_and_no_tensorflow():
  modules = loaded_after('from veojax.data import latents, packing, pipeline, tokenizer\nimport veojax.training.losses')
  assert not modules & {'av', 'tensorflow'}
