"""Strict by default: eight fake devices, no silent rank promotion, types of public functions checked at run time."""
import atexit
import os
import pathlib
import shutil
import tempfile

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# A test's programs run for milliseconds and compile for seconds.
jax.config.update('jax_disable_most_optimizations', True)
# What is compiled once is not compiled again: in a folder of this run's own, which its first process makes and removes.
if 'TESTS_CACHE' not in os.environ:
  os.environ['TESTS_CACHE'] = tempfile.mkdtemp(prefix='veojax-tests-')
  atexit.register(shutil.rmtree, os.environ['TESTS_CACHE'], ignore_errors=True)
jax.config.update('jax_compilation_cache_dir', os.environ['TESTS_CACHE'])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
for name, value in (('JAX_PLATFORMS', 'cpu'), ('JAX_DISABLE_MOST_OPTIMIZATIONS', 'true'),
                    ('JAX_COMPILATION_CACHE_DIR', os.environ['TESTS_CACHE'])):
  os.environ[name] = value  # for the processes that tests start
install_import_hook(['veojax.models', 'veojax.diffusion', 'veojax.training', 'veojax.generation',
                      'veojax.zoo'], 'beartype.beartype')

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module', autouse=True)
def forget_programs():
  """A process that keeps what all tests have traced and compiled grows to gigabytes, and slow."""
  yield
  jax.clear_caches()


@pytest.fixture
def one_device(monkeypatch):
  """JAX has one device: where the mesh is not what is tested, a step of one compiles in a fraction of the time."""
  devices = jax.devices()[:1]
  for name in ('devices', 'local_devices'):
    monkeypatch.setattr(jax, name, lambda *args, **more: devices)


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


@pytest.fixture(scope='session')
def model_folder(tmp_path_factory) -> pathlib.Path:
  """A model on disk as `veojax train` leaves it, of the smallest sizes, with random weights: clips of 9 frames of
  32x32."""
  import jax.numpy as jnp
  import numpy as np
  from flax import nnx
  from veojax.data.tokenizer import Tokenizer
  from veojax.diffusion.objective import Objective
  from veojax.generation import model as models
  from veojax.generation.sampling import SamplingConfig
  from veojax.models import audio_codec, audio_vae, dit, video_codec, video_vae, weights
  from veojax.models.text import TextConfig
  video = video_vae.VideoVAEConfig(temporal_compression=4, spatial_compression=8, patch_time=4, patch_size=8,
                                   latent_channels=4, widths=(8,), encoder_depths=(1,), decoder_depths=(1,))
  audio = audio_vae.AudioVAEConfig(sample_rate=4000, channels=2, hop=160, latent_channels=3, strides=(), widths=(8,),
                                   depth=1)
  net = dit.DiTConfig(video_channels=4, audio_channels=3, width=16, depth=1, num_heads=2, mlp_width=16,
                      text=TextConfig(vocab_size=300, width=8, depth=1, num_heads=1, mlp_width=8), dtype='float32')
  rng = np.random.default_rng(0)

  def drawn(make):
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, .2, p.shape), p.dtype), jax.eval_shape(make))
  folder = tmp_path_factory.mktemp('model')
  video_codec.VideoCodec(drawn(lambda: video_vae.VideoVAE(video, rngs=nnx.Rngs(0))), np.zeros(4, 'f'), np.ones(4, 'f'),
                         tile=32, overlap=0).save(folder / 'video_vae.safetensors')
  audio_codec.AudioCodec(drawn(lambda: audio_vae.AudioVAE(audio, rngs=nnx.Rngs(0))), np.zeros(3, 'f'), np.ones(3, 'f'),
                         chunk=32).save(folder / 'audio_vae.safetensors')
  weights.save(folder / 'weights.safetensors', drawn(lambda: dit.DiT(net, rngs=nnx.Rngs(0))), {})
  texts = ['a small red ball falls and bounces', 'a large blue square slides to the right', 'two balls collide'] * 9
  Tokenizer.train(texts, folder / 'text.model', 300)
  models.write_config(folder, models.ModelConfig(
      net, Objective('vp_cosine_zero_snr', 'v'), SamplingConfig(num_inference_steps=2, guidance_scale=2.0),
      models.ClipConfig(9, 32, 32, 8.0), max_text=32))
  return folder
