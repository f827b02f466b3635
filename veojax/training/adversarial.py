"""A codec and its discriminator, trained side by side in one step.

The discriminator minimises the hinge loss  E max(0, 1 - D(x)) + E max(0, 1 + D(y))  of real x and reconstructed y, the
codec adds to its own loss  weight · lambda · (-E D(y) + feature_weight · F(x, y))  (Lim & Ye 2017), where F is the L1
distance of the discriminator's features (feature matching; Wang et al. 2018, sec. 3.2). Both begin at step `start`;
before it they are not computed, the discriminator stands still, and the codec trains as if there were none.

Each side sees the other through stop_gradient, so one backward pass of the sum gives each its own loss's gradient;
and each is clipped and updated by an optimizer of its own, so nothing couples them but what they show each other. One
thing is shared: a step in which either is not finite is skipped by both.

lambda is the ratio of the gradients' norms of the codec's reconstruction loss and of the adversarial one (Esser et
al. 2021, eq. 7), taken at the decoder's output instead of its last layer. There both are needed anyway: the step
costs one backward pass through the discriminator to its input, one to its parameters, and one through the codec.
"""
import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from veojax.training.optimizer import clipping

stop = jax.lax.stop_gradient


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
  """weight 0 is off: no discriminator is made.

  With feature_weight the discriminator is also the feature network of a perceptual loss, one that the project trains
  itself and that needs nobody's weights; `perceptual` compares in a network that the user gives.
  """
  weight: float = 0.0
  start: int = 0                # step of the first adversarial update of both
  feature_weight: float = 1.0
  max_adaptive: float = 1e4     # the most that lambda may be; 0 leaves lambda at 1
  learning_rate: float = 1e-4   # of the discriminator, constant from `start` on: Adam
  b1: float = 0.5
  b2: float = 0.9
  clip_norm: float = 1.0        # of the discriminator's gradient; 0: it is not clipped

  def __post_init__(self):
    for name, value in vars(self).items():
      if not value >= 0:
        raise ValueError(f'{name}={value}; give 0 or more')


def pair(config: AdversarialConfig, codec, make_discriminator):
  """What a stage trains: the codec, and beside it make_discriminator() where there is one."""
  return {'codec': codec, 'discriminator': make_discriminator()} if config.weight else codec


def codec_of(config: AdversarialConfig, model):
  return model['codec'] if config.weight else model


def with_codec(config: AdversarialConfig, model, codec):
  """The model with `codec` in the place of its own."""
  return {**model, 'codec': codec} if config.weight else codec


def optimizer(config: AdversarialConfig, codec_tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """`codec_tx` for the codec and Adam for the discriminator, each seeing its part of the `pair` and nothing else.

  Not optax.partition, which shows each the whole tree with holes: masks by parameter name would have to know of them.
  """
  if not config.weight:
    return codec_tx
  parts = {'codec': codec_tx, 'discriminator': optax.chain(
      clipping(config.clip_norm), optax.adam(config.learning_rate, config.b1, config.b2))}

  def update(grads, state, params):
    both = {name: tx.update(grads[name], state[name], params[name]) for name, tx in parts.items()}
    return {name: updates for name, (updates, _) in both.items()}, {name: new for name, (_, new) in both.items()}
  return optax.GradientTransformation(
      lambda params: {name: tx.init(params[name]) for name, tx in parts.items()}, update)


def mean_over_scales(score, *logits: list) -> Float[Array, '']:
  return sum(jnp.mean(score(*scales)) for scales in zip(*logits, strict=True)) / len(logits[0])


def hinge(real: list[Float[Array, '...']], fake: list[Float[Array, '...']]) -> Float[Array, '']:
  """The discriminator's loss, from logits per scale (Lim & Ye 2017)."""
  return mean_over_scales(lambda r, f: jax.nn.relu(1 - r) + jax.nn.relu(1 + f), real, fake)


def generator_hinge(fake: list[Float[Array, '...']]) -> Float[Array, '']:
  """The codec's side of it."""
  return mean_over_scales(lambda f: -f, fake)


def feature_distance(real: list[Float[Array, '...']], fake: list[Float[Array, '...']]) -> Float[Array, '']:
  """Mean over layers of |real - fake| relative to |real|: 0 at equality, and no layer outweighs another by its
  scale."""
  relative = [jnp.mean(jnp.abs(r - f).astype(jnp.float32)) / (jnp.mean(jnp.abs(r).astype(jnp.float32)) + 1e-6)
              for r, f in zip(real, fake, strict=True)]
  return sum(relative) / len(relative)


def adaptive_weight(config: AdversarialConfig, reconstruction_slope, adversarial_slope) -> Float[Array, '']:
  """lambda, from the two losses' gradients at the decoder's output."""
  if not config.max_adaptive:
    return jnp.ones(())
  # Means over millions of pixels have gradients near 1e-7 each: the guard must lie below them.
  norms = [jnp.sqrt(jnp.sum(jnp.square(s))) for s in (reconstruction_slope, adversarial_slope)]
  return jnp.minimum(norms[0] / jnp.maximum(norms[1], 1e-12), config.max_adaptive)


def with_slope(value: Float[Array, ''], x: Float[Array, '*s'], slope: Float[Array, '*s']) -> Float[Array, '']:
  """`value`, whose gradient in x is `slope`."""
  return stop(value) + jnp.sum(stop(slope) * (x - stop(x)))


def against(config: AdversarialConfig, discriminator, output: Float[Array, '*s'], target: Float[Array, '*s'],
            reconstruction_slope: Float[Array, '*s']):
  """(slope, value, discriminator's loss, metrics): what the discriminator adds to the codec's loss and to its
  gradient at the decoder's output, and what it learns from; the gradient of the latter is in its parameters only."""
  def generator_loss(output):
    fixed = stop(discriminator)
    logits, features = fixed(output)
    distance = feature_distance(fixed(target)[1], features) if config.feature_weight else jnp.zeros(())
    generator = generator_hinge(logits)
    return generator + config.feature_weight * distance, {'generator': generator, 'feature': distance}

  output = stop(output)
  (value, metrics), slope = jax.value_and_grad(generator_loss, has_aux=True)(output)
  scale = config.weight * adaptive_weight(config, reconstruction_slope, slope)
  loss = hinge(discriminator(target)[0], discriminator(output)[0])  # the forward passes above, compiled once
  return scale * slope, scale * value, loss, metrics | {'discriminator': loss, 'adversarial_scale': scale}


def loss(config: AdversarialConfig, discriminator, reconstruction, output: Float[Array, '*s'],
         target: Float[Array, '*s'], step: Int[Array, '']):
  """(loss, metrics): the codec's loss on the decoder's `output` and the discriminator's, summed.

  reconstruction(output) → (loss, metrics): the codec's own.
  """
  (value, metrics), slope = jax.value_and_grad(reconstruction, has_aux=True)(stop(output))
  on = lambda discriminator: against(config, discriminator, stop(output), stop(target), stop(slope))
  nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, out_sharding=s.sharding),
                         jax.eval_shape(on, discriminator))
  added_slope, added, learned, more = jax.lax.cond(step >= config.start, on, lambda _: nothing, discriminator)
  return with_slope(value + added, output, slope + added_slope) + learned, metrics | more
