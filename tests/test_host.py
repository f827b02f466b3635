"""One device a core: as many as divide the rows, and what someone has set stays. Memory that is kept. Programs that the
cache must not keep."""
import os
import platform
import subprocess
import sys

import jax
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


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='other C libraries are left as they are')
def test_memory_that_is_freed_is_kept_whatever_its_size():
  """3 GiB, asked for and freed without being touched, stay in the heap after the call, and do not before it."""
  code = ('import ctypes, sys; from veojax import host; c = ctypes.CDLL(None); '
          'c.malloc.restype = c.sbrk.restype = ctypes.c_void_p; c.free.argtypes = [ctypes.c_void_p]; '
          'sys.argv[1] == "yes" and host.keep_memory(); before = c.sbrk(0); c.free(c.malloc(ctypes.c_size_t(3 << 30))); '
          'print(c.sbrk(0) - before)')
  kept, given_back = (int(subprocess.run([sys.executable, '-c', code, asked], capture_output=True, text=True,
                                         check=True).stdout) for asked in ('yes', 'no'))
  assert kept >= 3 << 30 > given_back


def test_the_cache_is_left_alone_where_its_programs_could_not_be_read_back(tmp_path):
  from jax.experimental.compilation_cache import compilation_cache
  settings = {'jax_compilation_cache_dir': str(tmp_path), 'jax_persistent_cache_min_compile_time_secs': 0.0}
  before = {name: getattr(jax.config, name) for name in settings}

  def kept(add):
    jax.jit(lambda x: x * 3.0 + add)(jax.numpy.zeros(7)).block_until_ready()
    return len(list(tmp_path.iterdir()))
  try:
    for name, value in settings.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    with host.without_compilation_cache():
      assert kept(1.0) == 0
    assert kept(2.0) > 0
    with pytest.raises(ValueError), host.without_compilation_cache():
      raise ValueError
    assert jax.config.jax_enable_compilation_cache
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
