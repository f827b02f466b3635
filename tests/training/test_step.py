"""Steps whose update is not sound: skipped, counted, and taken again once a large norm is the rule."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from veojax.training import step as train_step

EXPLOSION = 10.0
TX = optax.sgd(1.0)


def loss(model, batch, key, step):
  return jnp.sum(model['w'] * batch), {}  # its gradient is the batch


STEP = train_step.make(loss, TX, (0.9,), EXPLOSION)
UNBOUNDED = train_step.make(loss, TX, (0.9,))


def init():
  return train_step.init(lambda key: {'w': jnp.zeros(4)}, TX, jax.random.key(0))


def after(norms, step=STEP):
  """The state after gradients of these norms, and how many steps in a row were skipped at each."""
  state, in_a_row = init(), []
  for norm in norms:
    state, metrics = step(state, jax.random.key(0), jnp.full((1, 4), norm / 2))
    in_a_row.append(int(metrics['skipped_in_a_row']))
  return state, in_a_row


def test_an_exploding_step_changes_nothing_but_the_counts_and_the_level():
  state, in_a_row = after([1, 1.5, 1, 30, 1])
  assert in_a_row == [0, 0, 0, 1, 0] and int(state.skipped) == 1 and int(state.step) == 5
  without, _ = after([1, 1.5, 1, 1])
  np.testing.assert_array_equal(state.model['w'], without.model['w'])
  assert float(without.norm_level) < float(state.norm_level) < EXPLOSION * float(without.norm_level)


def test_a_norm_that_stays_high_becomes_the_level():
  norms = [1.0] * 200 + [1000.0] * 60
  state, in_a_row = after(norms)
  assert in_a_row[200] == 1 and in_a_row[-1] == 0
  assert 10 < max(in_a_row) < 50  # not at once, and before a run ends by default
  assert float(state.norm_level) > 50


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_what_is_not_finite_is_skipped_and_leaves_the_level(bad):
  state, in_a_row = after([1, bad, bad, 1])
  clean, _ = after([1, 1])
  assert in_a_row == [0, 1, 2, 0] and np.isfinite(float(state.norm_level))
  np.testing.assert_array_equal(state.model['w'], clean.model['w'])


def test_the_first_norms_are_taken_as_they_are():
  assert after([1e-6, 5e-6, 3e-5])[1] == [0, 0, 0]
  assert after([0.0, 0.0, 1e3])[1] == [0, 0, 0]


def test_where_the_loss_changes_the_level_is_forgotten_and_taken_anew():
  changing = train_step.make(loss, TX, (0.9,), EXPLOSION, changes=(150,))
  norms = [1.0] * 150 + [1000.0] * 20
  assert max(after(norms, changing)[1]) == 0 and max(after(norms)[1]) > 10


def test_without_a_bound_every_finite_step_is_applied():
  state, in_a_row = after([1, 1e6], UNBOUNDED)
  assert in_a_row == [0, 0]
  np.testing.assert_array_equal(state.model['w'], np.full(4, -(1 + 1e6) / 2, np.float32))


def test_a_step_keeps_every_type_and_what_stays_as_it_is():
  """Of a model with a frozen half in bfloat16, as AnimateDiff's."""
  frozen = jnp.linspace(-3, 3, 101, dtype=jnp.bfloat16)
  tx = optax.masked(optax.sgd(1.0), {'w': True, 'frozen': False})
  step = train_step.make(loss, tx, (0.9,), EXPLOSION)
  state = train_step.init(lambda key: {'w': jnp.zeros(4), 'frozen': frozen + 0}, tx, jax.random.key(0))
  before = jax.tree.map(lambda x: x.dtype, state)
  for _ in range(3):
    state, _ = step(state, jax.random.key(0), jnp.ones((1, 4)))
  assert jax.tree.map(lambda x: x.dtype, state) == before
  np.testing.assert_array_equal(state.ema[0]['frozen'], frozen)
