"""Two real processes over loopback: what they train, and what happens to them."""
import importlib.util
import json
import pathlib
import random
import re
import signal
import sys

import numpy as np
import pytest

from veojax.generation import model as models
from veojax.training import run

pytestmark = [pytest.mark.xdist_group('pod'), pytest.mark.slow]


def load(name):
  spec = importlib.util.spec_from_file_location(name, pathlib.Path(__file__).with_name(f'{name}.py'))
  module = sys.modules[name] = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


pod = load('pod')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pod')
  pod.prepare(folder)
  return folder


@pytest.fixture(scope='module')
def alone(folder):
  """The run in this one process, on eight devices, and some steps further."""
  run.train(pod.tree(folder, num_steps=20), folder / 'alone')
  return folder / 'alone'


@pytest.fixture(scope='module')
def two(folder):
  """The same run in two processes of two devices; the second cannot write its part of the checkpoint of step 4."""
  with pod.Pod(folder, 'two', pod.tree(folder, save_patience=5), DEVICES='2', FULL='4:1') as processes:
    assert processes.finish() == 0, processes.said()
    return processes, pod.result(processes.workdir)


def test_two_processes_train_what_one_does_with_the_same_global_batch(alone, two):
  one, both = pod.journal(alone), pod.journal(two[0].workdir)
  assert sorted(both) == list(range(1, 17))
  for step in both:
    for name in ('loss', 'grad_norm'):
      assert both[step][name] == pytest.approx(one[step][name], rel=2e-4), (step, name)


def test_one_process_writes_what_is_read_afterwards(two):
  workdir = two[0].workdir
  clip = models.load(workdir).generate('a ball falls', num_frames=4, fps=8, num_inference_steps=2)
  assert np.isfinite(clip.audio).all()
  assert json.loads((workdir / 'config.json').read_text())['loop']['num_steps'] == 16
  assert int((workdir / 'done').read_text()) == 16


def test_where_one_process_has_no_room_for_a_checkpoint_training_goes_on(two):
  said = ' '.join(two[0].said().split())
  assert re.search(r'saving a checkpoint failed: .*process 1: checkpoint in .*training goes on', said), said
  assert sorted(int(p.name) for p in (two[0].workdir / 'checkpoints').iterdir()) == [14, 16]


def test_killed_stopped_and_told_to_stop_the_run_ends_as_if_nothing_had_happened(folder):
  """One process is killed, one gets SIGTERM, one hangs, the one that serves the others: bit for bit what an undisturbed
  run makes."""
  with pod.Pod(folder, 'quiet', pod.tree(folder), TOY='1') as quiet:
    assert quiet.finish() == 0, quiet.said()
  rng = random.Random(0)
  with pod.Pod(folder, 'shaken', pod.tree(folder), pause=0.5, TOY='1') as shaken:
    old = []
    for signum, victim in ((signal.SIGKILL, rng.randrange(2)), (signal.SIGTERM, rng.randrange(2)), (signal.SIGSTOP, 0)):
      shaken.wait_until(lambda: shaken.started_after(old))
      old, before = shaken.pids(), shaken.step()
      shaken.wait_until(lambda: shaken.step() > before)
      assert pod.signal_if_there(old[victim], signum)
    assert shaken.finish() == 0, shaken.said()
  said = shaken.said()
  stops = re.findall(r'stopped by SIGTERM at step (\d+): all is saved', said)
  assert len(stops) == 2 and stops[0] == stops[1], said[-3000:]
  named = r'process 0( on \S+)? has not been heard of for \d+ s: process 1 ends with code 75'
  assert re.search(named, said), said[-3000:]
  assert sorted(pod.journal(shaken.workdir)) == list(range(1, 17))
  a, b = pod.result(quiet.workdir), pod.result(shaken.workdir)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize('victim', [0, 1])
def test_an_error_of_one_process_ends_the_run_and_is_told(folder, victim):
  """After a save, while the others are in the step that it does not take."""
  with pod.Pod(folder, f'failing{victim}', pod.tree(folder), TOY='1', FAIL=f'5:{victim}') as failing:
    assert failing.finish() == 2, failing.said()
  assert 'veojax: an error of one process alone' in failing.said()
  assert 4 in [int(p.name) for p in (failing.workdir / 'checkpoints').iterdir() if p.name.isdigit()]


def test_another_number_of_processes_goes_on_from_the_same_row(folder, alone, two):
  """From two processes of two devices to this one with eight: as if all steps had been taken here."""
  workdir = two[0].workdir
  run.train(pod.tree(folder, num_steps=20), workdir)
  one, both = pod.journal(alone), pod.journal(workdir)
  assert sorted(both) == list(range(1, 21))
  for step in both:
    assert both[step]['loss'] == pytest.approx(one[step]['loss'], rel=2e-4)
  a, b = pod.result(alone), pod.result(workdir)
  assert a.keys() == b.keys() and a['progress.row'] == b['progress.row'] == 160
  for name in a:
    np.testing.assert_allclose(b[name], a[name], rtol=1e-3, atol=2e-5, err_msg=name)
