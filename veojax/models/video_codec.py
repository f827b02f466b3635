"""A video VAE as a codec: uint8 clips of any size and length to normalised latents and back.

Latents are posterior means, normalised per channel: (mean - mean_C) / std_C. A clip is extended by repeating its edges
(the last row, column, frame) and cut into chunks of a fixed number of frames and tiles of a fixed size, so three programs
are compiled per direction, for the first chunk, for the later ones and for a picture alone, whatever the clips. Chunks carry their
past and equal the whole. Tiles overlap: of every overlap the outer quarters are dropped, and the middle half is a
linear cross-fade. So tiles equal the whole frame where a quarter of the overlap covers the network's reach in space;
where it does not, a seam remains, in the tests below a tenth of the signal's standard deviation (root mean square) for
an overlap of 16 pixels.

Host memory holds the clip and one chunk in float; the device holds one tile's chunk and the past of every tile.

Where a mesh of several devices is in force they share the work, with the same results (`split_codec`).
"""
import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from veojax import processes, sharding
from veojax.models import codec_file, split_codec
from veojax.models.picture_codec import PictureCodec
from veojax.models.video_vae import VideoVAE, VideoVAEConfig


@jax.jit
def encode_tile(vae, video_BTHWC, state):
  """uint8 pixels of one tile's chunk → (posterior mean, state)."""
  (mean, _), state = vae.encode_chunk(video_BTHWC.astype(jnp.float32) / 127.5 - 1, state)
  return mean, state


@jax.jit
def decode_tile(vae, latent_BTHWC, state):
  return vae.decode_chunk(latent_BTHWC, state)


