"""Published weights in and out: one table of rules per model says where each tensor of its files goes.

A rule's source is a regex over the whole key, written so that it can be read back: what stands in braces is a named
group, `{name:regex}`, or `{name}` for a number; everything else is literal. Its targets are paths as those of
`models.weights.names`, with the same groups. The group `layer`, where the target leaves it out, is the place on the
target's leading axis:

  Rule('encoder.block.{layer}.layer.0.SelfAttention.{part:[qkv]}.weight', 'blocks.attention.w_{part}', LINEAR)

So one table loads a model and writes it back under its published names. Parameters keep the dtype of the file, and what
is written back has the same bytes. Shapes are checked on the files' headers before anything is read; then host memory
holds one tensor of the file at a time, and each goes straight to its place on the devices.
"""
import dataclasses
import difflib
import functools
import itertools
import math
import re
from collections.abc import Collection, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from veojax import sharding
from veojax.models import weights
from veojax.zoo import weight_files
from veojax.zoo.transforms import SAME, Transform

SHOWN = 20  # keys of each kind in an error
_GROUP = re.compile(r'\{(\w+)(?::([^{}]+))?\}')

Place = tuple[str, int | None]  # a parameter's path, and the index on its leading axis where layers are stacked


@dataclasses.dataclass(frozen=True)
class Rule:
  """Where the tensors under one kind of key go.

  Several targets lie one after another on the source's first axis (q, k and v in one matrix; both halves of a gated
  MLP, in the order of the names), each with the transform or with one of its own. No target drops the tensor, for a
  `reason`. Where two rules lead to one target (a matrix stored twice, a second dialect), tensors that meet there must
  be equal, and those write it back whose keys the file had, or the first.
  """
  source: str
  targets: str | Sequence[str] = ()
  transform: Transform | Sequence[Transform] = SAME
  reason: str = ''

  def __post_init__(self):
    if isinstance(self.targets, str):
      object.__setattr__(self, 'targets', (self.targets,))
    assert bool(self.targets) != bool(self.reason), f'{self.source}: either targets, or the reason why it is dropped'
    for target in self.targets:
      assert self.groups - _groups(target) <= {'layer'} and _groups(target) <= self.groups, \
          f'{self.source} → {target} cannot be read back: they name different groups'

  @property
  def groups(self) -> set[str]:
    return _groups(self.source)

  @property
  def transforms(self) -> Sequence[Transform]:
    """One for each target."""
    return [self.transform] * len(self.targets) if isinstance(self.transform, Transform) else self.transform

  @functools.cached_property
  def _regexes(self) -> tuple[re.Pattern, tuple[re.Pattern, ...]]:
    inner = {m[1]: m[2] or r'\d+' for m in _GROUP.finditer(self.source)}
    return _compile(self.source, inner), tuple(_compile(target, inner) for target in self.targets)

  def places(self, key: str) -> list[Place] | None:
    """Where the tensor `key` goes, one place per target; None where the rule is not about it."""
    match = self._regexes[0].fullmatch(key)
    if match is None:
      return None
    layer = match.groupdict().get('layer')
    return [(_fill(target, match.groupdict()), None if layer is None or 'layer' in _groups(target) else int(layer))
            for target in self.targets]

  def keys(self, path: str, num_layers: int) -> list[str]:
    """The keys that fill the parameter `path`, one per layer where layers are stacked; none where the rule does not."""
    for target, regex in zip(self.targets, self._regexes[1]):
      if match := regex.fullmatch(path):
        stacked = self.groups - _groups(target)
        return [_fill(self.source, {**match.groupdict(), 'layer': str(i)}) for i in range(num_layers)] if stacked else [
            _fill(self.source, match.groupdict())]
    return []


def drop(source: str, reason: str) -> Rule:
  """Tensors that the model does not need."""
  return Rule(source, reason=reason)


def _groups(template: str) -> set[str]:
  return {m[1] for m in _GROUP.finditer(template)}


def _compile(template: str, inner: dict[str, str]) -> re.Pattern:
  literal_and_groups = _GROUP.split(template)
  return re.compile(''.join(f'(?P<{part}>{inner[part]})' if i % 3 == 1 else re.escape(part)
                            for i, part in enumerate(literal_and_groups) if i % 3 != 2))


