"""Make-A-Video's networks: what they begin as, and what the parts are given."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zoo.small_folders import drawn
from veojax import sharding
from veojax.diffusion.objective import Objective
from veojax.models import weights
from veojax.models.text import TextConfig
from veojax.zoo import make_a_video, make_a_video_prior, make_a_video_unet
from veojax.zoo.make_a_video import PartConfig
from veojax.zoo.make_a_video_prior import Embedder, EmbedderConfig
from veojax.zoo.make_a_video_unet import ImageUNet, UNetConfig, VideoUNet

UNET = UNetConfig(widths=(8, 16), attention=(False, True), depth=1, head_dim=8, groups=4, condition_dim=6, num_tokens=2)
EMBEDDER = EmbedderConfig(embedding_dim=6, widths=(8,), groups=4, prior_width=8, prior_depth=1, prior_head_dim=8,
                          text=TextConfig(vocab_size=300, width=8, depth=1, num_heads=1, mlp_width=8))


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.slow
def test_a_video_network_begins_as_the_image_network_of_each_frame():
  """With its weights, whatever they are; and it is blind to what it is given besides, until it has learned."""
  image = drawn(weights.abstract(lambda rngs: ImageUNet(UNET, rngs=rngs)), 0)
  more = UNetConfig(**{**vars(UNET), 'given_channels': 4})
  video = jax.jit(lambda key: VideoUNet(more, rngs=nnx.Rngs(key)))(jax.random.key(1))
  begun = make_a_video_unet.begun_as(video, {name: np.asarray(x) for name, x in weights.names(image).items()})
  x, level, told, fps = normal(2, 2, 3, 8, 6, 3), jnp.array([0.2, 0.9]), normal(3, 2, 6), jnp.array([3.0, 24.0])
  of_frames = jax.jit(lambda network: network(
      x.reshape(6, 1, 8, 6, 3), *(jnp.repeat(value, 3, 0) for value in (level, told, fps))))(image)
  run = jax.jit(lambda network, fps, given: network(jnp.concatenate([x, given], -1), level, told, fps))
  of_clip = run(begun, fps, normal(4, 2, 3, 8, 6, 4))
  assert float(of_frames.std()) > 0.01
  np.testing.assert_allclose(of_clip, of_frames.reshape(of_clip.shape), atol=1e-6 * float(jnp.abs(of_frames).max()))
  # What learns along time is there: with other weights frames see each other, and the rate.
  flat = {name: np.asarray(value) for name, value in weights.names(begun).items()}
  for name in ('frames.kernel', 'fps.linear_2.w'):
    flat |= {key: value + 0.1 for key, value in flat.items() if key.endswith(name)}
  learned = make_a_video_unet.begun_as(begun, flat)
  moved = run(learned, fps, normal(4, 2, 3, 8, 6, 4))
  assert float(jnp.abs(moved - of_clip).max()) > 1e-3
  assert float(jnp.abs(run(learned, 2 * fps, normal(4, 2, 3, 8, 6, 4)) - moved).max()) > 1e-4


def test_what_parts_are_given():
  x = normal(0, 2, 5, 4, 6, 3)
  given_T = np.arange(5) % 2 == 0
  told = np.asarray(make_a_video.masked(x, jnp.asarray(given_T)))
  np.testing.assert_array_equal(told[:, given_T, ..., :3], np.asarray(x)[:, given_T])
  np.testing.assert_array_equal(told[:, ~given_T], 0)
  np.testing.assert_array_equal(told[:, given_T, ..., 3], 1)
  large = make_a_video.enlarged(x, 3)
  assert large.shape == (2, 5, 12, 18, 3)
  np.testing.assert_allclose(make_a_video.reduced(large, 3), x, atol=1e-6)
  np.testing.assert_array_equal(large[:, :, 3:6, 6:9], np.broadcast_to(x[:, :, 1:2, 2:3], (2, 5, 3, 3, 3)))


def test_contrast_of_perfect_and_of_exchanged_embeddings():
  """Of n orthogonal ones with logits s on the diagonal and 0 elsewhere: log(1 + (n - 1) exp(-s))."""
  e, scale = jnp.eye(4, 6), 2.0
  loss = lambda captions: float(make_a_video_prior.contrast(e, captions, jnp.array([math.log(scale)])))
  np.testing.assert_allclose(loss(e), math.log(1 + 3 * math.exp(-scale)), rtol=1e-5)
  np.testing.assert_allclose(loss(e[::-1]), math.log(math.exp(scale) + 3), rtol=1e-5)


def test_a_perfect_prior_has_no_loss_and_is_told_the_caption():
  e = make_a_video_prior.unit(normal(0, 3, 6))

  def perfect(x_BE, level_B, caption_BE, features_BSD):
    return caption_BE * math.sqrt(6)
  assert float(make_a_video_prior.prior_loss(perfect, e, e, jnp.zeros((3, 2, 8)), jax.random.key(0))) < 1e-10
  assert float(make_a_video_prior.prior_loss(perfect, e, -e, jnp.zeros((3, 2, 8)), jax.random.key(0))) > 1


def test_captions_do_not_see_their_padding():
  embedder = drawn(weights.abstract(lambda rngs: Embedder(EMBEDDER, rngs=rngs)), 0)
  read = jax.jit(lambda embedder, ids: embedder.caption(ids, 'float32'))
  short, long = (read(embedder, jnp.pad(jnp.array([[2, 40, 50, 3]]), ((0, 0), (0, n)), constant_values=-1))
                 for n in (1, 4))
  np.testing.assert_allclose(short[0], long[0], atol=1e-5)
  assert float(jnp.abs(long[1][:, 4:]).max()) == 0 and abs(float(jnp.linalg.norm(short[0])) - 1) < 1e-5


def test_sampling_recovers_what_a_perfect_network_knows():
  """The frames themselves, from any noise; guidance leads away from no condition."""
  x0 = jnp.tanh(normal(1, 2, 2, 4, 4, 3))
  objective = Objective('vp_cosine', 'v')
  process = objective.make_process()

  class Perfect:
    """A pytree without leaves: v of x_0 where it is told, of 0 where it is not."""

    def __call__(self, x, level_B, told_BE, fps_B):
      level = level_B[:, None, None, None, None]
      alpha, sigma = process.alpha(level), process.sigma(level)
      known = jnp.sign(jnp.abs(told_BE).sum(-1))[:, None, None, None, None] * x0
      return (alpha * x - known) / sigma
  jax.tree_util.register_pytree_node(Perfect, lambda p: ((), None), lambda _, leaves: Perfect())
  levels = jnp.linspace(1, 0, 5)
  made = lambda scale, guided, sampler='ddim': make_a_video.sample(
      Perfect(), normal(2, *x0.shape), None, jnp.ones((2, 3)), jnp.ones(2), levels, scale,
      jax.random.split(jax.random.key(0), 2), objective, sampler, guided)
  np.testing.assert_allclose(made(1.0, False), x0, atol=1e-4)
  np.testing.assert_allclose(made(1.0, False, 'ddpm'), x0, atol=1e-4)
  np.testing.assert_allclose(made(2.0, True), jnp.clip(2 * x0, -1, 1), atol=1e-4)


def test_networks_are_laid_out_over_a_mesh():
  """Shapes and layouts alone: rows, channels and heads are shared out, and what comes out is shared by rows."""
  with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=4, tensor=2))):
    network = weights.abstract(lambda rngs: VideoUNet(UNET, rngs=rngs))
    specs = {name: x.sharding.spec for name, x in weights.names(network).items()}
    assert specs['down.1.transformers.0.blocks.0.frames.w_q'][1] == 'tensor'
    assert specs['down.0.resnets.0.conv1.frames.kernel'] == specs['down.0.resnets.0.conv1.kernel']
    row = lambda *shape: jax.ShapeDtypeStruct((8, *shape), jnp.float32, sharding=sharding.named(
        jax.sharding.get_mesh(), sharding.B))
    out = jax.eval_shape(lambda network, *rows: network(*rows), network, row(3, 8, 8, 3), row(), row(6), row())
  assert out.shape == (8, 3, 8, 8, 3) and out.sharding.spec[0] == sharding.ROWS


@pytest.mark.parametrize('changes, message', [
    ({'height': 7}, 'multiples of 2'), ({'kind': 'interpolation'}, 'has 4'), ({'num_frames': 0}, 'positive'),
    ({'kind': 'interpolation', 'given': 4, 'num_frames': 4, 'factor': 2}, '1 \\+ a multiple'),
    ({'kind': 'super_resolution', 'given': 3, 'factor': 3}, 'multiples of the factor')])
def test_parts_that_cannot_be_are_refused(changes, message):
  unet = UNetConfig(**{**vars(UNET), 'given_channels': changes.get('given', 0)})
  sizes = {'kind': 'decoder', 'num_frames': 3, 'height': 8, 'width': 8, **changes}
  sizes.pop('given', None)
  with pytest.raises(ValueError, match=message):
    PartConfig(unet=unet, **sizes)


@pytest.mark.parametrize('changes, message', [
    ({'attention': (True,)}, 'for 2 stages'), ({'widths': (8, 18)}, 'multiples of groups'), ({'depth': 0}, 'positive')])
def test_networks_that_cannot_be_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    UNetConfig(**{**vars(UNET), **changes})


def test_an_objective_that_cannot_begin_at_noise_is_refused():
  with pytest.raises(ValueError, match="prediction 'eps' does not determine"):
    make_a_video.check_objective(Objective('flow', 'eps'))
