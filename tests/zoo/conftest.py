"""Small published folders for the tests of conversion and of pipelines."""
import pytest

from tests.zoo import small_folders


@pytest.fixture(scope='session')
def mochi_folder(tmp_path_factory):
  """A published Mochi, small. Not to be written to."""
  return small_folders.write_mochi(tmp_path_factory.mktemp('mochi') / 'published')


@pytest.fixture(scope='session')
def animatediff_folder(tmp_path_factory):
  """Stable Diffusion (sd), a motion adapter (adapter) and a control network (control), small. Not to be written to."""
  return small_folders.write_animatediff(tmp_path_factory.mktemp('animatediff'))
