"""What every codec of pictures does: checks, the shape of its latents, their normalisation, and the way there and back.
"""
import abc

import numpy as np

from veojax.models import codec_file


class PictureCodec(codec_file.Stored, abc.ABC):
  """uint8[T, H, W, 3] ↔ normalised latents float32[t, h, w, C], of any size and length.

  A codec has a `vae`, the statistics of its latents (mean_C and std_C, float32[C] each) and its two compressions; frame 0
  stands alone in time, and edges are extended to whole cells.
  """
  temporal_compression: int
  spatial_compression: int
  chunk: int  # latent frames that are decoded at a time

  @abc.abstractmethod
  def _encode(self, video_THWC: np.ndarray, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Latents of `shape` before normalisation."""

  def _decode(self, latent_THWC: np.ndarray, num_frames: int, height: int, width: int) -> np.ndarray:
    """uint8 pixels of latents that are not normalised."""
    video, state, start = np.empty((num_frames, height, width, 3), np.uint8), None, 0
    for k in range(0, len(latent_THWC), self.chunk):
      pixels, state = self._decode_chunk(latent_THWC[k:k + self.chunk], height, width, state)
      pixels = pixels[:num_frames - start]
      video[start:start + len(pixels)] = pixels
      start += len(pixels)
    return video

  def _decode_chunk(self, latent_THWC: np.ndarray, height: int, width: int, state):
    """As `decode_chunk`, of latents that are not normalised."""
    raise ValueError(f'a {type(self).__name__} decodes whole clips only; make long clips in windows, without stream')

  def check(self):
    """ValueError for a chunk of no latent frame, or statistics of another number of channels."""
    if self.chunk < 1:
      raise ValueError(f'chunk={self.chunk}; give one latent frame or more')
    for name in ('mean_C', 'std_C'):
      if np.shape(getattr(self, name)) != (self.latent_channels,):
        raise ValueError(f'{name} has shape {np.shape(getattr(self, name))}; this codec has {self.latent_channels} '
                         'latent channels')

  def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """(t, h, w, C) of the latents of a clip of any size and length."""
    if min(num_frames, height, width) < 1:
      raise ValueError(f'{num_frames} frames of {height}×{width} pixels; give at least one of each')
    return (1 + -(-(num_frames - 1) // self.temporal_compression), -(-height // self.spatial_compression),
            -(-width // self.spatial_compression), self.latent_channels)

  def encode(self, video_THWC: np.ndarray) -> np.ndarray:
    """uint8[T, H, W, 3] → float32[t, h, w, C], normalised, of `latent_shape(T, H, W)`."""
    if video_THWC.dtype != np.uint8 or video_THWC.ndim != 4 or video_THWC.shape[-1] != 3:
      raise ValueError(f'video is {video_THWC.dtype}{list(video_THWC.shape)}; give uint8[T, H, W, 3]')
    return (self._encode(video_THWC, self.latent_shape(*video_THWC.shape[:3])) - self.mean_C) / self.std_C

  def decode(self, latent_THWC: np.ndarray, num_frames: int, height: int, width: int) -> np.ndarray:
    """float32[t, h, w, C] of `latent_shape(num_frames, height, width)` → uint8[num_frames, height, width, 3]."""
    expected = self.latent_shape(num_frames, height, width)
    if latent_THWC.shape != expected:
      raise ValueError(f'latents of shape {list(latent_THWC.shape)} for {num_frames} frames of {height}×{width} '
                       f'pixels; their shape is {list(expected)}')
    return self._decode(self._raw(latent_THWC), num_frames, height, width)

  def decode_chunk(self, latent_THWC: np.ndarray, height: int, width: int, state=None):
    """The next latent frames of a clip of any length → (uint8[frames, height, width, 3], state), as `decode` has them.

    state: None for the first ones, then what the ones before gave. Give `chunk` latent frames; the last may be fewer.
    """
    if not 1 <= len(latent_THWC) <= self.chunk:
      raise ValueError(f'{len(latent_THWC)} latent frames at once; give up to {self.chunk}')
    return self._decode_chunk(self._raw(latent_THWC), height, width, state)

  def _raw(self, latent_THWC):
    return (latent_THWC * self.std_C + self.mean_C).astype(np.float32)

  def reconstruct(self, video_THWC: np.ndarray) -> np.ndarray:
    """The clip through the codec and back."""
    return self.decode(self.encode(video_THWC), *video_THWC.shape[:3])
