"""The door: a literal tree from a config file becomes frozen dataclasses, once. An unknown key is an error.

A config file defines `get_config() -> ml_collections.ConfigDict`. Nothing behind this door sees a ConfigDict.
"""
import dataclasses
import difflib
import types
import typing
from typing import Any, TypeVar

T = TypeVar('T')


def nearest(name: str, known) -> str:
  """A hint for an unknown name: the nearest known one, or the list of them."""
  known = list(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  return f'did you mean {close[0]!r}?' if close else f'known: {", ".join(sorted(known))}'


def build(cls: type[T], tree: Any, path: str = 'config') -> T:
  """Turns a mapping into the frozen dataclass `cls`, recursively.

  Raises ValueError that names the key, with the nearest known one, for an unknown key, a missing key or a wrong type.
  """
  if isinstance(tree, cls):
    return tree
  if not hasattr(tree, 'items'):
    raise ValueError(f'{path} is {tree!r}; give a mapping with the keys of {cls.__name__}: '
                     f'{", ".join(f.name for f in dataclasses.fields(cls))}')
  hints = typing.get_type_hints(cls)
  fields = {f.name: f for f in dataclasses.fields(cls)}
  for key in tree.keys():
    if key not in fields:
      raise ValueError(f'unknown key {path}.{key}: {nearest(key, fields)}')
  values = {}
  for name, field in fields.items():
    if name in tree.keys():
      values[name] = _convert(hints[name], tree[name], f'{path}.{name}')
    elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
      raise ValueError(f'missing key {path}.{name}: {cls.__name__} needs it')
  try:
    return cls(**values)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None


def _convert(hint, value, path):
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    if value is None and type(None) in args:
      return None
    errors = []
    for option in args:
      if option is not type(None):
        try:
          return _convert(option, value, path)
        except ValueError as error:
          errors.append(str(error))
    raise ValueError(errors[-1])
  if dataclasses.is_dataclass(hint):
    return build(hint, value, path)
  if origin is tuple:
    if not isinstance(value, (tuple, list)):
      raise ValueError(f'{path} is {value!r}; give a list')
    inner = args[:1] * len(value) if args[-1] is Ellipsis else args
    if len(inner) != len(value):
      raise ValueError(f'{path} is {value!r}; give {len(inner)} values')
    return tuple(_convert(h, v, f'{path}[{i}]') for i, (h, v) in enumerate(zip(inner, value)))
  if origin is typing.Literal:
    if value not in args:
      raise ValueError(f'{path} is {value!r}; {nearest(str(value), map(str, args))}')
    return value
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if hint is Any or hint is dict or (isinstance(value, hint) and isinstance(value, bool) == (hint is bool)):
    return value
  raise ValueError(f'{path} is {value!r}; give a value of type {hint.__name__}')


def to_tree(config: Any) -> Any:
  """The inverse of `build`: plain dicts, lists and scalars, ready for JSON."""
  if dataclasses.is_dataclass(config):
    return {f.name: to_tree(getattr(config, f.name)) for f in dataclasses.fields(config)}
  if isinstance(config, (tuple, list)):
    return [to_tree(v) for v in config]
  return config


def differences(old: Any, new: Any, path: str = '') -> list[str]:
  """Lines `key: old → new` for every leaf in which two trees (as from `to_tree`) differ."""
  if isinstance(old, dict) and isinstance(new, dict):
    lines = []
    for key in sorted(old.keys() | new.keys()):
      lines += differences(old.get(key), new.get(key), f'{path}.{key}' if path else key)
    return lines
  return [] if old == new else [f'{path}: {old} → {new}']
