"""Codec against discriminator: neither trains the other, nothing before its time, zero at the truth,
resumed = uninterrupted."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

from tests.training.interrupted import stopped_at
from veojax import sharding
from veojax.data import prepare
from veojax.data.world import WorldConfig
from veojax.models import perceptual, weights
from veojax.models.audio_codec import AudioCodec
from veojax.models.video_codec import VideoCodec
from veojax.training import (
    adversarial, audio_losses, audio_vae, checkpoint, journal, loop, optimizer, run, step, video_vae)
from veojax.training.adversarial import AdversarialConfig

pytestmark = pytest.mark.xdist_group('adversarial')

LOOP = {'num_steps': 4, 'batch_size': 8, 'log_every': 1, 'evaluate_every': 0, 'sample_every': 0, 'save_every': 2,
        'num_threads': 2}
ON = {'weight': 0.5, 'start': 2, 'feature_weight': 2.0, 'learning_rate': 1e-3}
VIDEO = {'stage': 'video_vae', 'crop': {'num_frames': 5, 'height': 32, 'width': 32}, 'tile': 32, 'overlap': 8,
         'motion_weight': 0.1, 'evaluation_clips': 1, 'loop': LOOP, 'adversarial': ON,
         'discriminator': {'patch_size': 8, 'widths': (4, 6)}, 'optimizer': {'warmup_steps': 1},
         'model': {'temporal_compression': 4, 'spatial_compression': 8, 'patch_time': 4, 'patch_size': 8,
                   'latent_channels': 4, 'widths': (8,), 'encoder_depths': (1,), 'decoder_depths': (1,)}}
AUDIO = {'stage': 'audio_vae', 'num_latents': 2, 'loss': {'fft_sizes': (64,)}, 'evaluation_clips': 1,
         'loop': {**LOOP, 'accumulate': 2},
         'adversarial': ON, 'discriminator': {'fft_sizes': (64, 128), 'width': 4, 'dilations': (1,)},
         'optimizer': {'warmup_steps': 1},
         'model': {'sample_rate': 8000, 'hop': 320, 'latent_channels': 4, 'strides': (), 'widths': (8,), 'depth': 1}}
TREES = {'video': VIDEO, 'audio': AUDIO}
STAGES = {'video': video_vae.VideoVAEStage, 'audio': audio_vae.AudioVAEStage}
CODECS = {'video': VideoCodec, 'audio': AudioCodec}


@pytest.fixture(scope='module', params=list(TREES))
def kind(request):
  return request.param


def make_stage(kind, **changes):
  """A stage without its data set."""
  stage = object.__new__(STAGES[kind])
  stage.config = run.build({**TREES[kind], **changes})
  return stage


def drawn(stage):
  """The stage's model with random parameters, drawn by numpy, since compiling the initialisers is slow."""
  rng = np.random.default_rng(0)
  draw = lambda p: jnp.asarray(
      rng.normal(0, 0.3 if p.ndim == 1 else 0.5 * np.prod(p.shape[:-1]) ** -0.5, p.shape), p.dtype)
  return jax.tree.map(draw, jax.eval_shape(stage.make_model, jax.random.key(0)))


def batch_of(kind, num=2):
  rng = np.random.default_rng(1)
  if kind == 'video':
    return {'video': jnp.asarray(rng.integers(0, 256, (num, 5, 32, 32, 3), np.uint8))}
  return {'audio': jnp.asarray(rng.normal(0, 0.2, (num, 640, 2)), jnp.float32)}


def target_of(kind, batch):
  return batch['video'].astype(jnp.float32) / 127.5 - 1 if kind == 'video' else batch['audio']


def one_step(kind, index=5, **changes):
  """The state after one real step at step `index`, and its metrics."""
  stage = make_stage(kind, **changes)
  tx = stage.make_optimizer()
  state = dataclasses.replace(step.init(lambda key: drawn(stage), tx, None), step=jnp.int32(index))
  # The learning rate's warm-up begins at 0: count one update as taken.
  opt = jax.tree.map(lambda x: x + 1 if jnp.issubdtype(x.dtype, jnp.integer) else x, state.opt)
  state = dataclasses.replace(state, opt=opt)
  batches = jax.tree.map(lambda x: x[None], batch_of(kind))
  return step.make(stage.loss, tx, (0.9,))(state, jax.random.key(0), batches)


@pytest.fixture(scope='module')
def stepped(kind):
  return one_step(kind)


def same(a, b):
  return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# Separation.


