"""State and the one pure train step that every stage uses.

Randomness is fold_in(key, step). A step is skipped where its loss or gradient is not finite, or where the gradient's
norm explodes: it is more than `explosion` times its running level. A skipped step changes nothing but the counts and
that level, which sees the norm clipped to the bound: a norm that stays high becomes the level, and training goes on.
"""
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

LEVEL_DECAY = 0.98  # a norm that stays up is taken in some thirty steps for each factor of a hundred


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  step: Any                # int32: steps taken, skipped ones included
  skipped: Any             # int32: steps whose update was not applied
  skipped_in_a_row: Any    # int32: of these, the last ones without one that was applied between them
  norm_level: Any          # float32: running level of the gradient's norm
  model: Any
  ema: tuple[Any, ...]     # exponential moving averages of the model's parameters, one a decay
  opt: optax.OptState


def init(make_model, tx, key, num_emas: int = 1) -> State:
  model = make_model(key)
  emas = tuple(jax.tree.map(jnp.copy, model) for _ in range(num_emas))
  counts = (jnp.zeros((), jnp.int32) for _ in range(3))
  return State(*counts, jnp.zeros((), jnp.float32), model, emas, tx.init(model))


def ema_rate(decay: float, step):
  """Weight of the new parameters; larger in the first steps, so that the average forgets its start."""
  return 1 - jnp.minimum(decay, (1 + step) / (10 + step))


def judge(state: State, loss, grad_norm, explosion: float, changes: tuple[int, ...] = ()):
  """(whether the update is sound, the level that comes next); explosion 0: no norm is too large.

  The level is forgotten at the steps `changes`; where there is none the norm is taken for it.
  """
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  known = (state.norm_level > 0) & ~jnp.isin(state.step, jnp.array(changes, jnp.int32))
  bound = jnp.where(known & (explosion > 0), explosion * state.norm_level, jnp.inf)
  moved = state.norm_level + ema_rate(LEVEL_DECAY, state.step) * (jnp.minimum(grad_norm, bound) - state.norm_level)
  level = jnp.where(known, moved, grad_norm)
  return finite & (grad_norm <= bound), jnp.where(finite, level, state.norm_level)


def make(loss_fn, tx, ema_decays: tuple[float, ...], explosion: float = 0.0, changes: tuple[int, ...] = ()):
  """step(state, key, batches) → (state, metrics).

  loss_fn(model, batch, key, step) → (loss, metrics). `batches` carries a leading axis of micro-batches: their
  gradients are averaged before the one update.
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

  def accumulated(model, batches, key, step):
    num = jax.tree.leaves(batches)[0].shape[0]
    if num == 1:
      return grad_fn(model, jax.tree.map(lambda x: x[0], batches), key, step)

    def micro(total, item):
      index, batch = item
      return jax.tree.map(jnp.add, total, grad_fn(model, batch, jax.random.fold_in(key, index), step)), None
    first = jax.tree.map(lambda x: x[0], batches)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, out_sharding=s.sharding),
                        jax.eval_shape(grad_fn, model, first, key, step))
    total, _ = jax.lax.scan(micro, zero, (jnp.arange(num), batches))
    return jax.tree.map(lambda x: x / num, total)

  @functools.partial(jax.jit, donate_argnames='state')
  def step(state: State, key, batches):
    key = jax.random.fold_in(key, state.step)
    (loss, metrics), grads = accumulated(state.model, batches, key, state.step)
    grad_norm = optax.tree.norm(grads)
    sound, level = judge(state, loss, grad_norm, explosion, changes)
    updates, opt = tx.update(grads, state.opt, state.model)
    model = optax.apply_updates(state.model, updates)
    ema = tuple(optax.incremental_update(model, old, ema_rate(decay, state.step))
                for decay, old in zip(ema_decays, state.ema, strict=True))
    # In the type it has: the float32 rate would make a bfloat16 average float32.
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(sound, a.astype(b.dtype), b), new, old)
    state = State(state.step + 1, state.skipped + jnp.where(sound, 0, 1),
                  jnp.where(sound, 0, state.skipped_in_a_row + 1), level, keep(model, state.model),
                  keep(ema, state.ema), keep(opt, state.opt))
    counts = {name: getattr(state, name) for name in ('skipped', 'skipped_in_a_row')}
    return state, dict(metrics, loss=loss, grad_norm=grad_norm, **counts)
  return step
