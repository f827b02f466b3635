"""Strict by default: eight fake devices, no silent rank promotion, types of public functions checked at run time."""
import os
import pathlib

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# What one test compiled must not reach another, or a person's cache.
jax.config.update('jax_enable_compilation_cache', False)
for name, value in (('JAX_PLATFORMS', 'cpu'), ('JAX_ENABLE_COMPILATION_CACHE', 'false')):
  os.environ[name] = value  # for the processes that tests start
install_import_hook(['veojax.models', 'veojax.diffusion', 'veojax.training', 'veojax.generation',
                      'veojax.zoo'], 'beartype.beartype')

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def clips_folder() -> pathlib.Path:
  """Real clips with captions beside the checkout; they are no part of the project, so tests skip without them."""
  folder = ROOT.parent / 'shared' / 'clips'
  if not (folder / 'metadata.jsonl').exists():
    pytest.skip('no real clips beside this checkout')
  return folder


@pytest.fixture
def anchors_folder() -> pathlib.Path:
  """Small published files beside the checkout; they are no part of the project, so tests skip without them."""
  folder = ROOT.parent / 'shared' / 'anchors'
  if not folder.exists():
    pytest.skip('no published files (shared/anchors) beside this checkout')
  return folder
