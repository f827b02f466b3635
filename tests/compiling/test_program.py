"""A compiled module's text is read as it is executed: loops as often as they run, fusions with their caller."""
import jax
import jax.numpy as jnp
import pytest

from veojax.compiling import operations
from veojax.compiling.program import Program, arrays, num_bytes


def compiled(function, *shapes):
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return Program(jax.jit(function).lower(*arguments).compile().as_text())


def flops(function, *shapes):
  return operations.by_kind(compiled(function, *shapes))['matrix']


def test_a_product_is_two_for_each_pair():
  assert flops(lambda a, b: a @ b, (48, 160), (160, 96)) == 2 * 48 * 160 * 96


def test_a_batched_product_is_its_batch_of_products():
  assert flops(lambda a, b: jnp.einsum('bij,bjk->bik', a, b), (5, 48, 160), (5, 160, 96)) == 5 * 2 * 48 * 160 * 96


def test_a_loop_counts_as_often_as_it_runs():
  def scanned(a, w):
    return jax.lax.scan(lambda a, w: (jnp.tanh(a @ w), None), a, w)[0]

  def unrolled(a, w):
    for i in range(7):
      a = jnp.tanh(a @ w[i])
    return a
  shapes = (64, 96), (7, 96, 96)
  assert flops(scanned, *shapes) == flops(unrolled, *shapes) == 7 * 2 * 64 * 96 * 96


def test_loops_within_loops_multiply():
  def nested(a, w):
    inner = lambda a, w: jax.lax.scan(lambda a, _: (jnp.tanh(a @ w), None), a, None, length=3)[0]
    return jax.lax.scan(lambda a, w: (inner(a, w), None), a, w)[0]
  assert flops(nested, (64, 96), (5, 96, 96)) == 15 * 2 * 64 * 96 * 96


def test_gradients_of_a_product_cost_two_more_and_rematerialisation_one():
  def loss(a, w, wrap):
    layer = wrap(lambda a: jnp.sin(jnp.sin(a @ w) @ w))
    return jnp.sum(jnp.sin(layer(a)))
  shapes, one = ((64, 96), (96, 96)), 2 * 64 * 96 * 96
  plain = flops(jax.grad(lambda a, w: loss(a, w, lambda f: f), (0, 1)), *shapes)
  # The compiler may see that a product is there already; what it does execute is counted.
  again = flops(jax.grad(lambda a, w: loss(a, w, jax.checkpoint), (0, 1)), *shapes)
  assert plain == 6 * one and plain <= again <= 8 * one


@pytest.mark.parametrize('stride', [1, 2])
def test_a_convolution_counts_what_lies_inside(stride):
  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (stride,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC'))
  size = 32
  padded = -(-size // stride) * 3 - (2 if stride == 1 else 1)  # of three elements of a window one or none lies outside
  assert flops(convolve, (2, size, 24), (3, 24, 40)) == 2 * 2 * padded * 24 * 40


def test_a_batch_written_as_a_dilated_window_is_a_batch():
  for batch in (2, 8, 16):
    pairs = operations.meetings(batch, batch, batch, stride=batch - 1, low=0, lhs_dilate=batch, rhs_dilate=1)
    assert pairs == batch


def test_kernels_of_attention_count_their_products():
  text = '''ENTRY %main (p: f32[4]) -> f32[4] {
  %mask = s32[1,2,4]{2,1,0} parameter(0)
  %q = bf16[6,1024,128]{2,1,0} parameter(1)
  %k = bf16[6,4096,128]{2,1,0} parameter(2)
  %fwd.1 = bf16[6,1024,128]{2,1,0} custom-call(%mask, %mask, %q, %k, %k), metadata={op_name="a/splash_mha_fwd"}
  ROOT %bwd = bf16[6,1024,128]{2,1,0} custom-call(%mask, %q, %k, %k), metadata={op_name="a/splash_mha_dkv_segmented"}
}
'''
  product = 2 * 6 * 1024 * 4096 * 128
  assert operations.by_kind(Program(text)) == {'matrix': 0, 'attention': (2 + 5) * product}
  text = '''ENTRY %main (p: f32[4]) -> f32[4] {
  %range = s32[1,8]{1,0} parameter(0)
  %q = bf16[1,1024,6,128]{3,2,1,0} parameter(1)
  %k = bf16[1,4096,6,128]{3,2,1,0} parameter(2)
  ROOT %dkv = bf16[1,4096,6,128]{3,2,1,0} custom-call(%range, %range, %q, %k, %k), metadata={op_name="gpu_attention_dkv"}
}
'''
  assert operations.by_kind(Program(text)) == {'matrix': 0, 'attention': 4 * product}


def test_shapes_in_bytes():
  assert num_bytes('(f32[2,3]{1,0}, /*index=5*/bf16[4]{0:T(8,128)(2,1)}, pred[], f8e4m3fn[8]{0})') == 24 + 8 + 1 + 8
  assert arrays('s32[]{:T(128)}') == [('s32', ())]


def test_line_breaks_in_metadata_end_nothing():
  text = '''ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %kernel = f32[4]{0} custom-call(%p), frontend_attributes={kernel_metadata={
"metadata":"{}"
}}, metadata={op_name="kernel"}
  ROOT %last = f32[4]{0} add(%kernel, %p)
}
'''
  assert [item.instruction.name for item in Program(text).executed()] == ['p', 'kernel', 'last']


def test_what_is_no_module_is_refused():
  with pytest.raises(ValueError, match='no ENTRY'):
    Program('nothing')
