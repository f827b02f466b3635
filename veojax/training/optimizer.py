"""AdamW (Loshchilov & Hutter 2019), or Muon (Jordan et al. 2024) for the matrices of hidden layers with NAdam (Dozat
2016: Adam with Nesterov's momentum) for all else; with warm-up, a schedule and clipping by global norm. Beside Muon
`weight_decay` is that of the hidden layers' matrices alone: NAdam's half, which has what enters and leaves the network,
does not decay.

Muon's update of a matrix has the root mean square `update_rms` whatever its shape (Liu et al. 2025, eq. 4): with 0.2,
about that of AdamW, one learning rate serves both.

State kept in bfloat16 is rounded at random, up or down with the probabilities that keep its mean: a second moment that
falls by (1 - b2) of itself a step, less than bfloat16 tells apart, would never fall if it were rounded to the nearest.
"""
import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from veojax import sharding
from veojax.models import weights


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  kind: Literal['adamw', 'muon'] = 'adamw'
  learning_rate: float = 1e-3
  schedule: Literal['constant', 'cosine', 'linear'] = 'cosine'  # after the warm-up, down to final_share of the rate
  final_share: float = 0.05
  warmup_steps: int = 100
  b1: float = 0.9
  b2: float = 0.99
  eps: float = 1e-8
  momentum: float = 0.95    # muon's
  update_rms: float = 0.2   # muon's
  weight_decay: float = 0.0  # of `decayed`; of kind muon, of those that `matrices` names alone
  clip_norm: float = 1.0     # of the whole gradient; 0: it is not clipped
  state_dtype: Literal['float32', 'bfloat16'] = 'float32'  # of moments and momentum

  def __post_init__(self):
    if not self.clip_norm >= 0:
      raise ValueError(f'clip_norm={self.clip_norm}; give a positive number, or 0 for no clipping')


def schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
  """Learning rate at a step; linear warm-up from 0, then the schedule to the end at `num_steps`."""
  peak, rest = config.learning_rate, max(1, num_steps - config.warmup_steps)
  after = {
      'constant': lambda: optax.constant_schedule(peak),
      'cosine': lambda: optax.cosine_decay_schedule(peak, rest, config.final_share),
      'linear': lambda: optax.linear_schedule(peak, peak * config.final_share, rest),
  }[config.schedule]()
  return optax.join_schedules([optax.linear_schedule(0.0, peak, config.warmup_steps), after], [config.warmup_steps])


def decayed(params):
  """Which parameters decay: matrices and kernels, by their name; not scales, biases, tables or embeddings."""
  last = [name.rsplit('.', 1)[-1] for name in weights.names(params)]
  return jax.tree.unflatten(jax.tree.structure(params), [n.startswith(('w_', 'kernel', 'weight')) for n in last])


# Dims that a hidden layer's product sums over, and those it makes; a stack's leading layer dim is a batch of matrices.
MATRICES = {'w_q': ((-3,), (-2, -1)), 'w_k': ((-3,), (-2, -1)), 'w_v': ((-3,), (-2, -1)), 'w_out': ((-3, -2), (-1,)),
            'w_gate': ((-2,), (-1,)), 'w_up': ((-2,), (-1,)), 'w_down': ((-2,), (-1,))}


def matrices(params):
  """For every parameter the dims of its matrix, or None: hidden products are matrices; what enters and leaves the
  network, tables, scales and biases are not."""
  def dims(name, leaf):
    *modules, last = name.split('.')
    if not {'blocks', 'transitions'} & set(modules):
      return None
    if last == 'kernel':
      return contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))
    return contrib.MuonDimensionNumbers(*MATRICES[last]) if last in MATRICES else None
  return jax.tree.unflatten(jax.tree.structure(params), [dims(*item) for item in weights.names(params).items()])


