"""Meshes cover their devices and slices; and on every axis, alone and together, sharded is unsharded."""
import ast
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from veojax import sharding
from veojax.data import latent_clip, packing
from veojax.diffusion.objective import Objective
from veojax.generation import sampling
from veojax.generation.sampling import SamplingConfig
from veojax.models import dit
from veojax.models.text import TextConfig
from veojax.sharding import MeshConfig
from veojax.training import losses
from veojax.types import Tokens

CONFIG = dit.DiTConfig(video_channels=4, audio_channels=6, width=32, depth=1, num_heads=4, mlp_width=48,
                       text=TextConfig(vocab_size=50, width=16, depth=1, num_heads=4, mlp_width=24), dtype='float32')
PACK = packing.PackConfig(row_tokens=64, text_tokens=16, max_clips=3, max_text=8, channels=6)
OBJECTIVE = Objective()
MESHES = {
    'fsdp': MeshConfig(data=1, fsdp=8),
    'a ring': MeshConfig(data=1, context=8, attention='ring'),
    'data, and heads exchanged': MeshConfig(data=2, context=4),
    'data and tensor': MeshConfig(data=2, tensor=4),
    'fsdp, keys gathered, and tensor': MeshConfig(data=1, fsdp=2, context=2, tensor=2, attention='gather'),
    'slices, fsdp and a ring': MeshConfig(data=2, fsdp=2, context=2, slices=2, attention='ring'),
}


def random_model():
  """All parameters drawn, by numpy, those too that start at zero and would hide what stands behind them."""
  rng = np.random.default_rng(0)
  draw = lambda p: jnp.asarray(rng.normal(0, 0.3 if p.ndim < 2 else np.prod(p.shape[-2:]) ** -0.25, p.shape), p.dtype)
  return jax.tree.map(draw, jax.eval_shape(lambda: dit.DiT(CONFIG, rngs=nnx.Rngs(0))))


def make_rows(num, seed, text=0):
  """Rows of two clips, of other sizes in each; `text` changes their captions and nothing else."""
  rng = np.random.default_rng(seed)

  def clip(frames, size, sound):
    return latent_clip.LatentClip(
        video=rng.normal(size=(frames, *size, 4)).astype('f'), audio=rng.normal(size=(sound, 6)).astype('f'),
        text_ids=[(i + text) % 50 for i in rng.integers(2, 50, 4)], fps=8.0, height=8 * size[0], width=8 * size[1],
        temporal_compression=4, spatial_compression=8, latent_rate=25.0)
  packed = [packing.pack([clip(2, (2, 3), 4), clip(1, (3, 2 + i % 3), 5)], PACK) for i in range(num)]
  return Tokens(*(np.stack(x) for x in zip(*packed)))


def loss_and_gradients(model, tokens):
  loss = lambda model: losses.diffusion_loss(model, tokens, jax.random.key(3), losses.LossConfig(), OBJECTIVE)[0]
  return jax.value_and_grad(loss)(model)


def a_sample(model):
  """Two rows under guidance; fewer than some meshes have parts for rows."""
  rows, unguided = make_rows(2, 5), make_rows(2, 5, text=7)
  config = SamplingConfig(num_inference_steps=2, guidance_scale=3.0, guidance_rescale=0.5)
  return sampling.sample(model, [rows, unguided], jax.random.split(jax.random.key(4), 2), objective=OBJECTIVE,
                         configs=[config] * 2)


@pytest.fixture(scope='module')
def unsharded():
  """A model, and what it gives on one device."""
  model = random_model()
  with jax.set_mesh(sharding.make_mesh(MeshConfig(), jax.devices()[:1])):
    sample = a_sample(model)
  return model, jax.jit(loss_and_gradients)(model, make_rows(8, 1)), sample


