"""The parameters of a model as a tree of lines: names, shapes, and how many there are below each name."""
import math
from collections.abc import Iterable, Iterator

from veojax.models import weights


def text(title: str, parts: Iterable[tuple[str, object]]) -> str:
  """A title, and below it the `lines` of each (name, module)."""
  return '\n'.join([title, *(line for name, module in parts for line in lines(name, module))])


def lines(name: str, module) -> Iterator[str]:
  """'name 1.2M', and below it each part of the module, the parameters with their dtypes and shapes."""
  root = {}
  for path, leaf in weights.names(module).items():
    *outer, last = path.split('.')
    branch = root
    for part in outer:
      branch = branch.setdefault(part, {})
    branch[last] = leaf
  yield f'{name}  {_told(_size(root))}'
  yield from _below(root, '')


def _below(branch: dict, indent: str) -> Iterator[str]:
  for i, (name, part) in enumerate(branch.items()):
    last = i == len(branch) - 1
    told = _told(_size(part)) if isinstance(part, dict) else f'{part.dtype}{list(part.shape)}'
    yield f'{indent}{"└" if last else "├"} {name}  {told}'
    if isinstance(part, dict):
      yield from _below(part, indent + ('  ' if last else '│ '))


def _size(part) -> int:
  return sum(map(_size, part.values())) if isinstance(part, dict) else math.prod(part.shape)


def _told(count: int) -> str:
  return next((f'{count / size:.3g}{unit}' for size, unit in ((1e9, 'B'), (1e6, 'M'), (1e3, 'k')) if count >= size),
              str(count))
