"""FLOPs that a compiled program executes: its matrix products, its convolutions and its attention kernels.

A multiply and an add are two. Products are counted where they multiply something: what a window lets fall on padding or
between dilated elements (the TPU's compiler writes batched products that way) is not counted. Elementwise work is not
counted: the matrix unit does none of it.
"""
import collections
import math
import re

from veojax.compiling import program as programs
from veojax.compiling.program import Executed, Program, dims

# Products of attention's size that a kernel does, by its name, and how its operands lie: scores and values forward;
# scores, dV, dP, dK and dQ backward in one kernel, dQ in the same or with scores and dP again in its own.
KERNELS = (('splash_mha_fwd', 2, 'nlk'), ('splash_mha_dq', 3, 'nlk'), ('splash_mha_dkv', 5, 'nlk'),
           ('gpu_attention_forward', 2, 'blnk'), ('gpu_attention_dq', 3, 'blnk'), ('gpu_attention_dkv', 4, 'blnk'))


def by_kind(program: Program) -> dict[str, float]:
  """FLOPs of one run on one device: {'matrix': ..., 'attention': ...}."""
  total = collections.Counter()
  for item in program.executed():
    opcode = item.instruction.opcode
    if opcode == 'dot':
      total['matrix'] += item.times * dot(item)
    elif opcode == 'convolution':
      total['matrix'] += item.times * convolution(item)
    elif opcode == 'custom-call':
      total['attention'] += item.times * kernel(item)
  return {'matrix': float(total['matrix']), 'attention': float(total['attention'])}


def dot(item: Executed) -> int:
  contracted = [int(i) for i in item.instruction.attribute(r'lhs_contracting_dims=\{([0-9,]*)\}').split(',') if i]
  left = dims(item.operands[0])
  return 2 * math.prod(dims(item.instruction.shape)) * math.prod(left[i] for i in contracted)


def convolution(item: Executed) -> int:
  """2 · batch · features in (of one group) · features out · the pairs of positions that meet along each dim."""
  left, right, out = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', item.instruction.rest).groups()
  lhs, rhs, result = (dict(zip(labels, dims(shape))) for labels, shape in
                      ((left, item.operands[0]), (right, item.operands[1]), (out, item.instruction.shape)))
  window = dict(re.findall(r'(\w+)=([\w\-]+)', item.instruction.attribute(r'window=\{([^}]*)\}')))
  pairs = 1
  for i in range(len(left) - 2):
    pick = lambda name, default: (window.get(name) or 'x'.join([default] * (len(left) - 2))).split('x')[i]
    low, high = (int(n) for n in pick('pad', '0_0').split('_'))
    pairs *= meetings(lhs[str(i)], rhs[str(i)], result[str(i)], stride=int(pick('stride', '1')), low=low,
                      lhs_dilate=int(pick('lhs_dilate', '1')), rhs_dilate=int(pick('rhs_dilate', '1')))
  groups = int(item.instruction.attribute(r'batch_group_count=(\d+)') or 1)
  return 2 * (lhs['b'] // groups) * rhs['i'] * result['f'] * pairs


def meetings(size: int, window: int, out: int, *, stride: int, low: int, lhs_dilate: int, rhs_dilate: int) -> int:
  """Pairs (output, window element) along a dim whose input element exists."""
  count = 0
  for w in range(window):
    for o in range(out):
      at = o * stride + w * rhs_dilate - low
      count += at % lhs_dilate == 0 and 0 <= at // lhs_dilate < size
  return count


def kernel(item: Executed) -> int:
  """FLOPs of an attention kernel, as if no block were skipped; 0 of any other custom call.

  Of its operands the first two that are not int32 are q and k.
  """
  for name, products, dims_of in KERNELS:
    if name in item.instruction.name or name in item.instruction.op_name:
      shapes = [sizes for shape in item.operands for dtype, sizes in programs.arrays(shape) if dtype[0] in 'fb']
      q, k = shapes[0][-len(dims_of):], shapes[1][-len(dims_of):]
      return 2 * products * math.prod(q) * k[dims_of.index('l')]
  return 0
