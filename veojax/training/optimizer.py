"""AdamW (Loshchilov & Hutter 2019) with warm-up, a schedule and clipping by global norm."""
import dataclasses
from typing import Literal

import jax
import optax

from veojax.models import weights


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  learning_rate: float = 1e-3
  schedule: Literal['constant', 'cosine', 'linear'] = 'cosine'  # after the warm-up, down to final_share of the rate
  final_share: float = 0.05
  warmup_steps: int = 100
  b1: float = 0.9
  b2: float = 0.99
  eps: float = 1e-8
  weight_decay: float = 0.0
  clip_norm: float = 1.0


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


def make(config: OptimizerConfig, num_steps: int) -> optax.GradientTransformation:
  return optax.chain(
      optax.clip_by_global_norm(config.clip_norm),
      optax.adamw(schedule(config, num_steps), config.b1, config.b2, config.eps,
                  weight_decay=config.weight_decay, mask=decayed))
