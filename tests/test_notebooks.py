"""The notebooks run from a clean kernel, in a short form, and define nothing of their own."""
import ast
import fnmatch
import glob
import importlib.metadata
import os
import pathlib
import re
import shutil

import pytest

from veojax.data import media

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / 'colab').glob('*.ipynb'))
nbformat = pytest.importorskip('nbformat', reason="Jupyter is not installed: pip install -e '.[test]'")
nbclient = pytest.importorskip('nbclient', reason="Jupyter is not installed: pip install -e '.[test]'")


def code(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def test_all_three_are_there():
  assert [path.stem for path in NOTEBOOKS] == ['evaluate', 'generate', 'train']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_they_install_first_and_define_nothing(path):
  notebook = nbformat.read(path, 4)
  nbformat.validate(notebook)
  cells = code(notebook)
  assert cells[0].metadata.tags == ['install'] and '%pip install' in cells[0].source
  assert cells[1].metadata.tags == ['parameters']
  for cell in cells:
    assert not cell.outputs and cell.execution_count is None
    # Lines of IPython's own are no Python.
    plain = re.sub(r'^( *)[!%].*$', r'\1pass', cell.source, flags=re.MULTILINE)
    made = [node for node in ast.walk(ast.parse(plain))
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.AsyncFunctionDef))]
    assert not made


class Shell:
  """IPython's, as far as a first cell needs it: what it is told is kept, and a clone makes a checkout."""

  def __init__(self):
    self.told = []

  def run_cell(self, source: str) -> dict:
    inputs = pytest.importorskip('IPython.core.inputtransformer2')
    names = {'get_ipython': lambda: self}
    exec(inputs.TransformerManager().transform_cell(source), names)
    # As IPython does, from the names that the cell has given.
    self.told = [re.sub(r'\$(\w+)', lambda found: str(names[found[1]]), line) for line in self.told]
    return names

  def run_line_magic(self, name: str, line: str):
    self.told.append(f'{name} {line}')

  def system(self, line: str):
    self.told.append(line)
    checkout(pathlib.Path('veojax'))


def checkout(folder: pathlib.Path) -> pathlib.Path:
  """What finds the project where it is not installed: its package, and what a build has left beside it."""
  for path in ('setup.py', 'veojax/__init__.py', 'veojax.egg-info/PKG-INFO'):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text('Metadata-Version: 2.1\nName: veojax\nVersion: 0\n' if 'PKG' in path else '')
  return folder


@pytest.fixture
def first_cell(monkeypatch, tmp_path):
  """run(notebook, cwd, installed=..., repository=...) gives what the shell was told; on a host without an
  accelerator, unless the test makes one."""
  site = tmp_path / 'site'
  site.mkdir()
  monkeypatch.setattr(glob, 'glob', lambda pattern: [])
  monkeypatch.setattr(shutil, 'which', lambda name: None)
  found = importlib.metadata.distributions
  monkeypatch.setattr(importlib.metadata, 'distributions', lambda path: found(path=[
      *(p for p in path if not p), str(site)]))

  def run(path, cwd, *, installed=False, repository=''):
    if installed:
      (site / 'veojax-0.dist-info').mkdir()
      (site / 'veojax-0.dist-info' / 'METADATA').write_text('Metadata-Version: 2.1\nName: veojax\nVersion: 0\n')
    monkeypatch.chdir(cwd)
    monkeypatch.syspath_prepend('')  # as a kernel has it
    source = code(nbformat.read(path, 4))[0].source
    assert source.count("REPOSITORY = ''") == 1
    shell = Shell()
    shell.run_cell(source.replace("REPOSITORY = ''", f'REPOSITORY = {repository!r}'))
    return shell.told
  return run


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
@pytest.mark.parametrize('installed', [True, False])
def test_the_first_cell_installs_what_is_not_installed(path, installed, first_cell, tmp_path):
  """In a checkout, where `import veojax` finds the folder, whether its dependencies are there or not."""
  folder = checkout(tmp_path / 'project')
  (folder / 'colab').mkdir()
  told = first_cell(path, folder / 'colab', installed=installed)
  assert told == ([] if installed else ['pip install -q -e ".[colab]"'])
  assert pathlib.Path.cwd() == folder
  assert first_cell(path, folder, installed=False) == told  # from the folder itself too, and a second time


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_the_first_cell_clones_where_there_is_no_checkout(path, first_cell, tmp_path):
  with pytest.raises(FileNotFoundError, match=f"{tmp_path.name} holds no checkout of veojax, with REPOSITORY='': set"):
    first_cell(path, tmp_path)
  told = first_cell(path, tmp_path, repository='https://host/veojax.git')
  assert told == ['git clone -q "https://host/veojax.git" veojax', 'pip install -q -e ".[colab]"']
  assert pathlib.Path.cwd() == tmp_path / 'veojax'


