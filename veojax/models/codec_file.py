"""A codec as one safetensors file: the VAE's parameters, and as JSON its configuration, its latents' statistics and
settings. Fields of a configuration that begin with `decoder_` change no latents."""
import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from veojax import config as door
from veojax import files, processes
from veojax.models import weights

ARRAYS = ('mean_C', 'std_C')
NAME = 'codec.safetensors'  # in the folder of the run that has trained it


class Stored:
  """What every codec can do because it has a `vae` and the statistics of its latents, and names the classes VAE and
  CONFIG (the VAE's configuration). A VAE's DECODER are the parts of it that make no latents."""

  @property
  def latent_channels(self) -> int:
    return self.vae.cfg.latent_channels

  @functools.cached_property
  def _hashes(self) -> tuple[str, str]:
    told = {k: v for k, v in metadata(self).items() if k != 'settings'}
    of_latents = told | {'config': {k: v for k, v in told['config'].items() if not k.startswith('decoder_')}}
    return weights.fingerprint(encoder(self.vae), of_latents), weights.fingerprint(weights.names(self.vae), told)

  def hash(self) -> str:
    """Sixteen hex digits that change with anything that changes the latents."""
    return self._hashes[0]

  def whole_hash(self) -> str:
    """As `hash`, that change with the decoder too."""
    return self._hashes[1]

  def on(self, device: jax.Device) -> 'Stored':
    """The codec with its weights on a device, where it then runs."""
    return dataclasses.replace(self, vae=jax.device_put(self.vae, device))

  @classmethod
  def load(cls, path) -> 'Stored':
    return load(path, [cls])

  def save(self, path, dtype=None):
    """Writes the codec as one file; dtype np.float16 halves it, and rounds the weights."""
    save(path, self, dtype)


def locate(name, kind: str):
  """The file that a codec's name stands for: of a model that comes with the package ('world'), of a finished run's
  folder, a codec's or a model's, or itself. kind: 'video' or 'audio'."""
  path = weights.locate(name)
  if not path.is_dir():
    return path
  of_model = of(path, kind)
  return of_model if of_model.exists() else path / NAME


def of(folder, kind: str):
  """Where a model's folder has its codec, 'video' or 'audio'."""
  return files.path(folder) / f'{kind}_vae.safetensors'


def of_decoder(vae, name: str) -> bool:
  """Whether a parameter, by its dotted path, is of the decoder."""
  return name.split('.')[0] in vae.DECODER


def encoder(vae) -> dict:
  """{dotted path: leaf} of all but the decoder."""
  return {name: x for name, x in weights.names(vae).items() if not of_decoder(vae, name)}


def metadata(codec) -> dict:
  """Everything of a codec that is not a parameter."""
  settings = {f.name: getattr(codec, f.name) for f in dataclasses.fields(codec) if f.name not in ('vae', *ARRAYS)}
  return {'codec': type(codec).__name__, 'config': door.to_tree(codec.vae.cfg), 'settings': settings,
          **{name: np.asarray(getattr(codec, name), np.float64).tolist() for name in ARRAYS}}


def save(path, codec, dtype=None):
  weights.save(path, codec.vae, metadata(codec), dtype)


def load(path, classes):
  """The codec in a file, of one of some classes. Raises ValueError where the file is missing, damaged or of none."""
  flat, stored = weights.load(path)
  named = {c.__name__: c for c in classes}
  if stored.get('codec') not in named:
    raise ValueError(f'{path} holds a {stored.get("codec", "model that is no codec")}, not a {" or a ".join(named)}; '
                     'give the file of the other codec')
  codec = named[stored['codec']]
  config = door.build(codec.CONFIG, stored['config'], 'codec')
  vae = weights.abstract(lambda rngs: codec.VAE(config, rngs=rngs))
  vae = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights.replace(vae, flat))
  return codec(vae, *(np.array(stored[name], np.float32) for name in ARRAYS), **stored['settings'])


def moments(latents: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation per channel, float32[C] each, of arrays [..., C]. A channel that carries nothing is left
  at its scale, instead of having its rounding errors blown up."""
  count, total, squares = 0, 0.0, 0.0
  for latent in latents:
    latent_NC = processes.fetch(latent).reshape(-1, np.shape(latent)[-1]).astype(np.float64)
    count, total, squares = count + len(latent_NC), total + latent_NC.sum(0), squares + np.square(latent_NC).sum(0)
  if not count:
    raise ValueError('no clip to measure the statistics of latents on; give at least one')
  mean = total / count
  std = np.sqrt(np.maximum(squares / count - mean ** 2, 0))
  return mean.astype(np.float32), np.where(std > 1e-4, std, 1).astype(np.float32)
