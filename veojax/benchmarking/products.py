"""What the machine does at best: several matrix products, timed in the same run as what is compared with them."""
import time

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from veojax import sharding

# [m, k] x [k, n]: square ones and those of a transformer's layers. A CPU is as fast with small ones.
SIZES = {'cpu': ((1024, 1024, 1024), (2048, 1024, 2048), (2048, 2048, 2048)),
         'accelerator': ((8192, 8192, 8192), (16384, 8192, 8192), (32768, 2048, 6144), (32768, 6144, 2048),
                         (32768, 5120, 15360))}


QUEUED = 4  # products of one timing, so that starting them costs nothing


def best(mesh, dtype, repeats: int = 5) -> dict[str, float]:
  """{'m x k x n': FLOP/s} of all devices of the mesh together, a product on each; the best of `repeats` timings.

  Of random numbers, as a network's are: a chip that multiplies ones draws less power and runs faster.
  """
  devices, found = mesh.devices.size, {}
  spread = sharding.named(mesh, P(mesh.axis_names))
  draw = jax.jit(lambda key, shape: jax.random.normal(key, (devices, *shape), dtype, out_sharding=spread),
                 static_argnums=1)
  product = jax.jit(lambda a, b: jnp.einsum('dmk,dkn->dmn', a, b, preferred_element_type=a.dtype))
  for m, k, n in SIZES['cpu' if mesh.devices.flat[0].platform == 'cpu' else 'accelerator']:
    a, b = map(draw, jax.random.split(jax.random.key(0)), ((m, k), (k, n)))
    jax.block_until_ready(product(a, b))
    times = []
    for _ in range(repeats):
      start = time.perf_counter()
      for _ in range(QUEUED):
        last = product(a, b)
      jax.block_until_ready(last)
      times.append((time.perf_counter() - start) / QUEUED)
    found[f'{m} x {k} x {n}'] = 2 * devices * m * k * n / min(times)
  return found