@pytest.mark.parametrize('there, extra', [
    ('/dev/accel0', 'tpu'), ('/dev/vfio/0', 'tpu'), ('/dev/vfio/vfio', ''), ('nvidia-smi', 'gpu')])
def test_the_first_cell_installs_for_the_accelerator_that_is_there(there, extra, first_cell, tmp_path, monkeypatch):
  monkeypatch.setattr(glob, 'glob', lambda pattern: [there] if fnmatch.fnmatch(there, pattern) else [])
  monkeypatch.setattr(shutil, 'which', lambda name: name if name == there else None)
  told = {tuple(first_cell(path, checkout(tmp_path / path.stem))) for path in NOTEBOOKS}
  assert told == {(f'pip install -q -e ".[colab{extra and f",{extra}"}]"',)}


def executed(name: str, folder: pathlib.Path, monkeypatch, **parameters):
  """The notebook after a run in `folder`, with some of its parameters set."""
  monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
  monkeypatch.setenv('PYTHONWARNINGS', 'default')
  notebook = nbformat.read(ROOT / 'colab' / f'{name}.ipynb', 4)
  known = code(notebook)[1]
  names = {node.id for node in ast.walk(ast.parse(known.source)) if isinstance(node, ast.Name)}
  assert parameters.keys() <= names
  known.source += '\n' + '\n'.join(f'{name} = {value!r}' for name, value in parameters.items())
  client = nbclient.NotebookClient(notebook, timeout=1800, kernel_name='python3',
                                   resources={'metadata': {'path': str(folder)}})
  return client.execute()


def shown(notebook, mime='text/html') -> list[str]:
  return [output.data[mime] for cell in code(notebook) for output in cell.outputs
          if 'data' in output and mime in output.data]


@pytest.mark.slow
def test_generate(model_folder, tmp_path, monkeypatch):
  # Pieces of sound at the tiny model's rate fit no mp4.
  notebook = executed('generate', tmp_path, monkeypatch, MODEL=str(model_folder), LONG='long.gif')
  players = shown(notebook)
  assert sum('<video' in html for html in players) >= 17 and sum('<audio' in html for html in players) == 1
  assert any('transformer' in text and 'blocks' in text for text in shown(notebook, 'text/plain'))
  for file in ('clip.mp4', 'long.gif'):
    tags = media.probe(tmp_path / file).tags
    assert tags['title'] and 'AI-generated' in tags['comment'] and tags['artist'] == model_folder.name


@pytest.mark.slow
def test_train(model_folder, tmp_path, monkeypatch):
  shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
  changes = {
      'video_codec': str(model_folder / 'video_vae.safetensors'),
      'audio_codec': str(model_folder / 'audio_vae.safetensors'),
      'dit': {'video_channels': 4, 'audio_channels': 3, 'width': 16, 'depth': 1, 'num_heads': 2, 'mlp_width': 16,
              'text': {'vocab_size': 600, 'width': 8, 'depth': 1, 'num_heads': 1, 'mlp_width': 8}, 'dtype': 'float32'},
      'pack': {'channels': 4}, 'clip': {'height': 32, 'width': 32, 'num_frames': 9},
      'sampling': {'num_inference_steps': 2}, 'loop': {'num_steps': 2, 'batch_size': 1, 'log_every': 1}}
  notebook = executed('train', tmp_path, monkeypatch, NUM_CLIPS=6, CHANGES=changes, PREPARE={
      'fps': 8.0, 'height': 32, 'width': 32, 'sample_rate': 4000, 'channels': 2, 'max_seconds': 1.2,
      'validation_fraction': 0.0, 'vocab_size': 300})
  assert sum('<video' in html for html in shown(notebook)) == 3
  assert shown(notebook, 'image/png')  # the loss
  assert (tmp_path / 'runs' / 'notebook' / 'weights.safetensors').exists()


@pytest.mark.slow
def test_evaluate(model_folder, tmp_path, monkeypatch):
  notebook = executed('evaluate', tmp_path, monkeypatch, MODEL=str(model_folder), NUM_CLIPS=4,
                      GRID={'guidance_scale': [1.0, 2.0]})
  reports = shown(notebook)
  assert len(reports) == 4 and all('<iframe srcdoc=' in html for html in reports)
  for name in ('world', 'reconstruction', 'surprise', 'sweep'):
    assert (tmp_path / 'reports' / name / 'report.html').exists()
