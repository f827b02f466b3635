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
