"""What the tests against PyTorch's published classes share."""
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from veojax.zoo import weight_table


def libraries():
  """(torch, diffusers), or the test is skipped."""
  reason = "PyTorch, diffusers and transformers are not installed: pip install -e '.[parity]'"
  torch, diffusers = (pytest.importorskip(name, reason=reason) for name in ('torch', 'diffusers'))
  diffusers.utils.logging.disable_progress_bar()
  return torch, diffusers


def relative(ours, theirs) -> float:
  """The largest difference, over the largest value."""
  ours, theirs = np.asarray(ours), theirs.detach().numpy()
  assert ours.shape == theirs.shape
  return np.abs(ours - theirs).max() / np.abs(theirs).max()


def draw(torch, module, seed: int):
  """Every parameter of a PyTorch module from a normal, scales about 1."""
  generator = torch.Generator().manual_seed(seed)
  for name, p in module.named_parameters():
    value = torch.randn(p.shape, generator=generator)
    scale = 'norm' in name and name.endswith('weight')
    p.data = 1 + 0.2 * value if scale else value * (0.1 if p.ndim < 2 else max(1, p[0].numel()) ** -0.5)
  return module.eval()


def load(torch, module, rules, shapes, path):
  """Our module of these shapes with the weights of a PyTorch module; in the rules they are called 'theirs' and
  'ours'."""
  state = {f'theirs.{name}': np.ascontiguousarray(value.numpy()) for name, value in module.state_dict().items()}
  safetensors.numpy.save_file(state, path)
  return weight_table.load(path, rules, {'ours': shapes})['ours']


def frames_first(torch, x_BTHWC):
  """[B, T, H, W, C] → [B·T, C, H, W] of PyTorch."""
  x = np.asarray(x_BTHWC)
  return torch.tensor(x.reshape(-1, *x.shape[2:])).permute(0, 3, 1, 2)


def frames_last(x, like_BTHWC):
  """The inverse of `frames_first`, still of PyTorch."""
  return x.permute(0, 2, 3, 1).reshape(*like_BTHWC.shape[:2], x.shape[2], x.shape[3], x.shape[1])


def normal(seed: int, *shape: int):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)
