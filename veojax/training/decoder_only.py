"""A codec whose decoder alone learns: its encoder and the statistics of its latents stay those of the codec that the run
starts with, so latents and models made with that one go on with this one.
"""
import dataclasses

import jax
import jax.numpy as jnp
import optax

from veojax import processes
from veojax.models import codec_file, weights
from veojax.training import audio_losses


def check(config):
  """ValueError where the decoder alone is to learn, of no codec."""
  if config.learn == 'decoder' and not config.start:
    raise ValueError("learn='decoder' leaves the encoder as it is; give the codec whose encoder that is: start=CODEC, "
                     "or learn='all'")


def begin(config, vae, start):
  """The VAE with the weights of `start`, another. A decoder that is to learn alone keeps its own where it has other
  sizes than that one's. Raises ValueError where anything else has."""
  other = weights.names(start)
  sizes = lambda m: {name: x.shape for name, x in weights.names(m).items() if codec_file.of_decoder(m, name)}
  if config.learn == 'decoder' and sizes(vae) != sizes(start):
    other = weights.names(vae) | codec_file.encoder(start)
  return weights.like(vae, weights.replace(vae, other))


def latent(config, vae, key, x):
  """(what the decoder is given of x, the KL divergence of its posterior, nats an element): a draw of the posterior; where
  the decoder alone learns its mean, which codecs give and models are trained on, and through which nothing is learned."""
  mean, logvar = vae.encode(x)
  kl = audio_losses.kl_to_normal(mean, logvar)
  if config.learn == 'decoder':
    return jax.lax.stop_gradient((mean, kl))
  noise = jax.random.normal(key, mean.shape, mean.dtype, out_sharding=jax.typeof(mean).sharding)
  return mean + jnp.exp(0.5 * logvar) * noise, kl


def learning(vae):
  """For every parameter of a VAE, whether it is of its decoder."""
  flags = [codec_file.of_decoder(vae, name) for name in weights.names(vae)]
  return jax.tree.unflatten(jax.tree.structure(vae), flags)


def optimizer(config, tx: optax.GradientTransformation) -> optax.GradientTransformation:
  """`tx`, whose weight decay would reach the encoder too, with updates of what learns alone."""
  if config.learn == 'all':
    return tx

  def update(updates, state, params):
    updates, state = tx.update(updates, state, params)
    return jax.tree.map(lambda x, learns: x if learns else jnp.zeros_like(x), updates, learning(params)), state
  return optax.GradientTransformation(tx.init, update)


def codec(config, start, vae, measured, **settings):
  """The codec of a VAE after training. start: the codec that it began with, or None; measured(vae): a new codec, with
  the statistics of its latents; settings: of the codec."""
  vae = processes.here(vae)
  if config.learn == 'all':
    return measured(vae, **settings)
  kept = {name: jnp.asarray(x) for name, x in codec_file.encoder(start.vae).items()}
  return dataclasses.replace(start, vae=weights.replace(vae, weights.names(vae) | kept), **settings)
