"""The GPU's kernels, in interpret mode, are the same mathematics, and visit only blocks whose segments meet."""
import functools

import jax
import jax.numpy as jnp
import numpy as np

from veojax.models import dense_attention, gpu_attention
from veojax.models.gpu_attention import Blocks, Tuning

LENGTHS = [100, 90, 3, 190, 0, 40]  # of segments; 0 begins the padding
SMALL = Tuning(Blocks(64, 32, 4, 2), Blocks(32, 64, 4, 2), Blocks(64, 64, 4, 2))


def rows(head_dim=48):
  rng = np.random.default_rng(0)
  segment = np.concatenate([np.full(n, 0 if i > 3 else i + 1) for i, n in enumerate(LENGTHS)])
  segment = jnp.asarray(np.stack([segment, np.roll(segment, 57)]), jnp.int32)
  return *(jnp.asarray(rng.normal(size=(*segment.shape, 2, head_dim)), jnp.float32) for _ in 'qkv'), segment


def test_forward_and_backward_are_those_of_dense_attention():
  q, k, v, segment = rows()
  some = slice(90, 300)  # queries that are fewer than the keys, as where `context` splits them

  @functools.partial(jax.jit, static_argnums=0)
  def result(way):
    out, pull = jax.vjp(lambda q, k, v: way(q, k, v, segment[:, some], segment), q[:, some], k, v)
    return out, *pull(jnp.cos(out))
  kernel = functools.partial(gpu_attention.attention, interpret=True, tuning=SMALL)
  for a, b in zip(result(kernel), result(dense_attention.attention), strict=True):
    np.testing.assert_allclose(a, b, atol=5e-6)


def test_parts_of_the_keys_merge_to_the_whole():
  q, k, v, segment = rows(16)
  way = dict(interpret=True, tuning=SMALL)
  parts = [slice(0, 250), slice(250, None)]

  @jax.jit
  def both(q, k, v):
    outs = [gpu_attention.partial(q, k[:, part], v[:, part], segment, segment[:, part], **way) for part in parts]
    logsumexp = functools.reduce(jnp.logaddexp, [l for _, l in outs])
    out = sum(jnp.where((l > -1e30)[..., None], o * jnp.exp(l - logsumexp)[..., None], 0) for o, l in outs)
    grads = [gpu_attention.gradients(q, k[:, part], v[:, part], segment, segment[:, part], out, logsumexp,
                                     jnp.cos(out), **way) for part in parts]
    dq, dk, dv = zip(*grads)
    whole, pull = jax.vjp(lambda q, k, v: dense_attention.attention(q, k, v, segment, segment), q, k, v)
    return (out, sum(dq), jnp.concatenate(dk, 1), jnp.concatenate(dv, 1)), (whole, *pull(jnp.cos(whole)))
  for a, b in zip(*both(q, k, v), strict=True):
    np.testing.assert_allclose(a, b, atol=5e-6)


def test_blocks_fit_the_memory_of_each_gpu():
  """As XLA's compiler has it: the kernels' own blocks ask 262 656 bytes of an H100 at 256 bfloat16 numbers a head."""
  assert 512 * gpu_attention.needed(Tuning()) == 262144
  for kilobytes in gpu_attention.SHARED.values():
    for row_bytes in (64, 128, 256, 512, 1024):
      tuning = gpu_attention.tuned(row_bytes, 1024 * kilobytes)
      assert row_bytes * gpu_attention.needed(tuning) < 1024 * kilobytes or tuning == gpu_attention.TUNINGS[-1]
  assert gpu_attention.tuned(256, 1024 * 227) == Tuning()


def test_blocks_that_do_not_meet_are_not_visited():
  """A key that is not a number spoils what visits its block, even where the mask leaves it out."""
  q, k, v, _ = rows(16)
  segment = jnp.repeat(jnp.asarray([[1, 2, 3]] * 2, jnp.int32), 128, 1)
  q, k, v = (x[:, :384] for x in (q, k, v))
  k = k.at[:, 256:].set(jnp.nan)
  out = gpu_attention.attention(q, k, v, segment, segment, interpret=True, tuning=SMALL)
  assert jnp.isfinite(out[:, :256]).all() and jnp.isnan(out[:, 256:]).all()
