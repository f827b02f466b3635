"""What a step is fed where there is no data: rows that one clip fills, and arrays for abstract ones."""
import jax
import jax.numpy as jnp
import numpy as np

from veojax.data import packing
from veojax.data.latent_clip import LatentClip
from veojax.data.packing import PackConfig
from veojax.types import Tokens


class FullRows:
  """Rows whose every token belongs to one clip: text, sound and picture, as a pipeline reads them."""
  rows_per_epoch = 1024

  def __init__(self, pack: PackConfig, audio_channels: int, video_channels: int, vocab_size: int):
    self.pack, self.channels, self.vocab_size = pack, (audio_channels, video_channels), vocab_size

  def __getitem__(self, row: int) -> Tokens:
    rng, pack, (audio, video) = np.random.default_rng(row), self.pack, self.channels
    sound = min(128, pack.row_tokens // 8)
    cells = pack.row_tokens - pack.max_text - sound
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    clip = LatentClip(draw(1, 1, cells, video), draw(sound, audio), rng.integers(0, self.vocab_size, pack.max_text),
                      fps=16.0, height=16, width=16 * cells, temporal_compression=4, spatial_compression=16,
                      latent_rate=25.0)
    return packing.pack([clip], pack)


class Noise:
  """Rows of the shapes of `blank`, a dict of arrays; floats are noise in [-1, 1]."""
  rows_per_epoch = 1024

  def __init__(self, blank: dict):
    self.blank = blank

  def __getitem__(self, row: int) -> dict:
    rng = np.random.default_rng(row)
    return {name: rng.uniform(-1, 1, x.shape).astype(x.dtype) if x.dtype.kind == 'f'
            else rng.integers(0, 256, x.shape).astype(x.dtype) for name, x in self.blank.items()}


def concrete(tree, rows: FullRows | None = None):
  """Arrays for abstract ones, laid out as these say under the mesh in force: small positive floats, zeros for integers,
  keys; of Tokens whole rows."""
  is_tokens = lambda x: isinstance(x, Tokens)
  leaves, structure = jax.tree.flatten(tree, is_leaf=is_tokens)
  arrays = [x for x in leaves if not is_tokens(x)]
  made = iter(jax.jit(lambda: list(map(_filled, arrays)), out_shardings=[x.sharding for x in arrays])())
  return jax.tree.unflatten(structure, [_stacked(x, rows) if is_tokens(x) else next(made) for x in leaves])


def _filled(x):
  key = jax.random.key(0)
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.random.split(key, x.shape) if x.shape else key
  if jnp.issubdtype(x.dtype, jnp.floating):
    return jax.random.uniform(key, x.shape, x.dtype, 0, 0.02, out_sharding=x.sharding)
  return jnp.zeros(x.shape, x.dtype)


def _stacked(abstract: Tokens, rows: FullRows) -> Tokens:
  batch = [rows[i] for i in range(abstract.segment.shape[0])]
  return Tokens(*(jax.device_put(np.stack(column), x.sharding) for column, x in zip(zip(*batch), abstract)))
