"""`veojax generate`, `evaluate` and `sweep` in two real processes over loopback: what one makes, written by one."""
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from veojax import cli
from veojax.data import media
from veojax.evaluation import evaluate

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLIP = ['--prompt', 'a ball', '--num_inference_steps=2']
pytestmark = [pytest.mark.xdist_group('pod'), pytest.mark.slow]


def pod(folder, *command) -> list[list[str]]:
  """Runs a command in two processes of two devices, each in a folder of its own, `folder`/0 and /1; what lies there
  afterwards."""
  folders = [folder / str(i) for i in range(2)]
  for own in folders:
    own.mkdir()
  script = f'cd {folder}/$JAX_PROCESS_ID && exec "$0" -m veojax.cli "$@"'
  variables = {'PYTHONPATH': str(ROOT), 'PYTHON': sys.executable, 'LOGS': str(folder), 'DEVICES': '2', 'RESTARTS': '0',
               'XDG_CACHE_HOME': str(folder / 'cache')}
  code = subprocess.run(['bash', str(ROOT / 'launch' / 'local_pod.sh'), '2', 'bash', '-c', script, sys.executable,
                         *map(str, command)], env={**os.environ, **variables}, timeout=900).returncode
  assert code == 0, '\n'.join(path.read_text() for path in folder.glob('*.log'))
  return [sorted(path.name for path in own.iterdir()) for own in folders]


def generated(model_folder, path, *options):
  assert cli.main(['generate', '--model', str(model_folder), '--output', str(path), *CLIP, *options]) == 0
  return read(path)


def read(path) -> np.ndarray:
  """Of files that lose nothing: pixels or samples."""
  clip = media.read(path)
  return clip.audio if clip.video is None else clip.video


def difference(a, b) -> float:
  """Of samples, or of pixels, at most: as a part of their range."""
  assert a.shape == b.shape
  return np.abs(a.astype(float) - b).max() / (255 if a.dtype == np.uint8 else 1)


@pytest.mark.parametrize('name, options', [
    ('clip.png', ['--task=image']), ('clip.wav', ['--num_frames=13', '--window=9', '--overlap=4', '--mesh.context=2'])],
    ids=['tokens over both', 'in windows, rows over both'])
def test_two_processes_make_the_clip_of_one_and_one_of_them_writes(model_folder, tmp_path, name, options):
  assert pod(tmp_path, 'generate', '--model', model_folder, '--output', name, *CLIP, *options) == [[name], []]
  made, same = read(tmp_path / '0' / name), [option for option in options if 'mesh' not in option]
  alone, other = (generated(model_folder, tmp_path / f'{seed}-{name}', *same, f'--seed={seed}') for seed in (0, 1))
  assert difference(made, alone) < 5e-3 < 0.1 < difference(other, alone)


@pytest.mark.parametrize('command, model', [('evaluate', '--model'), ('sweep', '--models')])
def test_two_processes_share_out_the_clips_of_an_evaluation(model_folder, tmp_path, command, model):
  asked = {'num_clips': 4, 'levels': ('L2',), 'num_inference_steps': 2}
  options = [f'--{name}={value}' for name, value in asked.items()]
  assert pod(tmp_path, command, model, model_folder, '--output', tmp_path / 'both', '--batch=2', *options) == [[], []]
  evaluate.evaluate(str(model_folder), 'world', tmp_path / 'alone', asked, batch=2, show=False)
  both, alone = ({path.relative_to(tmp_path / name / 'units'): json.loads(path.read_text())['rows']
                  for path in (tmp_path / name / 'units').glob('*/*.json')} for name in ('both', 'alone'))
  assert both.keys() == alone.keys() and len(both) == 6
  assert [unit for unit in both.values() if 'truth' in unit] and all(  # what no number of devices rounds
      both[unit].get('truth') == alone[unit].get('truth') for unit in both)
  told = ['report.html' in (tmp_path / f'{i}.log').read_text() for i in range(2)]
  assert told == [True, False] and (tmp_path / 'both' / 'report.html').exists()