@pytest.mark.slow
@pytest.mark.parametrize('name', MESHES)
def test_loss_gradients_and_a_sample_on_any_mesh_are_those_of_one_device(unsharded, name):
  model, (loss, gradients), sample = unsharded
  with sharding.use(MESHES[name]) as mesh:
    layout = jax.eval_shape(lambda: dit.DiT(CONFIG, rngs=nnx.Rngs(0)))
    laid = jax.tree.map(lambda a, s: jax.device_put(a, sharding.named(mesh, s.sharding.spec)), model, layout)
    tokens = jax.tree.map(lambda a, s: jax.device_put(a, sharding.named(mesh, s)), make_rows(8, 1), dit.TOKEN_SPECS)
    got, got_gradients = jax.jit(loss_and_gradients)(laid, tokens)
    got_sample = a_sample(laid)
  assert float(got) == pytest.approx(float(loss), rel=1e-5)
  for x, y in zip(jax.tree.leaves(got_gradients), jax.tree.leaves(gradients), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5)
  np.testing.assert_allclose(got_sample, sample, rtol=1e-3, atol=1e-4)


def test_the_free_axis_takes_what_is_left():
  assert dict(sharding.make_mesh(MeshConfig(context=2, tensor=2)).shape) == {
      'data': 2, 'fsdp': 1, 'context': 2, 'tensor': 2}
  with pytest.raises(ValueError, match='fsdp=3.*does not cover 8 devices.*-1'):
    sharding.make_mesh(MeshConfig(fsdp=3))


def test_data_runs_over_slices_first():
  devices = jax.devices()
  mesh = sharding.make_mesh(MeshConfig(data=4, fsdp=2, slices=2))
  assert [set(part.flat) for part in np.split(mesh.devices, 2)] == [set(devices[:4]), set(devices[4:])]
  with pytest.raises(ValueError, match='data=1 on 2 slices.*multiple of 2'):
    sharding.make_mesh(MeshConfig(data=1, fsdp=8, slices=2))


def test_devices_say_of_which_slice_they_are():
  devices = [types.SimpleNamespace(slice_index=i % 2) for i in range(8)]
  for parts in (sharding.slices(devices), sharding.slices(devices, 2)):
    assert parts == [devices[::2], devices[1::2]]
  with pytest.raises(ValueError, match='slices=4, but 8 devices are of 2 slices'):
    sharding.slices(devices, 4)
  with pytest.raises(ValueError, match='slices=3'):
    sharding.slices(jax.devices(), 3)


def test_rows_then_tokens_are_shared_by_default():
  for rows, data in ((None, 8), (1, 1), (2, 2), (6, 2), (16, 8)):
    with sharding.default_mesh(rows):
      assert dict(jax.sharding.get_mesh().shape) == {'data': data, 'fsdp': 1, 'context': 8 // data, 'tensor': 1}


def test_every_layout_is_declared_in_one_place():
  """No other file names an axis of the mesh in a spec."""
  folder = pathlib.Path(sharding.__file__).parent
  for path in folder.rglob('*.py'):
    if path != folder / 'sharding.py':
      calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
      specs = [call for call in calls if ast.unparse(call.func).rsplit('.')[-1] in ('P', 'PartitionSpec')]
      named = [ast.unparse(spec) for spec in specs for part in ast.walk(spec)
               if isinstance(part, ast.Constant) and part.value in (*sharding.AXES, *sharding.CLIP_AXES)]
      assert not named, f'{path}: {named}'


def test_an_axis_that_does_not_divide_its_dim_is_left_out():
  assert sharding.dividing(sharding.D_NK, 3, 5) == sharding.D_NK  # no mesh: whatever it will be
  with sharding.use(MeshConfig(data=1, fsdp=2, tensor=4)):
    assert sharding.dividing(sharding.D_NK, 6, 8) == sharding.D_NK
    assert sharding.dividing(sharding.D_NK, 5, 8) == P(None, 'tensor', None)
    assert sharding.dividing(sharding.NK_D, 6, None, 6) == P(None, None, sharding.PARTS)
    assert sharding.dividing(sharding.BLNK, None, None, 6) == P(sharding.ROWS, 'context', None, None)
  with sharding.use(MeshConfig(data=1, fsdp=2, context=4)):
    assert [sharding.dividing(sharding.C_D, 3, size)[1] for size in (8, 6, 5)] == [sharding.PARTS, 'fsdp', None]