def test_each_part_has_exactly_the_gradient_of_its_own_loss(kind):
  """The one loss's gradient against each side's own loss, written plainly, with the other side held constant."""
  stage = make_stage(kind)
  config, model, batch, key = stage.config, drawn(stage), batch_of(kind), jax.random.key(0)
  target = target_of(kind, batch)

  def output_of(vae):
    mean, logvar = vae.encode(target)
    z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    return vae.decode(z), audio_losses.kl_to_normal(mean, logvar)

  def own_loss_of_the_codec(vae, discriminator, scale):
    output, kl = output_of(vae)
    logits, features = discriminator(output)
    distance = adversarial.feature_distance(discriminator(target)[1], features)
    kl_weight = config.loss.kl if kind == 'audio' else config.kl_weight
    return (stage.reconstruction(output, target)[0] + kl_weight * kl
            + scale * (adversarial.generator_hinge(logits) + config.adversarial.feature_weight * distance))

  def own_loss_of_the_discriminator(discriminator, vae):
    return adversarial.hinge(discriminator(target)[0], discriminator(output_of(vae)[0])[0])

  (loss, metrics), grads = jax.jit(jax.value_and_grad(stage.loss, has_aux=True))(model, batch, key, jnp.int32(2))
  codec_loss, codec_grads = jax.jit(jax.value_and_grad(own_loss_of_the_codec))(
      model['codec'], model['discriminator'], metrics['adversarial_scale'])
  learned, learned_grads = jax.jit(jax.value_and_grad(own_loss_of_the_discriminator))(
      model['discriminator'], model['codec'])
  np.testing.assert_allclose(loss, codec_loss + learned, rtol=1e-5)
  assert metrics['discriminator'] > 0 and metrics['adversarial_scale'] > 0 and metrics['feature'] > 0
  for got, want in ((grads['codec'], codec_grads), (grads['discriminator'], learned_grads)):
    size = optax.tree.norm(want)
    assert size > 0
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-4 * float(size))


def test_a_step_of_the_discriminator_does_not_touch_the_codec(kind, stepped):
  state, metrics = one_step(kind, adversarial={**ON, 'learning_rate': 0.1, 'clip_norm': 1e-3})
  assert metrics['skipped'] == 0
  assert same(state.model['codec'], stepped[0].model['codec'])
  assert not same(state.model['discriminator'], stepped[0].model['discriminator'])


def test_a_step_of_the_codec_does_not_touch_the_discriminator(kind, stepped):
  state, _ = one_step(kind, optimizer={'warmup_steps': 1, 'learning_rate': 0.1, 'clip_norm': 1e-6})
  assert same(state.model['discriminator'], stepped[0].model['discriminator'])
  assert not same(state.model['codec'], stepped[0].model['codec'])


# Before its time, and without it.