def on_any_mesh(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """`tx`, Muon, under automatic sharding, its results laid out as its arguments: the products of a matrix with itself
  contract split dims without saying how the result lies, which an explicit mesh refuses.

  The layers of a stack are shared out over the replicas along `data`, which would all compute the same; but not over
  several slices, whose network would carry every update.
  """
  def update(updates, state, params):
    if jax.sharding.get_abstract_mesh().empty:
      return tx.update(updates, state, params)
    specs = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, (updates, state))

    def on_auto(updates, state, params):
      shared = jax.tree.map(_share_out, updates, specs[0], matrices(params))
      return tx.update(shared, state, params)
    return jax.sharding.auto_axes(on_auto, out_sharding=specs)(updates, state, params)
  return optax.GradientTransformation(tx.init, update)


def _share_out(update, spec, dims: contrib.MuonDimensionNumbers | None):
  """`update` with its leading dim split over `data` where it is a batch of matrices that divides."""
  is_stack = dims is not None and update.ndim > len(dims.reduction_axis) + len(dims.output_axis)
  if not is_stack or sharding.num_slices() > 1 or update.shape[0] % sharding.size('data'):
    return update
  return jax.lax.with_sharding_constraint(update, sharding.over_data(spec))


class Rounded(NamedTuple):
  count: Any  # int32: updates, which number the random roundings
  state: Any


def in_bfloat16(tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """`tx` with what its state holds of each parameter kept in bfloat16; it computes with that in float32."""
  def of_each(params, function, state):
    shapes = {p.shape for p in jax.tree.leaves(params)}
    kept = lambda x: jnp.issubdtype(x.dtype, jnp.floating) and x.shape in shapes
    leaves, tree = jax.tree.flatten(state)
    return jax.tree.unflatten(tree, [function(i, x) if kept(x) else x for i, x in enumerate(leaves)])

  def init(params):
    return Rounded(jnp.zeros((), jnp.int32), of_each(params, lambda _, x: x.astype(jnp.bfloat16), tx.init(params)))

  def update(updates, state, params):
    whole = of_each(params, lambda _, x: x.astype(jnp.float32), state.state)
    updates, new = tx.update(updates, whole, params)
    first_seed = state.count.astype(jnp.uint32) * jnp.uint32(len(jax.tree.leaves(new)))
    new = of_each(params, lambda i, x: stochastic_round(x, first_seed + jnp.uint32(i)), new)
    return updates, Rounded(state.count + 1, new)
  return optax.GradientTransformation(init, update)


def stochastic_round(x, seed):
  """float32 → bfloat16: one of the two neighbours, at random, with x as the mean.

  The randomness is a hash (MurmurHash3's finalizer) of each element's place and a seed, uint32: on any mesh the same,
  and next to nothing beside the update.
  """
  layout = jax.typeof(x).sharding
  layout = None if layout.mesh.empty else layout.spec
  place = jnp.uint32(seed) * jnp.uint32(0x9e3779b9)
  for dim, factor in zip(range(x.ndim), (0x85ebca77, 0xc2b2ae3d, 0x27d4eb2f, 0x165667b1, 0x9e3779b1)):
    place = mixed(place + jax.lax.broadcasted_iota(jnp.uint32, x.shape, dim, out_sharding=layout) * jnp.uint32(factor))
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + (place >> 16)
  up_or_down = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xffff0000), jnp.float32)
  return jnp.where(jnp.isfinite(x), up_or_down, x).astype(jnp.bfloat16)


def mixed(h):
  h = (h ^ (h >> 16)) * jnp.uint32(0x85ebca6b)
  h = (h ^ (h >> 13)) * jnp.uint32(0xc2b2ae35)
  return h ^ (h >> 16)


def clipping(norm: float) -> optax.GradientTransformation:
  """Of a gradient to a global norm of at most `norm`; 0 leaves it as it is."""
  return optax.clip_by_global_norm(norm) if norm else optax.identity()


def make(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
  rate = schedule(config, num_steps)
  if config.kind == 'adamw':
    tx = optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decayed)
  else:
    tx = on_any_mesh(contrib.muon(
        rate, beta=config.momentum, weight_decay=config.weight_decay, adam_b1=config.b1, adam_b2=config.b2,
        eps=config.eps, weight_decay_mask=decayed, consistent_rms=config.update_rms,
        muon_weight_dimension_numbers=matrices))
  tx = optax.chain(clipping(config.clip_norm), tx)
  return in_bfloat16(tx) if config.state_dtype == 'bfloat16' else tx
