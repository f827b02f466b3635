"""Decoded frames to RGB: upright, with square pixels, at the wanted size, at regular times.

Times are in seconds from the clip's start. Output frame k stands for time k / fps and shows the source frame that is on
screen then; a source frame counts as on screen from up to half a frame before its time stamp, so that rounded time
stamps neither drop nor double one.
"""
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from veojax.data.media_source import MAX_BYTES, MAX_LEAP

# Without full chroma swscale halves the colour resolution of RGB too, which shows at small sizes.
QUALITY = Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED


def orientation(frame) -> tuple[bool, bool, bool]:
  """(transpose, flip rows, flip columns), applied in this order, from the frame's display matrix.

  The matrix [[a, b, u], [c, d, v], [x, y, w]] takes column p and row q to column a p + c q + x and row b p + d q + y
  (ISO/IEC 14496-12, 6.2.2). Only quarter turns and mirrors are kept.
  """
  try:
    matrix = frame.side_data.get('DISPLAYMATRIX')
  except ValueError:
    # PyAV refuses side data of kinds it does not know, as EXIF of photos; it still gives the angle, though no mirror.
    turns = round(frame.rotation / 90) % 4 if abs(frame.rotation) <= 360 else 0  # quarters, counterclockwise
    return [(False, False, False), (True, True, False), (False, True, True), (True, False, True)][turns]
  if matrix is None:
    return False, False, False
  a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
  if abs(b) + abs(c) > abs(a) + abs(d):
    return True, b < 0, c < 0
  return False, d < 0, a < 0


def display_size(frame, aspect: float = 1.0) -> tuple[int, int]:
  """(height, width) as shown: upright, square pixels. `aspect`: width of a stored pixel over its height."""
  height, width = frame.height, max(1, round(frame.width * aspect))
  return (width, height) if orientation(frame)[0] else (height, width)


def fitted_size(size: tuple[int, int], height=None, width=None, max_side=None) -> tuple[int, int]:
  """(height, width) to scale a picture of `size` to, keeping its aspect: the smallest that covers height x width."""
  scale = max((wanted / side for wanted, side in zip((height, width), size) if wanted), default=1.0)
  if max_side:
    scale = min(scale, max_side / max(size))
  # Rounding must not leave a covering picture one pixel short.
  least = (1, 1) if max_side else (height or 1, width or 1)
  return max(least[0], round(size[0] * scale)), max(least[1], round(size[1] * scale))


def has_alpha(frame) -> bool:
  return frame.format.name == 'pal8' or any(component.is_alpha for component in frame.format.components)


class FrameConverter:
  """Frames of one stream to uint8[H, W, 3]. Size and orientation are those of the first frame.

  height, width: scaled to cover them, then cropped at the centre; one of them: the other follows. max_side: the longer
  side at most. Transparent pictures are laid on white.
  """

  def __init__(self, first_frame, aspect: float = 1.0, *, height=None, width=None, max_side=None, quality=QUALITY):
    self.transpose, self.flip_rows, self.flip_columns = orientation(first_frame)
    size = display_size(first_frame, aspect)
    self.scaled = fitted_size(size, height, width, max_side)
    limit = (height, width) if not max_side else (None, None)
    self.height, self.width = (wanted or side for wanted, side in zip(limit, self.scaled))
    shrinks = self.scaled[0] * self.scaled[1] < size[0] * size[1]
    self.flags = quality | (Interpolation.AREA if shrinks else Interpolation.LANCZOS)
    self.reformatter = VideoReformatter()

  def __call__(self, frame) -> np.ndarray:
    rows, columns = self.scaled[::-1] if self.transpose else self.scaled
    colorspace = None
    if frame.colorspace == UNSPECIFIED and frame.format.name.startswith('yuv'):
      colorspace = Colorspace.ITU709 if min(frame.height, frame.width) >= 720 else Colorspace.ITU601  # as players guess
    alpha = has_alpha(frame)
    image = self.reformatter.reformat(frame, columns, rows, 'rgba' if alpha else 'rgb24', src_colorspace=colorspace,
                                      interpolation=self.flags, threads=1).to_ndarray()
    if alpha:
      opacity = image[..., 3:].astype(np.float32) / 255
      image = (image[..., :3] * opacity + 255 * (1 - opacity)).round().astype(np.uint8)
    if self.transpose:
      image = image.transpose(1, 0, 2)
    image = image[::-1 if self.flip_rows else 1, ::-1 if self.flip_columns else 1]
    top, left = (image.shape[0] - self.height) // 2, (image.shape[1] - self.width) // 2
    return image[top:top + self.height, left:left + self.width]


class FrameSampler:
  """Source frames in order of time → frames at 0, 1/fps, 2/fps, ... seconds, at most num_frames of them."""

  def __init__(self, fps: float, num_frames: int | None, convert):
    self.fps, self.num_frames, self.convert = fps, num_frames, convert
    self.images, self.held, self.held_image, self.held_time, self.gap = [], None, None, None, None

  @property
  def full(self) -> bool:
    return self.num_frames is not None and len(self.images) >= self.num_frames

  def add(self, time: float, frame):
    if self.held is not None:
      if time <= self.held_time:
        return
      self.gap = time - self.held_time
      if self.gap > MAX_LEAP and self.num_frames is None:
        raise ValueError(f'its time stamps leap by {self.gap:.0f} s; they are damaged, or give a duration')
      tolerance = min(self.gap, 1 / self.fps) / 2
      self._emit(lambda t: t + tolerance < time)
    self.held, self.held_image, self.held_time = frame, None, time

  def close(self, end: float):
    """The picture ends at `end`; at least one frame stands even where it ends sooner than half a frame."""
    self._emit(lambda t: t + 0.5 / self.fps <= end or not self.images)

  def _emit(self, shows):
    while not self.full and shows(len(self.images) / self.fps):
      if self.held_image is None:
        self.held_image = self.convert(self.held)
        if self.held_image.base is not None and not self.held_image.flags.c_contiguous:
          self.held_image = self.held_image.copy()
      self.images.append(self.held_image)
      if len(self.images) * self.held_image.nbytes > MAX_BYTES:
        raise MemoryError(f'decoded it would fill over {MAX_BYTES >> 30} GiB; give a duration or max_side')

  def video(self) -> np.ndarray:
    """uint8[T, H, W, 3]. Empties the sampler as it goes, so that the clip is not held twice."""
    video = np.empty((len(self.images), *self.images[0].shape), np.uint8)
    for k in range(len(video)):
      video[k], self.images[k] = self.images[k], None
    return video
