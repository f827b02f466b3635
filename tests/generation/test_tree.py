"""The tree that a model prints: every parameter once, and sums that are right."""
import jax

from veojax.generation import model as models
from veojax.generation import tree
from veojax.models import weights


def test_a_model_prints_its_tree(model_folder):
  model = models.load(model_folder)
  shown = repr(model)
  assert shown.startswith(f'Model {str(model_folder)!r}\ntransformer  ')
  assert 'video codec  ' in shown and 'audio codec  ' in shown and 'text_encoder' in shown
  lines = list(tree.lines('transformer', model.dit))
  assert sum('float32[' in line for line in lines) == len(weights.names(model.dit))
  count = sum(x.size for x in jax.tree.leaves(model.dit))
  assert lines[0] == f'transformer  {count / 1e3:.3g}k'


def test_sums_stand_above_their_parts():
  shapes = {'a': {'b': jax.ShapeDtypeStruct((2, 3), 'float32'), 'c': jax.ShapeDtypeStruct((1500,), 'bfloat16')},
            'd': jax.ShapeDtypeStruct((4,), 'int32')}
  assert list(tree.lines('x', shapes)) == [
      'x  1.51k', '├ a  1.51k', '│ ├ b  float32[2, 3]', '│ └ c  bfloat16[1500]', '└ d  int32[4]']
