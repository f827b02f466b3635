"""The process and the machine it runs on: what is set once, before JAX starts."""
import contextlib
import ctypes
import os
import pathlib

import jax


def enable_compilation_cache():
  """Compiled programs are kept between starts, in the user's cache folder, unless JAX is told otherwise."""
  if not jax.config.jax_compilation_cache_dir and 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update('jax_compilation_cache_dir', str(pathlib.Path(base) / 'veojax' / 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 2.0)


@contextlib.contextmanager
def without_compilation_cache():
  """Programs for chips that are not here: what the cache kept of them could not be read back."""
  from jax.experimental.compilation_cache import compilation_cache
  before = jax.config.jax_enable_compilation_cache

  def enable(value):
    jax.config.update('jax_enable_compilation_cache', value)
    compilation_cache.reset_cache()  # JAX asks for the flag once, and remembers
  enable(False)
  try:
    yield
  finally:
    enable(before)


def keep_memory():
  """glibc keeps what is freed, for the next step, instead of giving it back to the system and asking for it page by
  page again: that was a fifth of a training step's time on a CPU, and more in a virtual machine. Other C libraries are
  left as they are."""
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return
  one_arena, no_mmap, never_trim = (-8, 1), (-4, 0), (-1, -1)  # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD
  for option in (one_arena, no_mmap, never_trim):
    mallopt(*option)


def free_bytes() -> int | None:
  """Of this process's first accelerator's memory; None where nothing is known of it, as on CPUs."""
  told = jax.local_devices()[0].memory_stats() or {}
  return told['bytes_limit'] - told['bytes_in_use'] if 'bytes_limit' in told else None


def num_cores() -> int:
  """Cores this process may run on; two threads of one core count once."""
  if not hasattr(os, 'sched_getaffinity'):
    return os.cpu_count() or 1
  allowed = os.sched_getaffinity(0)
  siblings = set()
  for cpu in allowed:
    try:
      siblings.add(pathlib.Path(f'/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list').read_text())
    except OSError:
      return len(allowed)
  return len(siblings)


def one_device_a_core(rows: int):
  """Splits a CPU into one JAX device a core, as many as divide `rows`, each of one thread. A step of a transformer
  then takes 0.7 of the time on two cores: XLA's threads share one device's work badly. Other backends are not touched,
  nor is a CPU whose devices or threads someone has set.

  Takes effect only before JAX's first computation.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  if 'JAX_NUM_CPU_DEVICES' in os.environ or 'device_count' in flags or 'multi_thread_eigen' in flags:
    return
  os.environ['XLA_FLAGS'] = f'{flags} --xla_cpu_multi_thread_eigen=false'.strip()
  jax.config.update('jax_num_cpu_devices', max(n for n in range(1, num_cores() + 1) if rows % n == 0))
