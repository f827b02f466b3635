"""Attention over packed rows by every query against every key, a block of queries at a time: for platforms that have no
kernel here. Memory grows with L, not L²; time with L², whatever the segments."""
import jax
import jax.numpy as jnp

QUERY_BLOCK = 1024  # above this many queries the scores are made block by block
EMPTY = -1e30


def attention(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS):
  """As `models.attention.attention`."""
  # Recomputing a block's scores in the backward pass is what keeps them from being stored for all blocks at once.
  block = jax.checkpoint(lambda queries: _outputs(*queries, k_BSNK, v_BSNK, segment_BS)[0])
  return _over_blocks(block, q_BLNK, segment_BL)


def partial(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS):
  """As `models.attention.partial`."""
  return _over_blocks(lambda queries: _outputs(*queries, k_BSNK, v_BSNK, segment_BS), q_BLNK, segment_BL)


def gradients(q_BLNK, k_BSNK, v_BSNK, segment_BL, segment_BS, o_BLNK, logsumexp_BLN, do_BLNK):
  """As `models.attention.gradients`."""
  scale, product = q_BLNK.shape[-1] ** -0.5, lambda *a: jnp.einsum(*a, preferred_element_type=jnp.float32)

  def block(dkv, queries):
    q, segment, o, logsumexp, do = queries
    p = jnp.exp(_scores(q, segment, k_BSNK, segment_BS) - logsumexp.swapaxes(1, 2)[..., None])
    delta = jnp.sum(o.astype(jnp.float32) * do.astype(jnp.float32), -1).swapaxes(1, 2)
    ds = (p * (product('blnk,bsnk->bnls', do, v_BSNK) - delta[..., None]) * scale).astype(q.dtype)
    new = product('bnls,blnk->bsnk', ds, q), product('bnls,blnk->bsnk', p.astype(q.dtype), do)
    return jax.tree.map(jnp.add, dkv, new), product('bnls,bsnk->blnk', ds, k_BSNK).astype(q.dtype)
  operands = [_blocks(x) for x in (q_BLNK, segment_BL, o_BLNK, logsumexp_BLN, do_BLNK)]
  dkv, dq = jax.lax.scan(block, (jnp.zeros(k_BSNK.shape, jnp.float32),) * 2, operands)
  return _rows(dq), *(d.astype(k_BSNK.dtype) for d in dkv)


def _outputs(q_BLNK, segment_BL, k_BSNK, v_BSNK, segment_BS):
  """Output and logsumexp_BLN."""
  scores = _scores(q_BLNK, segment_BL, k_BSNK, segment_BS)
  weights = jax.nn.softmax(scores, -1).astype(v_BSNK.dtype)
  return jnp.einsum('bnls,bsnk->blnk', weights, v_BSNK), jax.nn.logsumexp(scores, -1).swapaxes(1, 2)


def _scores(q_BLNK, segment_BL, k_BSNK, segment_BS):
  scores = jnp.einsum('blnk,bsnk->bnls', q_BLNK, k_BSNK, preferred_element_type=jnp.float32)
  same = (segment_BL[:, :, None] == segment_BS[:, None, :])[:, None]
  return jnp.where(same, scores * q_BLNK.shape[-1] ** -0.5, EMPTY)


def _over_blocks(function, *rows):
  """function of each block of rows [B, L, ...], its results as rows again."""
  return jax.tree.map(_rows, jax.lax.map(function, tuple(map(_blocks, rows))))


def _blocks(x):
  """[B, L, ...] → [block, B, L of a block, ...]: of QUERY_BLOCK, or whole rows where it does not divide them."""
  B, L = x.shape[:2]
  block = L if L % QUERY_BLOCK else QUERY_BLOCK
  return jnp.moveaxis(x.reshape(B, L // block, block, *x.shape[2:]), 1, 0)


def _rows(x):
  """The inverse of `_blocks`."""
  x = jnp.moveaxis(x, 0, 1)
  return x.reshape(x.shape[0], -1, *x.shape[3:])
