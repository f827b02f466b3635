"""Prompts in chains, and expanded by what a command line names."""
import sys

import pytest

from veojax.generation import prompts


def test_a_chain_is_a_list_of_prompts():
  assert prompts.chain('a', 5) == ['a'] and prompts.chain(['a', 'b'], 5) == ['a', 'b']
  for wrong in (([], 5), ('a', 0)):
    with pytest.raises(ValueError, match='at least one of each'):
      prompts.chain(*wrong)


def test_functions_and_commands_expand(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'longer_prompts.py').write_text('def upper(text):\n  return text.upper()\n')
  path = list(sys.path)
  assert prompts.expander('longer_prompts:upper')('a ball') == 'A BALL' and sys.path == path
  command = f'{sys.executable} -c "import sys; print(sys.stdin.read() + \' of glass\')"'
  assert prompts.expander(command)('a ball') == 'a ball of glass'
  assert prompts.expanded(['a', 'b', 'a'], str.upper) == ['A', 'B', 'A'] and prompts.expanded(['a'], None) == ['a']


@pytest.mark.parametrize('name, words', [
    ('nowhere:f', 'nowhere'), ('os:nothing', 'nothing'), ('os:name', 'no function'),
    ('', 'cannot be run'), ('/nowhere/command', 'cannot be run'),
    (f'{sys.executable} -c "raise SystemExit(3)"', 'ended with 3')])
def test_what_cannot_expand_is_named(name, words):
  with pytest.raises(ValueError, match=words):
    prompts.expander(name)('a ball')