def _fill(template: str, values: dict[str, str]) -> str:
  return _GROUP.sub(lambda m: values[m[1]], template)


@dataclasses.dataclass(frozen=True)
class Entry:
  """One tensor of the published file: its key, the rule about it, and its place or places in the model."""
  key: str
  rule: Rule
  places: list[Place]

  def part_shapes(self, shapes) -> list[tuple[int, ...]]:
    """Of what stands in the source tensor for each place; `shapes` are the model's parameters by path."""
    return [transform.source_shape(_shape(shapes, place))
            for place, transform in zip(self.places, self.rule.transforms, strict=True)]

  def source_shape(self, shapes) -> tuple[int, ...]:
    first, *others = self.part_shapes(shapes)
    return (first[0] + sum(shape[0] for shape in others), *first[1:]) if others else first

  def read(self, tensor: np.ndarray, shapes) -> dict[Place, np.ndarray]:
    """What goes to each place of the model."""
    parts = [tensor]
    if len(self.places) > 1:
      parts = np.split(tensor, list(itertools.accumulate(shape[0] for shape in self.part_shapes(shapes)))[:-1])
    return {place: transform.forward(part).reshape(_shape(shapes, place))
            for place, transform, part in zip(self.places, self.rule.transforms, parts, strict=True)}

  def part(self, place: Place, leaf) -> np.ndarray:
    """What one place gives to the tensor as it is published, from that parameter."""
    transform = self.rule.transforms[self.places.index(place)]
    return transform.back(np.asarray(leaf if place[1] is None else leaf[place[1]]))

  def write(self, leaves) -> np.ndarray:
    """The tensor as it is published, from the model's parameters by path."""
    parts = [self.part(place, leaves[place[0]]) for place in self.places]
    return np.asarray(np.concatenate(parts) if len(parts) > 1 else parts[0], order='C')


def _shape(shapes, place: Place) -> tuple[int, ...]:
  path, layer = place
  return tuple(shapes[path].shape if layer is None else shapes[path].shape[1:])


def entries(table: Sequence[Rule], model, stored: Collection[str] = ()) -> dict[str, Entry]:
  """Every tensor of the published file of `model` (of arrays or of shapes), by its key: of several names for one
  parameter those which the file has `stored`, else the first."""
  found, stored = {}, set(stored)
  for path, leaf in weights.names(model).items():
    candidates = [(rule, keys) for rule in table if (keys := rule.keys(path, leaf.shape[0] if leaf.shape else 0))]
    assert candidates, f'no rule of the table fills {path}'
    whole = [candidate for candidate in candidates if stored.issuperset(candidate[1])]
    nearest = max(candidates, key=lambda candidate: len(stored.intersection(candidate[1])))
    found.update({key: Entry(key, rule, rule.places(key)) for rule, keys in whole or [nearest] for key in keys})
  return found


def save(folder, table: Sequence[Rule], model, shard_bytes: int = weight_files.SHARD_BYTES, stem: str = 'model'):
  """Writes `model` under its published names: STEM.safetensors, or shards with their index."""
  leaves, wanted = weights.names(model), entries(table, model)
  sizes = {key: sum(math.prod(_shape(leaves, place)) * leaves[place[0]].dtype.itemsize for place in entry.places)
           for key, entry in wanted.items()}
  weight_files.write(folder, sizes, ((key, entry.write(leaves)) for key, entry in wanted.items()), shard_bytes,
                     stem)


def load(source, table: Sequence[Rule], model):
  """`model`, a tree of shapes as `jax.eval_shape` gives it, with the weights of a file or folder, laid out as it says.

  Raises one ValueError that lists what is missing, unexpected and misshapen; and one for values that are not finite.
  """
  with weight_files.opened(source) as files:
    return weights.replace(model, dict(leaves(source, files, table, model)))


