"""Schedules end where they say; Muon orthogonalises what it should, on any mesh alike; a network learns with either."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optax import contrib

from veojax import sharding
from veojax.models import weights
from veojax.models.dit import DiT, DiTConfig
from veojax.models.text import TextConfig
from veojax.models.video_vae import VideoVAE, VideoVAEConfig
from veojax.sharding import MeshConfig
from veojax.training import optimizer
from veojax.training.optimizer import OptimizerConfig

DIT = DiTConfig(video_channels=4, audio_channels=6, width=32, depth=2, num_heads=2, mlp_width=48,
                text=TextConfig(vocab_size=50, width=16, depth=1, num_heads=2, mlp_width=24), dtype='float32')
VAE = VideoVAEConfig(widths=(8, 16), encoder_depths=(1, 1), decoder_depths=(1, 1),
                     temporal_compression=2, spatial_compression=8)
MUON = OptimizerConfig(kind='muon', learning_rate=1e-2, warmup_steps=0, schedule='constant', clip_norm=1e9)


def make_dit():
  return DiT(DIT, rngs=nnx.Rngs(0))


def gradient_like(tree):
  leaves, structure = jax.tree.flatten(tree)
  keys = jax.random.split(jax.random.key(7), len(leaves))
  draw = lambda k, x: jax.random.normal(k, x.shape, out_sharding=jax.typeof(x).sharding)
  return jax.tree.unflatten(structure, [draw(*item) for item in zip(keys, leaves)])


def first_update(model):
  tx = optimizer.make(MUON, 10)
  return jax.jit(lambda m: tx.update(gradient_like(m), tx.init(m), m)[0])(model)


@pytest.mark.parametrize('name', ['constant', 'cosine', 'linear'])
def test_schedules_rise_from_zero_and_end_at_their_share(name):
  rate = optimizer.schedule(OptimizerConfig(learning_rate=2.0, schedule=name, warmup_steps=10, final_share=0.1), 100)
  assert float(rate(0)) == 0 and np.isclose(float(rate(10)), 2.0)
  assert np.isclose(float(rate(100)), 2.0 if name == 'constant' else 0.2)


@pytest.mark.parametrize('make', [make_dit, lambda: VideoVAE(VAE, rngs=nnx.Rngs(0))], ids=['dit', 'video_vae'])
def test_muons_update_of_a_hidden_matrix_is_orthogonal_and_of_the_declared_size(make):
  model = make()
  updates = weights.names(first_update(model))
  is_leaf = lambda x: x is None or isinstance(x, contrib.MuonDimensionNumbers)
  dims = [name
          for name, d in zip(updates, jax.tree.leaves(optimizer.matrices(model), is_leaf=is_leaf), strict=True) if d]
  assert dims and not any(name.startswith(('w_', 'video_head', 'patchify')) for name in dims)
  for name in dims:
    update = np.asarray(updates[name])
    if 'attention' in name:
      update = update.reshape(update.shape[0],
                              *((update.shape[1], -1) if 'w_out' not in name else (-1, update.shape[-1])))
    for matrix in update if name.startswith(('blocks', 'text_encoder')) else [update.reshape(-1, update.shape[-1])]:
      singular = np.linalg.svd(matrix, compute_uv=False)
      # Five Newton-Schulz steps bring all singular values near one, not to it: between 0.6 and 1.3 of the scale.
      assert singular.max() / singular.min() < 3
      scale = MUON.learning_rate * MUON.update_rms * max(matrix.shape) ** 0.5
      assert 0.6 < np.median(singular) / scale < 1.3


@pytest.mark.parametrize('kind', ['adamw', 'muon'])
def test_what_decays_is_what_is_said_to(kind):
  """Without a gradient nothing else moves; beside Muon the hidden layers' matrices alone decay."""
  model = jax.tree.map(lambda x: jnp.ones_like(x), make_dit())
  tx = optimizer.make(dataclasses.replace(MUON, kind=kind, weight_decay=0.1), 10)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, model), tx.init(model), model)
  moved = {name for name, x in weights.names(updates).items() if jnp.any(x)}
  expected = optimizer.decayed(model) if kind == 'adamw' else optimizer.matrices(model)
  structure = jax.tree.structure(model)
  assert moved == {name for name, told in zip(weights.names(model), structure.flatten_up_to(expected)) if told}


@pytest.mark.parametrize('mesh', [MeshConfig(data=1, fsdp=2, context=2, tensor=2), MeshConfig(data=2, fsdp=2, tensor=2),
                                  MeshConfig(data=2, fsdp=4, slices=2)], ids=['split', 'replicas', 'slices'])
def test_muon_updates_a_sharded_model_as_it_updates_a_whole_one(mesh):
  whole = weights.names(first_update(make_dit()))
  with sharding.use(mesh):
    model = jax.jit(make_dit)()
    split = weights.names(first_update(model))
    assert [jax.typeof(u).sharding.spec for u in split.values()] == [
        jax.typeof(p).sharding.spec for p in weights.names(model).values()]
  for name, update in whole.items():
    np.testing.assert_allclose(split[name], update, atol=2e-5 * float(jnp.abs(update).max()) + 1e-9, err_msg=name)


def test_replicas_of_a_slice_share_out_what_muon_computes():
  def flops(mesh):
    with sharding.use(mesh, jax.devices()[:2]):
      tx, model = optimizer.make(MUON, 10), jax.jit(make_dit)()
      program = jax.jit(tx.update).lower(gradient_like(model), tx.init(model), model).compile()
    return program.cost_analysis()['flops']
  assert flops(MeshConfig()) < 0.6 * flops(MeshConfig(slices=2))


