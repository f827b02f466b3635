"""LPIPS: the distance of two pictures in the features of a network trained to classify (Zhang et al. 2018, eq. 1).

  d(x, y) = sum_l mean_hw |w_l ⊙ (x̂_l - ŷ_l)|²,   x̂_l the activations of layer l with unit norm over the channels.

The network is VGG16 or AlexNet with the weights of torchvision, in safetensors; the squared w_l are the published
linear heads (v0.1), and 1 without them. Neither is shipped: the user gives the files. torchvision's are .pth, once
converted by

  python -c "import torch, safetensors.torch as s; s.save_file(torch.load('vgg16.pth', weights_only=True),
      'vgg16.safetensors')"

Nothing here is trained: the weights are numpy arrays, constants of whatever is compiled with them.
"""
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Array, Float

# Numbers of torchvision's `features.N`: convolutions in stages, the activations after each stage's last one compared,
# and between stages a max-pool (side of its window; its stride is 2).
VGG16 = {'stages': ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)),
         'pools': (2, 2, 2, 2), 'stride': 1, 'padding': 1}
ALEXNET = {'stages': ((0,), (3,), (6,), (8,), (10,)), 'pools': (3, 3, 0, 0), 'stride': 4, 'padding': 2}
BACKBONES = {(64, 3, 3, 3): VGG16, (64, 3, 11, 11): ALEXNET}  # by the shape of features.0.weight
# Of ImageNet's mean and spread per channel, for pixels in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


@dataclasses.dataclass(frozen=True)
class PerceptualConfig:
  """weight 0 is off."""
  weights: str = ''   # safetensors of torchvision's vgg16 or alexnet
  heads: str = ''     # safetensors of the linear heads, lin0.model.1.weight ... lin4.model.1.weight
  weight: float = 0.0

  def __post_init__(self):
    if self.weight and not self.weights:
      raise ValueError(f"weight={self.weight} without weights; give the safetensors of torchvision's vgg16 or alexnet")


@dataclasses.dataclass(frozen=True)
class LPIPS:
  """A distance: lpips(x, y). `kernels` and `biases` of every convolution in order, `heads` of the five layers."""
  layout: dict
  kernels: tuple[np.ndarray, ...]  # HWIO
  biases: tuple[np.ndarray, ...]
  heads: tuple[np.ndarray, ...]

  def features(self, x_BHWC: Float[Array, 'b h w 3']) -> list[Float[Array, 'b _h _w _c']]:
    """Activations of the five layers, for pixels in [-1, 1]."""
    x = (x_BHWC - jnp.asarray(SHIFT)[None, None, None]) / jnp.asarray(SCALE)[None, None, None]
    weights, found = iter(zip(self.kernels, self.biases, strict=True)), []
    for i, stage in enumerate(self.layout['stages']):
      for kernel, bias in (next(weights) for _ in stage):
        first = x.shape[-1] == 3
        stride = self.layout['stride'] if first else 1
        padding = self.layout['padding'] if first else kernel.shape[0] // 2
        x = jax.lax.conv_general_dilated(x, jnp.asarray(kernel), (stride, stride), ((padding, padding),) * 2,
                                         dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
        x = jax.nn.relu(x + jnp.asarray(bias)[None, None, None])
      found.append(x)
      if i < len(self.layout['pools']) and self.layout['pools'][i]:
        x = max_pool(x, self.layout['pools'][i])
      if 0 in x.shape:
        raise ValueError(f'pictures of {x_BHWC.shape[1]}×{x_BHWC.shape[2]} pixels are too small '
                         'for the perceptual network; give at least 32×32')
    return found

  def __call__(self, x_BHWC: Float[Array, 'b h w 3'], y_BHWC: Float[Array, 'b h w 3']) -> Float[Array, 'b']:
    """The distance of each pair of pictures in [-1, 1]; 0 at equality, symmetric."""
    total = 0.0
    for x, y, head in zip(self.features(x_BHWC), self.features(y_BHWC), self.heads, strict=True):
      total += jnp.mean(jnp.square(unit(x) - unit(y)) @ jnp.asarray(head), (1, 2))
    return total


def unit(x: Float[Array, '... c']) -> Float[Array, '... c']:
  # The term in the root keeps its gradient finite where every channel is silent.
  return x / (jnp.sqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-20) + 1e-10)


def max_pool(x_BHWC: Float[Array, 'b _h _w c'], size: int) -> Float[Array, 'b _h2 _w2 c']:
  """Windows of `size` every second place, whole ones only."""
  return jax.lax.reduce_window(x_BHWC, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, 2, 2, 1), 'VALID')


def read(path) -> dict[str, np.ndarray]:
  """The arrays of a safetensors file. Raises ValueError, with how to convert a .pth."""
  path = pathlib.Path(path)
  try:
    return safetensors.numpy.load_file(path)
  except (safetensors.SafetensorError, OSError) as error:
    raise ValueError(f'{path} is missing or no safetensors file ({error}); convert a .pth once: '
                     "safetensors.torch.save_file(torch.load('X.pth', weights_only=True), "
                     f"'{path.with_suffix('.safetensors').name}')") from None


def load(weights: str, heads: str = '') -> LPIPS:
  """Backbone and heads from their files; which backbone is told by its first kernel. Raises ValueError for others."""
  flat = read(weights)
  shape = flat['features.0.weight'].shape if 'features.0.weight' in flat else None
  if shape not in BACKBONES:
    raise ValueError(f"{weights}: features.0.weight has shape {shape}; give torchvision's "
                     f'vgg16 {[*BACKBONES][0]} or alexnet {[*BACKBONES][1]}')
  layout = BACKBONES[shape]
  numbers = [n for stage in layout['stages'] for n in stage]
  missing = [n for n in numbers if not {f'features.{n}.weight', f'features.{n}.bias'} <= flat.keys()]
  if missing:
    raise ValueError(f'{weights}: no weight and bias of features.{missing[0]}; the file is not whole, convert it again')
  kernels = tuple(np.ascontiguousarray(flat[f'features.{n}.weight'].astype(np.float32).transpose(2, 3, 1, 0))
                  for n in numbers)
  biases = tuple(flat[f'features.{n}.bias'].astype(np.float32) for n in numbers)
  channels = [biases[numbers.index(stage[-1])].size for stage in layout['stages']]
  if not heads:
    return LPIPS(layout, kernels, biases, tuple(np.ones(c, np.float32) for c in channels))
  given = read(heads)
  found = [given.get(f'lin{i}.model.1.weight', np.empty(0)) for i in range(len(channels))]
  if [h.size for h in found] != channels:
    raise ValueError(f'{heads}: heads lin0.model.1.weight ... of {[h.size for h in found]} channels '
                     f'for layers of {channels}; give the heads of this backbone')
  return LPIPS(layout, kernels, biases, tuple(h.astype(np.float32).reshape(-1) for h in found))