@dataclasses.dataclass(frozen=True)
class VideoCodec(PictureCodec):
  """A trained VideoVAE, or one with its face, with the statistics of its latents.

  `chunk` is in latent frames; `tile` (the side of a tile) and `overlap` are in pixels. A clip smaller than a chunk or a
  tile costs as much as one: choose them for the clips at hand.
  """
  vae: nnx.Module
  mean_C: np.ndarray
  std_C: np.ndarray
  chunk: int = 5
  tile: int = 256
  overlap: int = 64

  VAE, CONFIG = VideoVAE, VideoVAEConfig

  def __post_init__(self):
    sc = self.vae.cfg.spatial_compression
    if self.tile % sc or self.overlap % sc or not 0 <= self.overlap <= self.tile // 2 or self.tile < 1:
      raise ValueError(f'tile={self.tile} with overlap={self.overlap}: give multiples of {sc}, the overlap at '
                       'most half the tile')
    self.check()

  @property
  def temporal_compression(self) -> int:
    return self.vae.cfg.temporal_compression

  @property
  def spatial_compression(self) -> int:
    return self.vae.cfg.spatial_compression

  def _sides(self, h: int, w: int) -> tuple[int, int]:
    """Height and width of a tile in latent cells: one size for all frames."""
    return (self.tile // self.spatial_compression,) * 2

  def _encode(self, video_THWC, shape):
    tc, sc = self.vae.cfg.temporal_compression, self.vae.cfg.spatial_compression
    t, h, w, _ = shape
    tiles = Tiles(h, w, self._sides(h, w), self.overlap // sc, scale=1)
    step, chunk = self._step(tiles, t, encode_tile, split_codec.encode)
    latent = np.empty((t, h, w, self.vae.cfg.latent_channels), np.float32)
    for k in range(0, t, chunk):
      # Latent i ends at frame tc·i; the first chunk is shorter by the repeats of frame 0.
      piece = video_THWC[max(0, tc * (k - 1) + 1):tc * (k + chunk - 1) + 1]
      piece = extend(piece, tc * chunk - (tc - 1 if k == 0 else 0), tiles.height * sc, tiles.width * sc)
      mean = tiles.run(piece, step, sc)
      latent[k:k + chunk] = mean[:t - k, :h, :w]
    return latent

  def _decode(self, latent_THWC, num_frames, height, width):
    tc, sc = self.vae.cfg.temporal_compression, self.vae.cfg.spatial_compression
    t, h, w, _ = latent_THWC.shape
    tiles = Tiles(h, w, self._sides(h, w), self.overlap // sc, scale=sc)
    step, chunk = self._step(tiles, t, decode_tile, split_codec.decode)
    video = np.empty((num_frames, height, width, 3), np.uint8)
    for k in range(0, t, chunk):
      pixels = _pixels(tiles, latent_THWC[k:k + chunk], chunk, step, height, width)
      start = max(0, tc * (k - 1) + 1)
      video[start:start + len(pixels)] = pixels[:num_frames - start]
    return video

  def _decode_chunk(self, latent_THWC, height, width, state):
    tc, sc = self.vae.cfg.temporal_compression, self.vae.cfg.spatial_compression
    t, h, w, _ = latent_THWC.shape
    tiles = state or Tiles(h, w, self._sides(h, w), self.overlap // sc, scale=sc)
    pixels = _pixels(tiles, latent_THWC, self.chunk, functools.partial(decode_tile, self.vae), height, width)
    return pixels[:tc * t - (tc - 1 if state is None else 0)], tiles

  def _step(self, tiles: 'Tiles', num_latents: int, alone: Callable, shared: Callable) -> tuple[Callable, int]:
    """(step of `Tiles.run`, latent frames that it takes): `alone` on one device, `shared` over the mesh in force."""
    chunk = 1 if num_latents == 1 else self.chunk
    mesh = shared_mesh(tiles, num_latents, chunk)
    if mesh.size == 1:
      return functools.partial(alone, self.vae), chunk
    tiles.at_once = mesh.shape['tile']
    return shared(self.vae, mesh), chunk * mesh.shape['time']


def shared_mesh(tiles: 'Tiles', num_latents: int, chunk: int, devices=None) -> jax.sharding.Mesh:
  """`sharding.clip_mesh` for a clip of so many latent frames in these tiles."""
  # The past that a device gets from the one before is two frames of latents.
  num_chunks = -(-num_latents // chunk) if chunk > 1 else 1
  return sharding.clip_mesh(len(tiles.weights), num_chunks, tiles.sides[0], devices)


def _pixels(tiles: 'Tiles', latent_THWC, chunk: int, step: Callable, height: int, width: int) -> np.ndarray:
  """uint8 frames of the next latents, extended to `chunk` of them."""
  pixels = tiles.run(extend(latent_THWC, chunk, tiles.height, tiles.width), step, 1)[:, :height, :width]
  return np.round((np.clip(pixels, -1, 1) + 1) * 127.5).astype(np.uint8)


class Tiles:
  """Tiles over a frame of latent cells, each with its carried state; outputs are cross-faded where tiles overlap.

  `sides` (height and width) and `overlap` count latent cells; a cell is `scale` wide in the output. `at_once` tiles
  are one call.
  """
  at_once = 1

  def __init__(self, h: int, w: int, sides: tuple[int, int], overlap: int, scale: int):
    self.height, self.width, self.sides, self.scale = max(h, sides[0]), max(w, sides[1]), sides, scale
    ys, xs = starts(self.height, sides[0], overlap), starts(self.width, sides[1], overlap)
    self.weights = {(y, x): ramp(y, ys, sides[0], overlap, scale)[:, None] * ramp(x, xs, sides[1], overlap, scale)
                    for y in ys for x in xs}
    self.states = {}

  def run(self, x_THWC: np.ndarray, step: Callable, cell: int) -> np.ndarray:
    """`step(tiles[at_once, T, H, W, C], state) -> (output, state)` on all tiles of one chunk; a cell is `cell` wide in
    x."""
    total, places = 0.0, list(self.weights)
    for i in range(0, len(places), self.at_once):
      some = places[i:i + self.at_once]
      filled = some + some[-1:] * (self.at_once - len(some))
      output, self.states[i] = step(np.stack([self._cut(x_THWC, *place, cell) for place in filled]), self.states.get(i))
      output = processes.fetch(output)
      if len(places) == 1:
        return output[0]
      if np.isscalar(total):
        shape = (output.shape[1], self.height * self.scale, self.width * self.scale, output.shape[-1])
        total, norm = np.zeros(shape, np.float32), np.zeros((*shape[1:3], 1), np.float32)
      for (y, x), tile in zip(some, output):
        area = tuple(slice(start * self.scale, (start + side) * self.scale) for start, side in zip((y, x), self.sides))
        total[:, area[0], area[1]] += tile * self.weights[y, x][..., None]
        norm[area] += self.weights[y, x][..., None]
    return total / norm

  def _cut(self, x_THWC, y, x, cell):
    return x_THWC[:, y * cell:(y + self.sides[0]) * cell, x * cell:(x + self.sides[1]) * cell]


def starts(size: int, side: int, overlap: int) -> list[int]:
  """First cells of the tiles along one dim; the last tile ends with the frame."""
  regular = range(0, size - side, max(1, side - overlap))
  return [*regular, size - side]


def ramp(start: int, all_starts: list[int], side: int, overlap: int, scale: int) -> np.ndarray:
  """Weights of a tile along one dim: 0 in the outer quarter of an overlap, rising through its middle half to 1.

  Two tiles at the regular distance sum to 1; edges of the frame keep weight 1.
  """
  n = np.arange(side * scale) + 0.5
  overlap = overlap * scale
  weight = np.ones(side * scale, np.float32)
  if not overlap:
    return weight
  if start != all_starts[0]:
    weight *= np.clip((n - overlap / 4) / (overlap / 2), 0, 1)
  if start != all_starts[-1]:
    weight *= np.clip((n[::-1] - overlap / 4) / (overlap / 2), 0, 1)
  return weight


def extend(x_THWC: np.ndarray, t: int, h: int, w: int) -> np.ndarray:
  """x lengthened to t frames of h × w by repeating its last frame, row and column."""
  T, H, W, _ = x_THWC.shape
  return np.pad(x_THWC, ((0, t - T), (0, h - H), (0, w - W), (0, 0)), 'edge')


def statistics(vae: VideoVAE, batches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  """`codec_file.moments` of the posterior means of uint8[B, T, H, W, 3] batches."""
  return codec_file.moments(encode_tile(vae, batch, None)[0] for batch in batches)
