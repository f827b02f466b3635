"""A codec as one safetensors file: the VAE's parameters, and as JSON its configuration, its latents' statistics and settings."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from veojax import config as door
from veojax.models import weights

ARRAYS = ('mean_C', 'std_C')


class Stored:
  """What every codec can do because it has a `vae` and the statistics of its latents."""

  @property
  def latent_channels(self) -> int:
    return self.vae.cfg.latent_channels

  @functools.cached_property
  def _fingerprint(self) -> str:
    return fingerprint(self)

  def hash(self) -> str:
    """Sixteen hex digits that change with anything that changes the latents."""
    return self._fingerprint

  def save(self, path):
    save(path, self)


def metadata(codec) -> dict:
  """Everything of a codec that is not a parameter."""
  settings = {f.name: getattr(codec, f.name) for f in dataclasses.fields(codec) if f.name not in ('vae', *ARRAYS)}
  return {'codec': type(codec).__name__, 'config': door.to_tree(codec.vae.cfg), 'settings': settings,
          **{name: np.asarray(getattr(codec, name), np.float64).tolist() for name in ARRAYS}}


def save(path, codec):
  weights.save(path, codec.vae, metadata(codec))


def load(path, codec_class, vae_class, config_class):
  """The codec in a file. Raises ValueError where the file is missing, damaged or another kind's."""
  flat, stored = weights.load(path)
  if stored.get('codec') != codec_class.__name__:
    raise ValueError(f'{path} holds a {stored.get("codec", "model that is no codec")}, not a {codec_class.__name__}; '
                     'give the file of the other codec')
  config = door.build(config_class, stored['config'], 'codec')
  vae = jax.eval_shape(lambda key: vae_class(config, rngs=nnx.Rngs(key)), jax.random.key(0))
  vae = jax.tree.map(jnp.asarray, weights.replace(vae, flat))
  return codec_class(vae, *(np.array(stored[name], np.float32) for name in ARRAYS), **stored['settings'])


def fingerprint(codec) -> str:
  """Changes with anything that changes the codec's latents."""
  return weights.fingerprint(codec.vae, {k: v for k, v in metadata(codec).items() if k != 'settings'})
