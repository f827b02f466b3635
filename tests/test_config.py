"""The door: trees become dataclasses, and what does not fit is named."""
import dataclasses
import json
from typing import Literal

import ml_collections
import pytest

from veojax import arguments
from veojax import config as door
from veojax.generation.sampling import SamplingConfig


@dataclasses.dataclass(frozen=True)
class Inner:
  width: int = 8
  kind: Literal['a', 'b'] = 'a'

  def __post_init__(self):
    if self.width < 1:
      raise ValueError(f'width={self.width}; give at least 1')


@dataclasses.dataclass(frozen=True)
class Outer:
  name: str
  rate: float = 1.0
  inner: Inner = Inner()
  sizes: tuple[int, ...] = ()
  limit: int | None = None


def test_a_config_dict_becomes_dataclasses():
  tree = ml_collections.ConfigDict({'name': 'x', 'rate': 2, 'inner': {'kind': 'b'}, 'sizes': [1, 2], 'limit': 3})
  built = door.build(Outer, tree)
  assert built == Outer('x', 2.0, Inner(8, 'b'), (1, 2), 3)
  assert isinstance(built.rate, float)


def test_to_tree_is_the_inverse_through_json():
  built = Outer('x', 2.0, Inner(4, 'b'), (1, 2), None)
  assert door.build(Outer, json.loads(json.dumps(door.to_tree(built)))) == built


@pytest.mark.parametrize('tree, words', [
    ({'name': 'x', 'inner': {'widht': 3}}, ['config.inner.widht', "'width'"]),
    ({'rate': 1.0}, ['config.name']),
    ({'name': 'x', 'rate': 'fast'}, ['config.rate', "'fast'", 'float']),
    ({'name': 'x', 'inner': {'kind': 'c'}}, ['config.inner.kind', "'c'"]),
    ({'name': 'x', 'inner': {'width': 0}}, ['config.inner', 'width=0']),
    ({'name': 'x', 'inner': 3}, ['config.inner', '3']),
    ({'name': 'x', 'sizes': 3}, ['config.sizes', '3']),
    ({'name': 'x', 'limit': True}, ['config.limit']),
])
def test_what_does_not_fit_is_named_with_the_remedy(tree, words):
  with pytest.raises(ValueError) as error:
    door.build(Outer, tree)
  assert '\n' not in str(error.value)
  for word in words:
    assert word in str(error.value)


def test_differences_name_every_leaf():
  old, new = door.to_tree(Outer('x')), door.to_tree(Outer('y', inner=Inner(9)))
  assert door.differences(old, new) == ['inner.width: 8 → 9', 'name: x → y']
  assert door.differences(old, old) == []


def test_a_value_of_another_kind_than_the_config_has_is_named():
  tree = ml_collections.ConfigDict({'loop': {'num_steps': 5}})
  with pytest.raises(ValueError, match="num_steps='abc', where the config has 5"):
    arguments.merge(tree, {'loop': {'num_steps': 'abc'}})


def test_a_value_like_none_of_the_known_is_told_all_of_them():
  with pytest.raises(ValueError, match="sampler is 'nonsense'; known: ddim, ddpm, dpmpp_2m, euler, heun"):
    door.build(SamplingConfig, {'sampler': 'nonsense'})
