"""Chips and topologies by name, without having one: the TPU's own compiler (libtpu) describes and compiles for them.

Figures are for one device of JAX: a chip, but for v7x, whose chips are two devices each.
"""
import dataclasses
import importlib.util
import math
import os
import re

from jax.experimental import topologies


@dataclasses.dataclass(frozen=True)
class Chip:
  """peak: FLOP/s in bfloat16; hbm: bytes that a program may use; link: bytes a second over one link between chips, one
  way; clock: Hz."""
  name: str
  peak: float
  hbm: float
  link: float
  clock: float


GIB = 2 ** 30
# By JAX's device_kind. Peaks, links and clocks are Google's published figures; the memory is what libtpu's compiler
# refuses to exceed.
CHIPS = {
    'TPU v4': Chip('v4', 137.5e12, 15.25 * GIB, 45e9, 1.05e9),
    'TPU v5 lite': Chip('v5e', 197e12, 15.75 * GIB, 45e9, 1.5e9),
    'TPU v5': Chip('v5p', 459e12, 95.74 * GIB, 90e9, 1.75e9),
    'TPU v6 lite': Chip('v6e', 918e12, 31.25 * GIB, 90e9, 1.75e9),
    'TPU7x': Chip('v7x', 1153.5e12, 94.75 * GIB, 90e9, 2.2e9),
}
NAME = re.compile(r'(v4|v5e|v5p|v6e|tpu7x):\d+(x\d+){1,2}')

# Without these libtpu looks for a TPU's metadata server, and a second process at the same time is refused.
ENVIRONMENT = {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
               'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_LOG_DIR': 'disabled', 'TPU_MIN_LOG_LEVEL': '3'}


def devices(topology: str) -> list:
  """Devices of a topology such as 'v5p:4x4x4', to compile for and not to run on.

  Raises ValueError for a name that is none, and where libtpu is not installed.
  """
  if not NAME.fullmatch(topology):
    raise ValueError(f'topology {topology!r}; give a kind of TPU and its torus, such as v5e:4x4, v5p:4x4x4, v6e:16x16 '
                     'or tpu7x:4x4x4')
  if not importlib.util.find_spec('libtpu'):
    raise ValueError("the TPU's compiler is not installed; pip install 'veojax[aot]' brings it (libtpu), for machines "
                     'without a TPU too')
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  one = {'chips_per_host_bounds': (1, 1, 1)} if math.prod(map(int, re.findall(r'\d+', topology[3:]))) == 1 else {}
  try:
    return list(topologies.get_topology_desc(platform='tpu', topology_name=topology, **one).devices)
  except Exception as error:  # libtpu has no error of its own
    raise ValueError(f'topology {topology!r} is none that libtpu knows ({str(error).splitlines()[0]}); give one such '
                     'as v5e:4x4, v5p:4x4x4 or v6e:16x16') from None


def chip(device) -> Chip:
  if device.device_kind not in CHIPS:
    raise ValueError(f'no figures for {device.device_kind!r}; known: {", ".join(CHIPS)}')
  return CHIPS[device.device_kind]
