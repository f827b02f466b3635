"""How a tensor of a published file is turned into a parameter of ours, and back.

A transform only permutes and reshapes, so no bit changes. `forward` gives the target's values in the target's order;
the table reshapes them to the target's shape. `back` gives the source tensor exactly, and thereby its shape.

PyTorch's layouts: Linear (out, in), convolution (out, in, …kernel); ours: (in, out), (…kernel, in, out). N·K of
PyTorch is split into heads [N, K] here.
"""
import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
  name: str
  forward: Callable[[np.ndarray], np.ndarray]
  back: Callable[[np.ndarray], np.ndarray]

  def source_shape(self, target_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of the tensor that fills a target of this shape; takes no memory."""
    return self.back(np.broadcast_to(np.zeros((), np.int8), target_shape)).shape


def _channels_last(x):
  return x.transpose(*range(2, x.ndim), 1, 0)


def _channels_first(x):
  return x.transpose(x.ndim - 1, x.ndim - 2, *range(x.ndim - 2))


SAME = Transform('same', lambda x: x, lambda x: x)
FLAT = Transform('flat', lambda x: x, lambda x: x.reshape(-1))  # a bias (N·K) to [N, K]
LINEAR = Transform('linear', lambda x: x.T, lambda x: x.reshape(len(x), -1).T)  # to [D, F], or split as [D, N, K]
LINEAR_FROM_HEADS = Transform(  # to [N, K, D]
    'linear from heads', lambda x: x.T, lambda x: x.reshape(-1, x.shape[-1]).T)
CONV = Transform('convolution', _channels_last, _channels_first)  # over one, two or three dims


def pointwise(num_dims: int) -> Transform:
  """A convolution over `num_dims` dims of kernel 1 to a matrix [in, out]."""
  return Transform('pointwise', lambda x: x.reshape(x.shape[:2]).T,
                   lambda x: x.T.reshape(*x.shape[::-1], *(1,) * num_dims))


def patch(*sizes: int) -> Transform:
  """A convolution with kernel and stride `sizes` to a matrix [(…sizes, C), D] over patches."""
  return Transform('patch', _channels_last, lambda x: _channels_first(x.reshape(*sizes, -1, x.shape[-1])))


def in_halves(head_dim: int) -> Transform:
  """A Linear to heads, to [D, N, K], or a head's scale [K], whose rotary pairs are published as (2i, 2i+1) and rotated
  here as (i, i + K/2): each head's rows are reordered."""
  def reorder(x, *split):
    return x.reshape(-1, *split, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

  def back(x):
    return reorder(x.reshape(len(x), -1).T if x.ndim == 3 else x.reshape(-1), 2, head_dim // 2)
  return Transform('linear to heads in halves', lambda x: reorder(x, head_dim // 2, 2).T, back)


def channels_of_blocks(size: int) -> Transform:
  """A Linear, or its bias, whose outputs are blocks of `size` cells, published (C, …cells) and here (…cells, C)."""
  def swap(x, *split):
    return x.reshape(*split, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)
  return Transform('channels of blocks', lambda x: swap(x, -1, size).T, lambda x: swap(x.T, size, -1))
