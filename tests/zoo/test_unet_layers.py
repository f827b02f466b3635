"""The layers of published U-Nets against diffusers' own, and on a mesh."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zoo import parity
from tests.zoo.small_folders import drawn
from veojax import sharding
from veojax.zoo import unet_layers as layers
from veojax.zoo.transforms import LINEAR, pointwise


def shapes_of(make):
  return jax.eval_shape(lambda key: make(nnx.Rngs(key)), jax.random.key(0))


def of_frames(torch, context):
  """A clip's context for each of two frames."""
  return torch.tensor(np.asarray(context)).repeat_interleave(2, 0)


def residual(torch, diffusers, embedding, outputs):
  from diffusers.models.resnet import ResnetBlock2D
  theirs = ResnetBlock2D(in_channels=64, out_channels=outputs, temb_channels=embedding, groups=16, eps=1e-5)
  shapes = shapes_of(lambda rngs: layers.TimedResidualBlock(64, outputs, embedding, 16, rngs=rngs) if embedding else
                     layers.ResidualBlock(64, outputs, 16, rngs=rngs))
  c = (parity.normal(1, 2, embedding),) if embedding else ()
  run = lambda x: theirs(x, of_frames(torch, c[0]) if c else None)
  return theirs, shapes, layers.residual_rules('theirs', 'ours'), c, run


def transformer(torch, diffusers, linear, depth, length):
  theirs = diffusers.Transformer2DModel(2, 24, in_channels=64, num_layers=depth, cross_attention_dim=20,
                                        norm_num_groups=16, use_linear_projection=linear)
  shapes = shapes_of(lambda rngs: layers.Transformer2D(64, 2, 24, 20, depth, 16, rngs=rngs))
  context = parity.normal(2, 2, length, 20)
  run = lambda x: theirs(x, encoder_hidden_states=of_frames(torch, context), return_dict=False)[0]
  rules = layers.transformer_rules('theirs', 'ours', LINEAR if linear else pointwise(2))
  return theirs, shapes, rules, (context,), run


def down(torch, diffusers):
  from diffusers.models.downsampling import Downsample2D
  theirs = Downsample2D(64, use_conv=True)
  del theirs.Conv2d_0
  return theirs, shapes_of(lambda rngs: layers.Downsample(64, rngs=rngs)), layers.conv_rules(
      'theirs.conv', 'ours'), (), theirs


def up(torch, diffusers, sides):
  from diffusers.models.upsampling import Upsample2D
  theirs = Upsample2D(64, use_conv=True)
  return theirs, shapes_of(lambda rngs: layers.Upsample(64, rngs=rngs)), layers.conv_rules(
      'theirs.conv', 'ours'), (sides,), lambda x: theirs(x, sides)


@pytest.mark.parametrize('make, arguments', [
    (residual, (None, 64)), (residual, (24, 96)), (transformer, (True, 1, 5)), (transformer, (False, 2, 5)),
    (transformer, (True, 1, 1)), (down, ()), (up, (None,)), (up, ((9, 14),))])
def test_layers_are_diffusers(make, arguments, tmp_path):
  torch, diffusers = parity.libraries()
  theirs, shapes, rules, given, run = make(torch, diffusers, *arguments)
  parity.draw(torch, theirs, 0)
  module = parity.load(torch, theirs, rules, shapes, tmp_path / 'weights.safetensors')
  x = parity.normal(3, 2, 2, 5, 7, 64)
  x_torch = parity.frames_first(torch, x).requires_grad_()
  out = run(x_torch)
  out = parity.frames_last(out, x)
  cotangent = parity.normal(4, *out.shape)
  (out * torch.tensor(np.asarray(cotangent))).sum().backward()

  @jax.jit
  def ours(module, x):
    y, pull = jax.vjp(lambda x: module(x, *given), x)
    return y, pull(cotangent)[0]
  with jax.default_matmul_precision('highest'):
    y, gradient = ours(module, x)
  error = parity.relative(y, out)
  print(f'{make.__name__}{arguments}: largest relative difference {error:.2e}')
  assert error < 1e-5
  assert parity.relative(gradient, parity.frames_last(x_torch.grad, x)) < 1e-5


def test_embeddings_are_diffusers(tmp_path):
  torch, _ = parity.libraries()
  from diffusers.models.embeddings import TimestepEmbedding
  theirs = parity.draw(torch, TimestepEmbedding(24, 40, out_dim=12), 0)
  module = parity.load(torch, theirs, layers.embedding_rules('theirs', 'ours'),
                       shapes_of(lambda rngs: layers.Embedding(24, 40, 12, rngs=rngs)), tmp_path / 'weights.safetensors')
  x = parity.normal(1, 3, 24)
  assert parity.relative(module(x), theirs(torch.tensor(np.asarray(x)))) < 1e-5


@pytest.mark.parametrize('sizes', [dict(data=1, fsdp=2, context=2, tensor=2), dict(data=2, context=4)])
@pytest.mark.parametrize('length', [1, 5])
def test_a_mesh_changes_nothing(sizes, length):
  """Three heads over two devices, 35 tokens over two or four; values and gradients."""
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.block = layers.TimedResidualBlock(32, 64, 24, 16, rngs=rngs)
      self.transformer = layers.Transformer2D(64, 3, 8, 20, groups=16, rngs=rngs)
      self.down, self.up = layers.Downsample(64, rngs=rngs), layers.Upsample(64, rngs=rngs)

    def __call__(self, x, c, context):
      x = self.transformer(self.block(x, c), context)
      return self.up(self.down(x), x.shape[2:4])
  x, c, context = parity.normal(1, 2, 2, 5, 7, 32), parity.normal(2, 2, 24), parity.normal(3, 2, length, 20)

  @jax.jit
  def loss_and_gradient(net, x, c, context):
    return jax.value_and_grad(lambda net: jnp.sum(jnp.square(net(x, c, context))))(net)
  alone = drawn(shapes_of(Net), 5)
  loss, gradient = loss_and_gradient(alone, x, c, context)
  with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(**sizes))):
    split = jax.tree.map(lambda p, s: jax.device_put(np.asarray(p), s.sharding.spec), alone, shapes_of(Net))
    inputs = [jax.device_put(np.asarray(a), sharding.B) for a in (x, c, context)]
    again, gradient_again = loss_and_gradient(split, *inputs)
  np.testing.assert_allclose(again, loss, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max() + 1e-6), gradient_again, gradient)


def test_attention_in_time_is_attention_of_each_place():
  q, k, v = (parity.normal(seed, 2, 4, 3, 2, 5) for seed in range(3))
  expected = jax.vmap(lambda q, k, v: jax.nn.dot_product_attention(q, k, v), 2, 2)(q, k, v)
  np.testing.assert_allclose(layers.attend_in_time(q, k, v), expected, atol=1e-5)