def test_before_start_the_codec_trains_as_if_there_were_no_discriminator(kind):
  before, metrics = one_step(kind, index=1)
  off, off_metrics = one_step(kind, index=1, adversarial={})
  first = drawn(make_stage(kind))
  assert same(before.model['discriminator'], first['discriminator'])
  assert all(metrics[name] == 0 for name in ('generator', 'feature', 'discriminator', 'adversarial_scale'))
  np.testing.assert_allclose(metrics['loss'], off_metrics['loss'], rtol=1e-6)
  assert not same(off.model, first['codec'])
  for a, b in zip(jax.tree.leaves(before.model['codec']), jax.tree.leaves(off.model), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_from_start_on_both_train(kind, stepped):
  first = drawn(make_stage(kind))
  state, metrics = stepped
  assert metrics['discriminator'] > 0
  assert (not same(state.model['codec'], first['codec'])
          and not same(state.model['discriminator'], first['discriminator']))


def test_without_it_the_state_is_the_codecs_alone(kind):
  stage = make_stage(kind, adversarial={})
  plain = optimizer.make(stage.config.optimizer, stage.config.loop.num_steps)
  states = [jax.eval_shape(lambda key: step.init(stage.make_model, tx, key), jax.random.key(0))
            for tx in (plain, stage.make_optimizer())]
  assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
  on = jax.eval_shape(make_stage(kind).make_model, jax.random.key(0))
  assert weights.names(states[0].model).keys() == weights.names(on['codec']).keys()
  assert type(states[0].model).__name__ == {'video': 'VideoVAE', 'audio': 'AudioVAE'}[kind]


def test_the_codec_begins_the_same_with_and_without_it(kind):
  on, off = make_stage(kind), make_stage(kind, adversarial={})
  made = [jax.jit(lambda key: adversarial.codec_of(stage.config.adversarial, stage.make_model(key)))(jax.random.key(3))
          for stage in (on, off)]
  assert same(*made)


# The losses.


def test_zero_at_the_truth(kind):
  stage = make_stage(kind)
  target = target_of(kind, batch_of(kind))
  loss, _ = stage.reconstruction(target, target)
  discriminator = drawn(stage)['discriminator']
  features = jax.jit(lambda x: discriminator(x)[1])(target)
  assert float(loss) < 1e-6 and float(adversarial.feature_distance(features, features)) == 0


def test_hinge():
  real, fake = [jnp.array([2.0, 0.5]), jnp.array([1.0])], [jnp.array([-2.0, 0.5]), jnp.array([-1.0])]
  assert float(adversarial.hinge(real, fake)) == ((0 + 0.5) / 2 + (0 + 1.5) / 2) / 2
  assert float(adversarial.generator_hinge(fake)) == (0.75 + 1.0) / 2
  undecided = [jnp.zeros(3)]
  assert float(adversarial.hinge(undecided, undecided)) == 2


def test_feature_distance_is_relative():
  real = [jnp.array([1.0, -3.0]), jnp.array([10.0])]
  fake = [jnp.array([1.0, -1.0]), jnp.array([12.0])]
  np.testing.assert_allclose(adversarial.feature_distance(real, fake), (1 / 2 + 2 / 10) / 2, rtol=1e-5)
  scaled = [[100 * x for x in xs] for xs in (real, fake)]
  np.testing.assert_allclose(adversarial.feature_distance(*scaled), adversarial.feature_distance(real, fake), rtol=1e-5)


def test_the_adaptive_weight_makes_both_gradients_equally_large():
  a, b = jnp.array([3e-7, 4e-7]), jnp.array([0.0, 0.1])
  scale = adversarial.adaptive_weight(AdversarialConfig(weight=1.0), a, b)
  np.testing.assert_allclose(jnp.linalg.norm(scale * b), jnp.linalg.norm(a), rtol=1e-5)
  assert float(adversarial.adaptive_weight(AdversarialConfig(max_adaptive=7.0), b, 0 * b)) == 7
  assert float(adversarial.adaptive_weight(AdversarialConfig(max_adaptive=0.0), a, b)) == 1


def test_a_negative_setting_is_refused():
  with pytest.raises(ValueError, match='feature_weight=-1'):
    AdversarialConfig(feature_weight=-1.0)


def test_a_patch_that_does_not_divide_the_crop_is_refused():
  with pytest.raises(ValueError, match='patch_size=5 does not divide .*32x32'):
    run.build({**VIDEO, 'discriminator': {'patch_size': 5}})


# Through the loop, on eight devices, with everything on.


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A data set, and the weights of a network of AlexNet's shape."""
  folder = tmp_path_factory.mktemp('adversarial')
  world = WorldConfig(num_frames=9, height=32, width=32, sample_rate=8000)
  config = prepare.PrepareConfig(num_clips=8, world=world, vocab_size=400, validation_fraction=0.2)
  prepare.prepare('world', folder / 'data', config=config, workers=1, progress=False)
  rng, flat = np.random.default_rng(0), {}
  sizes = (3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3)
  for n, (inputs, outputs, side) in zip((0, 3, 6, 8, 10), sizes, strict=True):
    flat[f'features.{n}.weight'] = (rng.standard_normal((outputs, inputs, side, side), np.float32)
                                    / (inputs * side ** 2) ** 0.5)
    flat[f'features.{n}.bias'] = np.zeros(outputs, np.float32)
  safetensors.numpy.save_file(flat, folder / 'alexnet.safetensors')
  return folder


def tree(kind, folder):
  network = {'perceptual': {'weights': str(folder / 'alexnet.safetensors'), 'weight': 0.1}} if kind == 'video' else {}
  return {**TREES[kind], **network, 'data': str(folder / 'data')}


def saved_state(kind, folder, workdir):
  stage = STAGES[kind](run.build(tree(kind, folder)))
  mesh = sharding.make_mesh(stage.config.mesh)
  with jax.set_mesh(mesh):
    checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints')
    state, row = loop.initial(stage, checkpoints, mesh)
    checkpoints.close()
  return state, row


@pytest.mark.slow
def test_resumed_equals_uninterrupted_bit_for_bit(kind, folder):
  """Stopped by SIGTERM after the discriminator has begun, at a step that is no checkpoint's, and started again."""
  whole, resumed = folder / f'{kind}_whole', folder / f'{kind}_resumed'
  run.train(tree(kind, folder), whole)
  with stopped_at(3):
    run.train(tree(kind, folder), resumed)
  run.train(tree(kind, folder), resumed)
  (a, row_a), (b, row_b) = (saved_state(kind, folder, workdir) for workdir in (whole, resumed))
  assert row_a == row_b == 4 * 8 * TREES[kind]['loop'].get('accumulate', 1) and int(a.skipped) == 0
  assert same(a, b)
  lines = [line for line in journal.read(whole) if 'loss' in line]
  assert [line['discriminator'] > 0 for line in lines] == [False, False, True, True]
  assert ('lpips' in lines[0]) == (kind == 'video') and lines[0].get('lpips', 1) > 0
  exported = CODECS[kind].load(whole / 'codec.safetensors')
  assert same(exported.vae, a.ema[0]['codec'])


def test_the_frames_of_a_clip_are_compared_one_by_one(folder):
  stage = make_stage('video', perceptual={'weights': str(folder / 'alexnet.safetensors'), 'weight': 2.0})
  stage.lpips = perceptual.load(stage.config.perceptual.weights)
  rng = np.random.default_rng(0)
  a, b = (jnp.asarray(rng.uniform(-1, 1, (2, 3, 32, 32, 3)), jnp.float32) for _ in range(2))
  loss, metrics = stage.reconstruction(a, b)
  one_by_one = [float(stage.lpips(a[i, t][None], b[i, t][None])[0]) for i in range(2) for t in range(3)]
  np.testing.assert_allclose(metrics['lpips'], np.mean(one_by_one), rtol=1e-5)
  plain, _ = make_stage('video').reconstruction(a, b)
  np.testing.assert_allclose(loss, plain + 2 * metrics['lpips'], rtol=1e-5)
  assert float(stage.reconstruction(a, a)[0]) == 0