@pytest.mark.parametrize('kind', ['adamw', 'muon'])
def test_a_quadratic_in_every_parameter_goes_down(kind):
  model = make_dit()
  goal = gradient_like(model)
  loss = lambda m: sum(jnp.mean(jnp.square(a - b)) for a, b in zip(jax.tree.leaves(m), jax.tree.leaves(goal)))
  tx = optimizer.make(OptimizerConfig(kind=kind, learning_rate=0.05, warmup_steps=2), 30)

  @jax.jit
  def run(model):
    def step(carry, _):
      model, state = carry
      updates, state = tx.update(jax.grad(loss)(model), state, model)
      return (optax.apply_updates(model, updates), state), None
    return jax.lax.scan(step, (model, tx.init(model)), None, length=30)[0][0]
  assert float(loss(run(model))) < 0.7 * float(loss(model))


def test_a_clip_norm_of_nothing_clips_nothing_and_a_negative_one_is_refused():
  """With the same state as another, so that a run may change it."""
  params = {'w_a': jnp.ones((4,))}
  without, far = (optimizer.make(dataclasses.replace(MUON, kind='adamw', clip_norm=norm), 10) for norm in (0.0, 1e9))
  first = lambda tx: tx.update({'w_a': jnp.arange(4.0)}, tx.init(params), params)
  jax.tree.map(np.testing.assert_array_equal, first(without), first(far))
  assert float(jnp.abs(first(without)[0]['w_a']).max()) > 0
  with pytest.raises(ValueError, match='clip_norm=-1.0.* 0 for no clipping'):
    OptimizerConfig(clip_norm=-1.0)


# State in bfloat16.


def test_rounding_at_random_is_to_a_neighbour_and_right_in_the_mean():
  x = jnp.asarray([1.0, 1 + 2 ** -9, -3.3e-5, 0.0, jnp.inf, 7e37], jnp.float32)
  draws = jax.jit(jax.vmap(lambda seed: optimizer.stochastic_round(x, seed)))(jnp.arange(4000, dtype=jnp.uint32))
  assert draws.dtype == jnp.bfloat16
  draws = np.asarray(draws, np.float64)
  spacing = np.asarray([2 ** -7, 2 ** -7, 2 ** -22, 0, 0, 2.0 ** 119])  # above 1, above 2**-15 and above 2**125
  for i, (value, gap) in enumerate(zip(np.asarray(x, np.float64), spacing)):
    assert len(set(draws[:, i])) == (1 if value in (1.0, 0.0, np.inf) else 2)
    if np.isfinite(value):
      assert np.abs(draws[:, i] - value).max() <= gap
      assert abs(draws[:, i].mean() - value) <= 4 * gap / 4000 ** 0.5


def second_moment(tx, steps, first, later):
  """Of one parameter whose gradient is `first` at the first step and `later` from then on."""
  params = {'w_a': jnp.ones((64,))}
  def step(state, gradient):
    _, state = tx.update({'w_a': jnp.full((64,), gradient)}, state, params)
    return state, None
  gradients = jnp.full((steps,), later).at[0].set(first)
  state = jax.jit(lambda: jax.lax.scan(step, tx.init(params), gradients)[0])()
  [moment] = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state) if '.nu' in jax.tree_util.keystr(path)]
  return moment


def test_a_second_moment_in_bfloat16_falls_as_in_float32():
  """With b2 = 0.999 it falls by less a step than bfloat16 tells apart: rounded to the nearest it would stay."""
  config = OptimizerConfig(b2=0.999, warmup_steps=0, schedule='constant', clip_norm=1e9)
  want, got = (second_moment(optimizer.make(dataclasses.replace(config, state_dtype=dtype), 10), 1500, 1.0, 0.0)
               for dtype in ('float32', 'bfloat16'))
  assert want.dtype == jnp.float32 and got.dtype == jnp.bfloat16
  assert np.asarray(got, np.float32).mean() == pytest.approx(float(want[0]), rel=0.05)
  stuck = want[0] / 0.999 ** 1499
  assert (stuck.astype(jnp.bfloat16) * jnp.bfloat16(0.999)).astype(jnp.bfloat16) == stuck.astype(jnp.bfloat16)


@pytest.mark.parametrize('kind', ['adamw', 'muon'])
def test_state_in_bfloat16_is_half_as_large_and_its_updates_as_good(kind):
  draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
  params = {'blocks': {'w_up': draw(0, 2, 8, 16), 'scale': draw(1, 8)}, 'w_in': draw(2, 8, 16)}
  gradient = jax.tree.map(lambda x: jnp.sin(9 * x), params)

  def first_and_state(dtype):
    tx = optimizer.make(OptimizerConfig(kind=kind, warmup_steps=0, schedule='constant', state_dtype=dtype), 10)
    return jax.jit(lambda p: tx.update(gradient, tx.init(p), p))(params)
  (want, full), (got, half) = map(first_and_state, ('float32', 'bfloat16'))
  sizes = [sum(x.nbytes for x in jax.tree.leaves(state) if x.size > 15) for state in (full, half)]
  assert sizes[1] <= sizes[0] / 2 + 8 * 4
  for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got)):
    np.testing.assert_allclose(a, b, atol=2e-6)  # the first step starts from zeros
