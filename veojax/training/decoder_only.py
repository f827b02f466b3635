"""A codec whose decoder alone learns: its encoder and the statistics of its latents stay those of the codec that the run
starts with, so latents and models made with that one go on with this one.
"""
import dataclasses

import jax
import jax.numpy as jnp
import optax

from veojax import processes
from veojax.models import weights


def check(config):
  """ValueError where the decoder alone is to learn, of no codec."""
  if config.learn == 'decoder' and not config.start:
    raise ValueError("learn='decoder' leaves the encoder as it is; give the codec whose encoder that is: start=CODEC, "
                     "or learn='all'")


def posterior(config, vae, x):
  """(mean, logvar) as of vae.encode(x), through which nothing is learned where the decoder alone learns."""
  encoded = vae.encode(x)
  return jax.lax.stop_gradient(encoded) if config.learn == 'decoder' else encoded


def learning(vae):
  """For every parameter of a VAE, whether it is of its decoder."""
  flags = [name.split('.')[0] in vae.DECODER for name in weights.names(vae)]
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
  kept = jax.tree.map(lambda old, new, learns: new if learns else jnp.asarray(old), start.vae, vae, learning(vae))
  return dataclasses.replace(start, vae=kept, **settings)
