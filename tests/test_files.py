"""What is said where a disk is needed and a bucket is named."""
import pytest

from veojax.data import prepare
from veojax.evaluation import evaluate, sweep
from veojax.zoo import convert

COMMANDS = {
    'prepare': lambda output: prepare.prepare('world', output, progress=False),
    'convert': lambda output: convert.convert('published', output),
    'convert --reverse': lambda output: convert.reverse('run', output),
    'evaluate': lambda output: evaluate.evaluate('truth', 'world', output),
    'sweep': lambda output: sweep.sweep(['truth'], {}, output)}


@pytest.mark.parametrize('command', COMMANDS)
@pytest.mark.parametrize('bucket', ['gs://bucket/new', 's3://bucket/new'])
def test_what_is_written_to_disks_alone_refuses_a_bucket(command, bucket, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=f'to a disk, which {bucket} is not; give a folder on one, or mount the bucket'):
    COMMANDS[command](bucket)
  assert not list(tmp_path.iterdir())
