"""I3D: Inception-v1 with its kernels inflated over time (Carreira & Zisserman 2017), the network of FVD.

FVD's features are the 400 logits before the softmax, and its weights those trained on Kinetics-400 alone ('rgb_scratch'
of google-deepmind/kinetics-i3d, the same file as TF Hub's i3d-kinetics-400/1). Two copies in PyTorch go round:
i3d_torchscript.pt and i3d_pretrained_400.pt. Weights that began on ImageNet ('rgb_imagenet') have the same shapes and
give another metric. `zoo.origin` makes safetensors of any of these; `FVD` says which are FVD's.

Pixels lie in [-1, 1], 224 × 224. All padding is TensorFlow's SAME: the odd row goes behind. Nothing here is trained:
parameters are zero until a file fills them.
"""
import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from veojax.models import layers
from veojax.zoo import weight_files, weight_table
from veojax.zoo.transforms import CONV
from veojax.zoo.weight_table import Rule, drop

SIDE = 224
MIN_FRAMES = 9  # below it the last average over two moments in time has only one
# Widths of the six convolutions of every Inception block.
BLOCKS = {'3b': (64, 96, 128, 16, 32, 32), '3c': (128, 128, 192, 32, 96, 64),
          '4b': (192, 96, 208, 16, 48, 64), '4c': (160, 112, 224, 24, 64, 64), '4d': (128, 128, 256, 24, 64, 64),
          '4e': (112, 144, 288, 32, 64, 64), '4f': (256, 160, 320, 32, 128, 128),
          '5b': (256, 160, 320, 32, 128, 128), '5c': (384, 192, 384, 48, 128, 128)}
POOL_BEFORE = {'4b': (3, 3, 3), '5b': (2, 2, 2)}  # windows of a max-pool of stride 2 in time and space
FVD = {'sha256:bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2': 'i3d_torchscript.pt',
       'sha256:55095f049e706479d48e221adcdb145b2b9dc930ba28b081ed72367ffaa32343': 'i3d_pretrained_400.pt',
       'git:fa7df95674dbf3579e7fccd954e51e706b4734c1': 'rgb_scratch'}
OTHERS = {'sha256:2609088c2e8c868187c9921c50bc225329a9057ed75e76120e0b4a397a2c7538': 'rgb_imagenet.pt',
          'git:2958652e0c9c48a65010c0ebda5c9cfd4edc7c18': 'rgb_imagenet',
          'git:6392a74c3180e706cabada39d8f40a50a48642e5': 'rgb_scratch_kin600'}

Video = Float[Array, 'b _t _h _w _c']


@dataclasses.dataclass(frozen=True)
class I3DConfig:
  """scaled: the batch norms have a scale, as PyTorch writes it (all ones); TensorFlow's have none."""
  num_classes: int = 400
  scaled: bool = True


class Unit(nnx.Module):
  """Convolution without bias, batch norm by its stored statistics, relu."""

  def __init__(self, inputs: int, outputs: int, size: int = 1, *, stride: int = 1, scaled: bool):
    self.stride = stride
    self.kernel = zeros(size, size, size, inputs, outputs)
    self.scale = zeros(outputs) if scaled else None
    self.bias, self.mean, self.variance = zeros(outputs), zeros(outputs), zeros(outputs)

  def __call__(self, x_BTHWC: Video, epsilon: float) -> Video:
    scale = jax.lax.rsqrt(self.variance[...] + epsilon)
    scale = scale if self.scale is None else scale * self.scale[...]
    y_BTHWC = convolve(x_BTHWC, self.kernel[...] * scale[None, None, None, None], self.stride)
    return jax.nn.relu(y_BTHWC + (self.bias[...] - self.mean[...] * scale)[None, None, None, None])


class Mixed(nnx.Module):
  """An Inception block: four branches side by side."""

  def __init__(self, inputs: int, widths: tuple[int, ...], *, scaled: bool):
    w0, w1a, w1b, w2a, w2b, w3 = widths
    self.units = nnx.List([Unit(*sizes, scaled=scaled) for sizes in (
        (inputs, w0), (inputs, w1a), (w1a, w1b, 3), (inputs, w2a), (w2a, w2b, 3), (inputs, w3))])

  def __call__(self, x_BTHWC: Video, epsilon: float) -> Video:
    one, two, two_wide, three, three_wide, pooled = (lambda x, u=u: u(x, epsilon) for u in self.units)
    return jnp.concatenate([one(x_BTHWC), two_wide(two(x_BTHWC)), three_wide(three(x_BTHWC)),
                            pooled(max_pool(x_BTHWC, (3, 3, 3), (1, 1, 1)))], -1)


