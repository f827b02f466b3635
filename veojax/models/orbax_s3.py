"""Orbax's checkpoints on s3://, which Orbax (up to 0.12) refuses: "Checkpoint path should be absolute".

epath and tensorstore, on which it stands, reach both kinds of buckets; Orbax itself asks whether a path is Google's. It
is told that s3:// is of the same kind: a checkpoint counts once its commit file is there, since objects cannot be
renamed. This sets names that are private to Orbax; on any other path it does what it did.
"""
import os

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from veojax import files

REMOTE = 'gs://', files.S3
NAMES = ((gcs_utils, ('_GCS_PATH_PREFIX', 'get_kvstore_for_gcs')),
         (tensorstore_utils, ('_use_gcs_driver', '_normalize_path')))


def enable():
  """Lets Orbax of this process read and write s3://. Raises ValueError where it is an Orbax that this does not know."""
  missing = [name for module, names in NAMES for name in names if not hasattr(module, name)]
  if missing:
    raise ValueError(f'checkpoints on s3:// do not work with this version of orbax-checkpoint (it has no '
                     f'{", ".join(missing)}); install orbax-checkpoint 0.12, or give a workdir on gs:// or a disk')
  if gcs_utils._GCS_PATH_PREFIX == REMOTE:
    return
  of_google, normal = gcs_utils.get_kvstore_for_gcs, tensorstore_utils._normalize_path
  gcs_utils.get_kvstore_for_gcs = lambda path: (
      files.s3_kvstore(path) if path.startswith(files.S3) else of_google(path))
  tensorstore_utils._normalize_path = lambda path: (
      files.S3 + os.path.normpath(path.removeprefix(files.S3)) if path.startswith(files.S3) else normal(path))
  tensorstore_utils._use_gcs_driver = lambda path: path.startswith(REMOTE)
  gcs_utils._GCS_PATH_PREFIX = REMOTE
