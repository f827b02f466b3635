"""A picture codec seen in patches: each square of its latents, of height and of width, is one latent of more channels.

So a transformer has patch² times fewer tokens of the same codec (Peebles & Xie 2023, section 3.2). Edges are extended
to whole patches.
"""
import dataclasses

import numpy as np

from veojax.models.picture_codec import PictureCodec
from veojax.models.video_codec import extend


@dataclasses.dataclass(frozen=True)
class PatchedCodec(PictureCodec):
  """`codec` in patches of `patch`² latents; [t, h, w, C] becomes [t, h / patch, w / patch, patch² C]."""
  codec: PictureCodec
  patch: int

  @property
  def vae(self):
    return self.codec.vae

  @property
  def chunk(self) -> int:
    return self.codec.chunk

  @property
  def mean_C(self) -> np.ndarray:
    return np.tile(self.codec.mean_C, self.patch ** 2)

  @property
  def std_C(self) -> np.ndarray:
    return np.tile(self.codec.std_C, self.patch ** 2)

  @property
  def latent_channels(self) -> int:
    return self.codec.latent_channels * self.patch ** 2

  @property
  def temporal_compression(self) -> int:
    return self.codec.temporal_compression

  @property
  def spatial_compression(self) -> int:
    return self.codec.spatial_compression * self.patch

  def hash(self) -> str:
    return f'{self.codec.hash()}/{self.patch}'

  def whole_hash(self) -> str:
    return f'{self.codec.whole_hash()}/{self.patch}'

  def on(self, device):
    return dataclasses.replace(self, codec=self.codec.on(device))

  def save(self, path, dtype=None):
    """Writes the codec itself."""
    self.codec.save(path, dtype)

  def _encode(self, video_THWC, shape):
    t, h, w, _ = shape
    video_THWC = extend(video_THWC, len(video_THWC), *self._sides(*video_THWC.shape[1:3]))
    x = self.codec._encode(video_THWC, self.codec.latent_shape(*video_THWC.shape[:3]))
    return x.reshape(t, h, self.patch, w, self.patch, -1).swapaxes(2, 3).reshape(shape)

  def _decode(self, latent_THWC, num_frames, height, width):
    video = self.codec._decode(self._unpatched(latent_THWC), num_frames, *self._sides(height, width))
    return video[:, :height, :width]

  def _decode_chunk(self, latent_THWC, height, width, state):
    pixels, state = self.codec._decode_chunk(self._unpatched(latent_THWC), *self._sides(height, width), state)
    return pixels[:, :height, :width], state

  def _sides(self, height: int, width: int) -> tuple[int, int]:
    """The sides extended to whole patches, in pixels."""
    return tuple(-(-side // self.spatial_compression) * self.spatial_compression for side in (height, width))

  def _unpatched(self, latent_THWC):
    t, h, w, _ = latent_THWC.shape
    x = latent_THWC.reshape(t, h, w, self.patch, self.patch, -1).swapaxes(2, 3)
    return x.reshape(t, h * self.patch, w * self.patch, -1)


def patched(codec: PictureCodec | None, patch: int) -> PictureCodec | None:
  """The codec in patches; itself where a patch is one latent."""
  return codec if codec is None or patch == 1 else PatchedCodec(codec, patch)
