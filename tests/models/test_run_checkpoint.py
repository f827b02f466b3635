"""A checkpoint of a run is known by its path, on a disk and in a bucket."""
import pytest

from veojax import files
from veojax.models import run_checkpoint


def test_only_numbered_folders_of_checkpoints_are_some():
  for run in ('/runs/mine', 'gs://bucket/mine'):
    assert run_checkpoint.run_of(f'{run}/checkpoints/500') == files.path(run)
    assert run_checkpoint.title(f'{run}/checkpoints/500') == 'mine@500'
    for other in (run, f'{run}/checkpoints', f'{run}/500', f'{run}/checkpoints/damaged-500'):
      assert run_checkpoint.run_of(other) is None
      assert run_checkpoint.title(other) == files.path(other).name
  assert run_checkpoint.title('world') == 'world'


def test_complete_ones_are_told_in_their_order(tmp_path):
  assert run_checkpoint.steps(tmp_path) == [] and run_checkpoint.told(tmp_path) == 'none'
  for name in ('1000', '200', 'damaged-300', '400.orbax-checkpoint-tmp'):
    (tmp_path / 'checkpoints' / name).mkdir(parents=True)
  assert run_checkpoint.steps(tmp_path) == [200, 1000]
  with pytest.raises(ValueError, match='no checkpoint .*checkpoints/300; there are: .*checkpoints/200, .*/1000'):
    run_checkpoint.average(tmp_path / 'checkpoints' / '300')
  with pytest.raises(ValueError, match='checkpoints/200 is damaged'):
    run_checkpoint.average(tmp_path / 'checkpoints' / '200')
