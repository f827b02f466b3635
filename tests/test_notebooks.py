"""The notebooks run from a clean kernel, in a short form, and define nothing of their own."""
import ast
import os
import pathlib
import re
import shutil

import pytest

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
  assert (tmp_path / 'clip.mp4').stat().st_size and (tmp_path / 'long.gif').stat().st_size


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
