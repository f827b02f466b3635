"""What is loaded by its name and kept for as long as one evaluation or sweep runs: models, data sets and their hashes,
the networks of FVD, FAD and LPIPS."""
import functools
from collections.abc import Callable

_KEPT = []


def kept(size: int) -> Callable[[Callable], Callable]:
  """A decorator: the last `size` results are kept by their arguments, until `forget`."""
  def decorate(load: Callable) -> Callable:
    _KEPT.append(functools.lru_cache(size)(load))
    return _KEPT[-1]
  return decorate


def forget():
  """Forgets all that is kept: by the next evaluation others may lie under the same names."""
  for load in _KEPT:
    load.cache_clear()