class I3D(nnx.Module):

  def __init__(self, cfg: I3DConfig):
    self.stem = nnx.List([Unit(3, 64, 7, stride=2, scaled=cfg.scaled), Unit(64, 64, scaled=cfg.scaled),
                          Unit(64, 192, 3, scaled=cfg.scaled)])
    inputs, self.blocks = 192, nnx.List([])
    for widths in BLOCKS.values():
      self.blocks.append(Mixed(inputs, widths, scaled=cfg.scaled))
      inputs = widths[0] + widths[2] + widths[4] + widths[5]
    self.kernel, self.bias = zeros(1, 1, 1, inputs, cfg.num_classes), zeros(cfg.num_classes)

  def __call__(self, video_BTHWC: Float[Array, 'b t 224 224 3'], epsilon: float = 1e-3) -> Float[Array, 'b d']:
    """Logits. epsilon: what the batch norms add to the variances."""
    if video_BTHWC.shape[1] < MIN_FRAMES:
      raise ValueError(f'{video_BTHWC.shape[1]} frames; I3D needs at least {MIN_FRAMES}')
    first, second, third = self.stem
    x_BTHWC = max_pool(first(video_BTHWC, epsilon), (1, 3, 3), (1, 2, 2))
    x_BTHWC = max_pool(third(second(x_BTHWC, epsilon), epsilon), (1, 3, 3), (1, 2, 2))
    for name, block in zip(BLOCKS, self.blocks, strict=True):
      if name in POOL_BEFORE:
        x_BTHWC = max_pool(x_BTHWC, POOL_BEFORE[name], (2, 2, 2))
      x_BTHWC = block(x_BTHWC, epsilon)
    # Pairs of moments are averaged first, then the pairs: in the middle a moment counts twice.
    x_BTC = jnp.mean(x_BTHWC, (2, 3))
    x_BC = jnp.mean(0.5 * (x_BTC[:, 1:] + x_BTC[:, :-1]), 1)
    return x_BC @ self.kernel[0, 0, 0] + self.bias[...][None]


def zeros(*shape: int) -> nnx.Param:
  return layers.param(layers.zeros, None, shape)


def convolve(x_BTHWC: Video, kernel: Float[Array, 't h w c d'], stride: int) -> Video:
  return jax.lax.conv_general_dilated(x_BTHWC, kernel, (stride,) * 3, 'SAME',
                                      dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'))


def max_pool(x_BTHWC: Video, window: tuple[int, int, int], stride: tuple[int, int, int]) -> Video:
  return jax.lax.reduce_window(x_BTHWC, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *stride, 1), 'SAME')


def _units(stem: tuple[str, ...], block: str, units: tuple[str, ...]) -> dict[str, str]:
  """{name of a convolution in a published file: path of the Unit}; `block` has the block's name as {}."""
  found = {name: f'stem.{i}' for i, name in enumerate(stem)}
  for i, name in enumerate(BLOCKS):
    found |= {f'{block.format(name)}{unit}': f'blocks.{i}.units.{j}' for j, unit in enumerate(units)}
  return found


def _torch_table(units: dict[str, str], norm: str, logits: str) -> tuple[Rule, ...]:
  rules = [Rule(f'{logits}.conv3d.weight', 'kernel', CONV), Rule(f'{logits}.conv3d.bias', 'bias')]
  for source, target in units.items():
    rules.append(Rule(f'{source}.conv3d.weight', f'{target}.kernel', CONV))
    rules += [Rule(f'{source}.{norm}.{theirs}', f'{target}.{ours}') for theirs, ours in
              (('weight', 'scale'), ('bias', 'bias'), ('running_mean', 'mean'), ('running_var', 'variance'))]
    rules.append(drop(f'{source}.{norm}.num_batches_tracked', 'only counts training steps'))
  return tuple(rules)


def _tensorflow_table() -> tuple[Rule, ...]:
  units = _units(tuple(f'RGB/inception_i3d/Conv3d_{name}' for name in ('1a_7x7', '2b_1x1', '2c_3x3')),
                 'RGB/inception_i3d/Mixed_{}/Branch_', ('0/Conv3d_0a_1x1', '1/Conv3d_0a_1x1', '1/Conv3d_0b_3x3',
                                                        '2/Conv3d_0a_1x1', '2/Conv3d_0b_3x3', '3/Conv3d_0b_1x1'))
  # The one convolution that is named unlike its siblings.
  units['RGB/inception_i3d/Mixed_5b/Branch_2/Conv3d_0a_3x3'] = units.pop(
      'RGB/inception_i3d/Mixed_5b/Branch_2/Conv3d_0b_3x3')
  logits = 'RGB/inception_i3d/Logits/Conv3d_0c_1x1/conv_3d'
  rules = [Rule(f'{logits}/w', 'kernel'), Rule(f'{logits}/b', 'bias')]
  for source, target in units.items():
    rules += [Rule(f'{source}/{theirs}', f'{target}.{ours}') for theirs, ours in
              (('conv_3d/w', 'kernel'), ('batch_norm/beta', 'bias'), ('batch_norm/moving_mean', 'mean'),
               ('batch_norm/moving_variance', 'variance'))]
  return tuple(rules)


TABLES = {  # by the beginning of their keys
    'conv3d_1a_7x7': _torch_table(_units(
        ('conv3d_1a_7x7', 'conv3d_2b_1x1', 'conv3d_2c_3x3'), 'mixed_{}.branch_',
        ('0', '1.0', '1.1', '2.0', '2.1', '3.1')), 'batch3d', 'conv3d_0c_1x1'),
    'Conv3d_1a_7x7': _torch_table(_units(
        ('Conv3d_1a_7x7', 'Conv3d_2b_1x1', 'Conv3d_2c_3x3'), 'Mixed_{}.', ('b0', 'b1a', 'b1b', 'b2a', 'b2b', 'b3b')),
        'bn', 'logits'),
    'RGB': _tensorflow_table()}


def load(source) -> I3D:
  """The network of a safetensors file, whose names may be those of any of the three published forms."""
  with weight_files.opened(source) as files:
    keys = files.keys()
  form = next((form for form in TABLES if any(key.startswith(form) for key in keys)), None)
  if form is None:
    raise ValueError(f'{source} holds {", ".join(keys[:3])} ..., no I3D under any of its published names; '
                     'convert one with `python -m veojax.zoo.origin SOURCE OUTPUT.safetensors`')
  cfg = I3DConfig(scaled=form != 'RGB')
  return weight_table.load(source, TABLES[form], jax.eval_shape(lambda: I3D(cfg)))
