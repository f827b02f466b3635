"""A video VAE as a codec: uint8 clips of any size and length to normalised latents and back.

Latents are posterior means, normalised per channel: (mean - mean_C) / std_C. A clip is extended by repeating its edges
(the last row, column, frame) and cut into chunks of a fixed number of frames and tiles of a fixed size, so exactly two
programs are compiled per direction, for the first chunk and for the later ones, whatever the clips. Chunks carry their
past and equal the whole. Tiles overlap: of every overlap the outer quarters are dropped, and the middle half is a
linear cross-fade. So tiles equal the whole frame where a quarter of the overlap covers the network's reach in space;
where it does not, a seam remains, in the tests below a tenth of the signal's standard deviation (root mean square) for
an overlap of 16 pixels.

Host memory holds the clip and one chunk in float; the device holds one tile's chunk and the past of every tile.
"""
import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from veojax.models import codec_file
from veojax.models.picture_codec import PictureCodec
from veojax.models.video_vae import VideoVAE, VideoVAEConfig


@jax.jit
def encode_tile(vae: VideoVAE, video_BTHWC, state):
  """uint8 pixels of one tile's chunk → (posterior mean, state)."""
  (mean, _), state = vae.encode_chunk(video_BTHWC.astype(jnp.float32) / 127.5 - 1, state)
  return mean, state


@jax.jit
def decode_tile(vae: VideoVAE, latent_BTHWC, state):
  return vae.decode_chunk(latent_BTHWC, state)


@dataclasses.dataclass(frozen=True)
class VideoCodec(PictureCodec):
  """A trained VideoVAE with the statistics of its latents.

  `chunk` is in latent frames; `tile` (the side of a tile) and `overlap` are in pixels. A clip smaller than a chunk or a
  tile costs as much as one: choose them for the clips at hand.
  """
  vae: VideoVAE
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
    if self.chunk < 1:
      raise ValueError(f'chunk={self.chunk}; give one latent frame or more')
    self.check_statistics()

  @property
  def temporal_compression(self) -> int:
    return self.vae.cfg.temporal_compression

  @property
  def spatial_compression(self) -> int:
    return self.vae.cfg.spatial_compression

  def _encode(self, video_THWC, shape):
    tc, sc = self.vae.cfg.temporal_compression, self.vae.cfg.spatial_compression
    t, h, w, _ = shape
    tiles = Tiles(h, w, self.tile // sc, self.overlap // sc, scale=1)
    latent = np.empty((t, h, w, self.vae.cfg.latent_channels), np.float32)
    for k in range(0, t, self.chunk):
      # Latent i ends at frame tc·i; the first chunk is shorter by the repeats of frame 0.
      piece = video_THWC[max(0, tc * (k - 1) + 1):tc * (k + self.chunk - 1) + 1]
      piece = extend(piece, tc * self.chunk - (tc - 1 if k == 0 else 0), tiles.height * sc, tiles.width * sc)
      mean = tiles.run(piece, functools.partial(encode_tile, self.vae), sc)
      latent[k:k + self.chunk] = mean[:t - k, :h, :w]
    return latent

  def _decode(self, latent_THWC, num_frames, height, width):
    tc, sc = self.vae.cfg.temporal_compression, self.vae.cfg.spatial_compression
    t, h, w, _ = latent_THWC.shape
    tiles = Tiles(h, w, self.tile // sc, self.overlap // sc, scale=sc)
    video = np.empty((num_frames, height, width, 3), np.uint8)
    for k in range(0, t, self.chunk):
      piece = extend(latent_THWC[k:k + self.chunk], self.chunk, tiles.height, tiles.width)
      pixels = tiles.run(piece, functools.partial(decode_tile, self.vae), 1)
      start = max(0, tc * (k - 1) + 1)
      pixels = pixels[:num_frames - start, :height, :width]
      video[start:start + len(pixels)] = np.round((np.clip(pixels, -1, 1) + 1) * 127.5)
    return video


class Tiles:
  """Tiles over a frame of latent cells, each with its carried state; outputs are cross-faded where tiles overlap.

  `side` and `overlap` count latent cells; a cell is `scale` wide in the output.
  """

  def __init__(self, h: int, w: int, side: int, overlap: int, scale: int):
    self.height, self.width, self.side, self.scale = max(h, side), max(w, side), side, scale
    ys, xs = starts(self.height, side, overlap), starts(self.width, side, overlap)
    self.weights = {(y, x): ramp(y, ys, side, overlap, scale)[:, None] * ramp(x, xs, side, overlap, scale)
                    for y in ys for x in xs}
    self.states = {}

  def run(self, x_THWC: np.ndarray, step: Callable, cell: int) -> np.ndarray:
    """`step(tile[1, T, H, W, C], state) -> (output, state)` on every tile of one chunk; a cell is `cell` wide in x."""
    total = 0.0
    for (y, x), weight in self.weights.items():
      tile = x_THWC[None, :, y * cell:(y + self.side) * cell, x * cell:(x + self.side) * cell]
      output, self.states[y, x] = step(tile, self.states.get((y, x)))
      output = np.asarray(output)[0]
      if len(self.weights) == 1:
        return output
      if np.isscalar(total):
        shape = (len(output), self.height * self.scale, self.width * self.scale, output.shape[-1])
        total, norm = np.zeros(shape, np.float32), np.zeros((*shape[1:3], 1), np.float32)
      area = slice(y * self.scale, (y + self.side) * self.scale), slice(x * self.scale, (x + self.side) * self.scale)
      total[:, area[0], area[1]] += output * weight[..., None]
      norm[area] += weight[..., None]
    return total / norm


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
