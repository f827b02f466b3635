"""A run that is told to stop, and one whose saves fail."""
import pytest

from tests.training.interrupted import stopped_at, told_at
from tests.training.pod import write_config
from tests.training.test_run import AUDIO, folder, tree
from veojax import cli, host
from veojax.training import checkpoint, run

pytestmark = pytest.mark.xdist_group('run')


class Unwritten:
  """A save that fails in the background."""

  def result(self):
    raise OSError(28, 'No space left on device')


def test_a_failed_save_ends_neither_a_run_nor_its_last_save(folder, tmp_path, monkeypatch, capsys):
  """Told when the next one begins: at the end, and after SIGTERM, also where that one fails too."""
  begin, full = checkpoint.Checkpoints._begin, {2}
  def failing(self, step, parts):
    if step in full:
      self._pending = Unwritten()
    else:
      begin(self, step, parts)
  monkeypatch.setattr(checkpoint.Checkpoints, '_begin', failing)
  run.train(tree(folder), tmp_path / 'ends')
  assert (tmp_path / 'ends' / 'done').exists()
  assert 'No space left on device' in capsys.readouterr().out
  with stopped_at(3) as stopped:
    run.train(tree(folder), tmp_path / 'stops')
  assert 'all is saved' in str(stopped.value)
  full |= {3}
  with stopped_at(3) as stopped:
    run.train(tree(folder), tmp_path / 'full')
  assert 'nothing could be saved' in str(stopped.value)


def test_train_asks_to_be_started_again_after_sigterm(folder, tmp_path, monkeypatch, capsys):
  """By its exit code, which launch/again.sh and launch/gke_jobset.yaml go by."""
  monkeypatch.setattr(host, 'keep_memory', lambda: None)  # it would be for all tests after this one
  write_config(tmp_path / 'audio.py', {**AUDIO, 'data': str(folder / 'data')})
  command = ['train', '--config', str(tmp_path / 'audio.py'), '--workdir', str(tmp_path / 'run')]
  with told_at(1):
    assert cli.main(command) == 75
  assert 'veojax: stopped by SIGTERM at step 1: all is saved' in capsys.readouterr().err
  assert cli.main(command) == 0
