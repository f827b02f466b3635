"""Chips and topologies by name, without having one: the TPU's own compiler (libtpu) describes them and compiles for
them, and so does XLA's for NVIDIA's GPUs.

Figures are for one device of JAX: a chip, but for v7x, whose chips are two devices each.
"""
import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies


@dataclasses.dataclass(frozen=True)
class Chip:
  """peak: FLOP/s in bfloat16; hbm: bytes that a program may use; link: bytes a second over one link between chips, one
  way; network: bytes a second and chip over what joins slices or hosts; clock: Hz, 0 where no cycles are told."""
  name: str
  peak: float
  hbm: float
  link: float
  network: float
  clock: float = 0.0


GIB = 2 ** 30
# By JAX's device_kind. Peaks, links, networks and clocks are the makers' published figures; a TPU's memory is what
# libtpu's compiler refuses to exceed, a GPU's what XLA_PYTHON_CLIENT_MEM_FRACTION=.95 leaves to a program: of 79.1 GiB,
# and of an H200's 139.
CHIPS = {
    'TPU v4': Chip('v4', 137.5e12, 15.25 * GIB, 45e9, 3.125e9, 1.05e9),
    'TPU v5 lite': Chip('v5e', 197e12, 15.75 * GIB, 45e9, 3.125e9, 1.5e9),
    'TPU v5': Chip('v5p', 459e12, 95.74 * GIB, 90e9, 6.25e9, 1.75e9),
    'TPU v6 lite': Chip('v6e', 918e12, 31.25 * GIB, 90e9, 12.5e9, 1.75e9),
    'TPU7x': Chip('v7x', 1153.5e12, 94.75 * GIB, 90e9, 6.25e9, 2.2e9),
    'NVIDIA H100 80GB HBM3': Chip('h100', 989.4e12, 75.1 * GIB, 450e9, 50e9),
    'NVIDIA H200': Chip('h200', 989.4e12, 132.0 * GIB, 450e9, 50e9),
}
TPU = re.compile(r'((v4|v5e|v5p|v6e|v7x|tpu7x):(\d+(x\d+){1,2}))(\*[1-9]\d*)?')
GPU = re.compile(r'h100:(\d+x\d+x\d+)')
EXAMPLES = ('v5e:4x4, v5p:4x4x4, v6e:16x16 or v7x:2x2x1, with *2 after it for two slices; or slices, hosts and GPUs, '
            'such as h100:1x2x8')

# Without these libtpu looks for a TPU's metadata server, and a second process at the same time is refused.
ENVIRONMENT = {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
               'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_LOG_DIR': 'disabled', 'TPU_MIN_LOG_LEVEL': '3'}

# An H100 SXM as XLA's compiler wants to be told of it, in protobuf's text format.
H100 = '''
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448  shared_memory_per_core: 233472
  device_memory_size: 84929347584  memory_bandwidth: 3352320000000  l2_cache_size: 52428800
}
platform_name: "CUDA"
runtime_version { major: 12 minor: 8 }
dnn_version_info { major: 9 minor: 7 }
device_description_str: "NVIDIA H100 80GB HBM3"
'''


def devices(topology: str) -> list:
  """Devices of a topology such as 'v5p:4x4x4', or of several slices of it ('v5p:4x4x4*2'), to compile for and not to
  run on.

  Raises ValueError for a name that is none, and where the compiler is not installed.
  """
  if found := GPU.fullmatch(topology):
    return _gpus(found.group(1))
  found = TPU.fullmatch(topology)
  if not found:
    raise ValueError(f'topology {topology!r}; give a kind of TPU and its torus, such as {EXAMPLES}')
  if not importlib.util.find_spec('libtpu'):
    raise ValueError("the TPU's compiler is not installed; pip install 'veojax[aot]' brings it (libtpu), for machines "
                     'without a TPU too')
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  name, _, torus, _, slices = found.groups()
  options = {'num_slices': int(slices[1:])} if slices not in (None, '*1') else {}
  if math.prod(map(int, torus.split('x'))) == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  return _described(topology, platform='tpu', topology_name=name.replace('v7x', 'tpu7x'), **options)


def _gpus(shape: str) -> list:
  if not any(importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13)):
    raise ValueError("the compiler for NVIDIA's GPUs is not installed; pip install 'veojax[gpu]' brings it, for "
                     'machines without a GPU and its driver too')
  os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')  # which asks the driver
  return _described(f'h100:{shape}', platform='cuda', topology_name='h100', target_config=H100, topology=shape)


def _described(name: str, **options) -> list:
  try:
    return list(topologies.get_topology_desc(**options).devices)
  except Exception as error:  # the compilers have no error of their own
    raise ValueError(f'topology {name!r} is none that the compiler knows ({str(error).splitlines()[0]}); give one '
                     f'such as {EXAMPLES}') from None


def use_for_compiling(topology: str):
  """Tells JAX, before it has looked for devices, which platforms it needs: an accelerator that is here is not what is
  compiled for, but XLA's compiler for GPUs is only found where JAX may look for them."""
  if not GPU.fullmatch(topology):
    jax.config.update('jax_platforms', 'cpu')


def chip(device) -> Chip:
  if device.device_kind not in CHIPS:
    raise ValueError(f'no figures for {device.device_kind!r}; known: {", ".join(CHIPS)}')
  return CHIPS[device.device_kind]


def platform(device) -> str:
  """As JAX's lowering names it."""
  return 'tpu' if device.platform == 'tpu' else 'cuda'


def domain(device) -> int:
  """The number of what fast links join: a slice of TPUs, a host's GPUs."""
  return getattr(device, 'slice_index', 0) if device.platform == 'tpu' else device.process_index