def leaves(source, files: weight_files.WeightFiles, table: Sequence[Rule], model) -> Iterator[tuple[str, jax.Array]]:
  """The parameters of `model` by their paths, each made of its tensors when it is asked for; errors as of `load`."""
  shapes, filling = weights.names(model), {}
  for entry in match(source, files, table, model):
    for path in dict.fromkeys(path for path, _ in entry.places):
      filling.setdefault(path, []).append(entry)
  for path in shapes:
    yield path, _leaf(path, filling[path], files, shapes)


def _leaf(path: str, entries: list[Entry], files, shapes) -> jax.Array:
  leaf, filled = None, {}
  for entry in entries:
    tensor = files.read(entry.key)
    if not np.isfinite(tensor).all():
      raise ValueError(f'{entry.key} holds values that are not finite; copy or convert the file again')
    for place, value in entry.read(tensor, shapes).items():
      if place[0] != path:
        continue
      first = filled.setdefault(place, entry)
      if first is entry:
        leaf = _put(leaf, value, place[1], shapes[path])
      elif not np.array_equal(value, first.read(files.read(first.key), shapes)[place]):
        raise ValueError(f'{first.key} and {entry.key} are two values of one parameter; keep one of them')
    del tensor, value
  return leaf


def match(source, files: weight_files.WeightFiles, table: Sequence[Rule], model) -> list[Entry]:
  """The tensors to read, from the headers alone; or the ValueError about all that does not fit."""
  shapes, wanted = weights.names(model), entries(table, model, files.keys())
  plan, dtypes, unexpected, misshapen = [], {}, [], []
  for key in files.keys():
    found = [Entry(key, rule, places) for rule in table if (places := rule.places(key)) is not None]
    assert len(found) < 2, f'{key} is matched by {found[0].rule.source} and {found[1].rule.source}'
    if not found or not all(_exists(shapes, place) for place in found[0].places):
      near = difflib.get_close_matches(key, wanted, n=1) if len(unexpected) < SHOWN else []
      unexpected.append(f'{key} (near {near[0]})' if near else key)
    elif found[0].places:
      plan += found
      (dtype, shape), expected = files.header(key), found[0].source_shape(shapes)
      stacked_dtype = dtypes.setdefault(found[0].places[0][0], dtype)
      if shape != expected:
        misshapen.append(f'{key} {list(shape)} for {list(expected)} ({found[0].rule.transforms[0].name})')
      elif dtype not in weight_files.DTYPES or dtype != stacked_dtype:
        wanted_dtypes = [stacked_dtype] if stacked_dtype in weight_files.DTYPES else weight_files.DTYPES
        misshapen.append(f'{key} of {dtype} for {" or ".join(wanted_dtypes)}')
  filled = {place for entry in plan for place in entry.places}
  missing = [key for key, entry in wanted.items() if not filled.issuperset(entry.places)]
  problems = [f'{kind} ({len(rows)}): {", ".join(rows[:SHOWN])}{" ..." if len(rows) > SHOWN else ""}' for kind, rows in
              (('missing', missing), ('unexpected', unexpected), ('misshapen', misshapen)) if rows]
  if problems:
    raise ValueError(f'{source} holds another model than its configuration says; {"; ".join(problems)}')
  return plan


def _exists(shapes, place: Place) -> bool:
  path, layer = place
  return path in shapes and (layer is None or layer < shapes[path].shape[0])


def _put(leaf, value: np.ndarray, layer: int | None, shape):
  """`leaf`, made with its first layer, with `value` in it: in the dtype of the file, laid out as `shape`."""
  spec = shape.sharding.spec if isinstance(shape.sharding, NamedSharding) else P()
  if layer is None:
    return _lay_out(value, spec)
  if leaf is None:
    leaf = jnp.zeros(shape.shape, value.dtype, out_sharding=sharding.in_force(spec))
  # Waiting keeps the copies of several tensors from standing in host memory at once.
  return jax.block_until_ready(_set_layer(leaf, _lay_out(value, P(*spec[1:])), layer))


def _lay_out(value: np.ndarray, spec: P) -> jax.Array:
  return jax.device_put(np.asarray(value, order='C'), sharding.in_force(spec))


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(leaf, value, layer):
  return leaf.at[layer].set(value)
