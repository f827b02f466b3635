"""What a person says on the command line, --a.b=1, as a tree: {'a': {'b': 1}}."""
import ast
from collections.abc import Sequence


def parse(words: Sequence[str]) -> dict:
  """['--a.b=1', '--c', 'x'] → {'a': {'b': 1}, 'c': 'x'}; values are Python literals where they can be read as such.

  Raises ValueError for a word that is no option, and for an option without a value.
  """
  tree, rest = {}, iter(words)
  for word in rest:
    if not word.startswith('--'):
      raise ValueError(f'unexpected {word!r}; options are --name=value')
    name, given, value = word[2:].partition('=')
    if not given:
      value = next(rest, None)
      if value is None:
        raise ValueError(f'--{name} needs a value: --{name}=...')
    put(tree, name.replace('-', '_'), _literal(value))
  return tree


def merge(tree, given: dict):
  """Puts what is given into the tree, key by key. ValueError for a value of another kind than a ConfigDict has."""
  for name, value in given.items():
    if isinstance(value, dict) and name in tree and hasattr(tree[name], 'keys'):
      merge(tree[name], value)
    else:
      try:
        tree[name] = value
      except TypeError:
        raise ValueError(f'{name}={value!r}, where the config has {tree[name]!r}; give a value of that kind') from None


def _literal(text: str):
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def put(tree, path: str, value):
  """tree['a']['b'] = value for the path 'a.b'."""
  *outer, last = path.split('.')
  for name in outer:
    if name not in tree:
      tree[name] = {}
    tree = tree[name]
    if not hasattr(tree, 'keys'):
      raise ValueError(f'{path}: {name} is {tree!r}, which has no keys')
  tree[last] = value
