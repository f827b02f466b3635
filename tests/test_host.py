"""One device a core: as many as divide the rows, and what someone has set stays."""
import os
import subprocess
import sys

import pytest

from veojax import host


def devices(rows, **environment):
  """Devices of a fresh process on a CPU after the call, and its XLA flags."""
  code = (f'from veojax import host; host.one_device_a_core({rows}); import jax, os; '
          'print(len(jax.devices()), os.environ.get("XLA_FLAGS", ""))')
  inherited = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'JAX_NUM_CPU_DEVICES')}
  out = subprocess.run([sys.executable, '-c', code], env={**inherited, **environment}, capture_output=True, text=True,
                       check=True).stdout
  number, _, flags = out.strip().partition(' ')
  return int(number), flags


@pytest.mark.parametrize('rows', [1, 12])
def test_as_many_devices_as_divide_the_rows(rows):
  number, flags = devices(rows)
  assert rows % number == 0 and number <= host.num_cores()
  assert number > 1 or rows == 1 or host.num_cores() == 1
  assert 'multi_thread_eigen=false' in flags


def test_what_is_set_stays():
  assert devices(12, JAX_NUM_CPU_DEVICES='3') == (3, '')


def test_cores_are_among_the_processors():
  assert 1 <= host.num_cores() <= os.cpu_count()
