"""Attention over rows whose tokens lie on a ring of devices, none of which ever holds all keys of a row (Liu et al.
2023).

Queries stay; keys and values go round the mesh's axis `context`, and while a device works on those it has, the next are
under way. Partial results are merged by their logsumexp, so that the whole is the softmax over all keys (Milakov &
Gimelshein 2018, section 3.1). Going round again, the backward pass makes each part's scores from the whole row's
logsumexp; the gradients of keys and values travel with them and arrive at home. They are summed on the way in their own
precision, as a reduce-scatter would.

Parts whose segments do not meet cost nothing: their kernel does not run.
"""

import jax
import jax.numpy as jnp
from jax import ad_checkpoint

from veojax.models import layers

AXIS = 'context'
EMPTY = -1e30  # logsumexp of no key, or below


def make(partial, gradients):
  """attention(q, k, v, segment_q, segment_k) of each device's part of a row, within a `shard_map`.

  partial, gradients: as in models/attention.py, for the keys of one device.
  """
  @jax.custom_vjp
  def attention(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS):
    return forward(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS)[0]

  def forward(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS):
    def met(keys, so_far):
      k, v, segment = keys
      return merged(so_far, partial(q_BLNK, k, v, segment_BL, segment))

    def step(carry, _):
      keys, so_far = carry
      return (passed_on(keys), where_met(segment_BL, keys, so_far, met)), None
    keys = k_BSNK, v_BSNK, segment_BS
    start = jnp.zeros(q_BLNK.shape, jnp.float32), jnp.full(q_BLNK.shape[:3], EMPTY, jnp.float32)
    (keys, so_far), _ = jax.lax.scan(step, (keys, start), None, length=num_devices() - 1)
    o, logsumexp = where_met(segment_BL, keys, so_far, met)
    o, logsumexp = (ad_checkpoint.checkpoint_name(x, layers.ATTENTION_OUTPUT)
                    for x in (o.astype(q_BLNK.dtype), logsumexp))
    return o, (q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS, o, logsumexp)

  def backward(residuals, do_BLNK):
    q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS, o_BLNK, logsumexp_BLN = residuals

    def met(keys, so_far):
      k, v, segment = keys
      new = gradients(q_BLNK, k, v, segment_BL, segment, o_BLNK, logsumexp_BLN, do_BLNK)
      return tuple((a.astype(jnp.float32) + b.astype(jnp.float32)).astype(a.dtype) for a, b in zip(so_far, new))

    def step(carry, _):
      keys, (dq, *dkv) = carry
      # The gradients were made one device behind, and arrive while this part is worked on: nothing waits for them.
      added = where_met(segment_BL, keys, (dq, *map(jnp.zeros_like, dkv)), met)
      dkv = jax.tree.map(jnp.add, passed_on(dkv), list(added[1:]))
      return (passed_on(keys), (added[0], *dkv)), None
    keys = k_BSNK, v_BSNK, segment_BS
    own = where_met(segment_BL, keys, (jnp.zeros(q_BLNK.shape, jnp.float32), jnp.zeros_like(k_BSNK),
                                       jnp.zeros_like(v_BSNK)), met)
    (_, (dq, *dkv)), _ = jax.lax.scan(step, (passed_on(keys), own), None, length=num_devices() - 1)
    return dq.astype(q_BLNK.dtype), *passed_on(dkv), None, None

  attention.defvjp(forward, backward)
  return attention


def num_devices() -> int:
  return jax.lax.axis_size(AXIS)


def passed_on(tree):
  """What the device before has."""
  n = num_devices()
  return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, [(i, (i + 1) % n) for i in range(n)]), tree)


def where_met(segment_BL, keys, so_far, function):
  """function(keys, so_far) where in any row the ranges of ids of queries and keys overlap; elsewhere `so_far`."""
  q, k = segment_BL, keys[2]
  meet = jnp.any((q.min(1) <= k.max(1)) & (k.min(1) <= q.max(1)))
  return jax.lax.cond(meet, function, lambda keys, so_far: so_far, keys, so_far)


def merged(so_far, part):
  """Output and logsumexp over the keys of both; of queries that a part has no key for its output may be anything."""
  (o, logsumexp), (o_part, logsumexp_part) = so_far, part
  seen = logsumexp_part > EMPTY
  logsumexp_part = jnp.where(seen, logsumexp_part, EMPTY)
  total = jnp.logaddexp(logsumexp, logsumexp_part)
  share, share_part = (jnp.exp(x - total)[..., None] for x in (logsumexp, logsumexp_part))
  return o * share + jnp.where(seen[..., None], o_part.astype(jnp.float32), 0) * share_part, total
