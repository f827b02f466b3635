"""What a person has (Clip) and what the network sees (Tokens), and the legend of shapes.

Shape suffixes, used in names all over the project (`x_BLD`, `video_THWC`):

  B row of a batch        L tokens of a row        S text tokens of a row   G noise-level groups of a row
  T frames                H height                 W width                  C channels
  R raw audio samples     D model width            N attention heads        K head dim
  F MLP width             1 broadcast

Conventions, fixed once:
  - Time is in seconds. Frame k of a clip shows the state at k / fps and lasts 1 / fps; sample n is at n / sample_rate.
  - Space is centred on the frame and isotropic, in units of sqrt(H * W) pixels; y points down.
  - The noise level runs from 0 (data) to 1 (noise).
"""
import dataclasses
from typing import Any, NamedTuple

import numpy as np

PADDING, TEXT, AUDIO, VIDEO = range(4)  # a token's modality
GIVEN = -1  # instead of the number of a noise level: none, these tokens are given
MODALITIES = ('padding', 'text', 'audio', 'video')


@dataclasses.dataclass
class Clip:
  """A piece of video with sound; either half may be absent. A still image is a clip of one frame.

  video: uint8[T, H, W, 3], RGB, or None.
  audio: float32[R, channels] in [-1, 1], or None.
  """
  video: np.ndarray | None = None
  audio: np.ndarray | None = None
  fps: float = 0.0
  sample_rate: int = 0
  text: str = ''
  info: dict = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if self.video is not None:
      if self.video.dtype != np.uint8 or self.video.ndim != 4 or self.video.shape[-1] != 3 or 0 in self.video.shape:
        raise ValueError(f'video is {self.video.dtype}{list(self.video.shape)}; '
                         'give uint8[T, H, W, 3] with no empty side')
      if not self.fps > 0:
        raise ValueError(f'a clip with picture has fps={self.fps}; give its frames per second')
    if self.audio is not None:
      if self.audio.dtype != np.float32 or self.audio.ndim != 2:
        raise ValueError(f'audio is {self.audio.dtype}{list(self.audio.shape)}; give float32[R, channels]')
      if not self.sample_rate > 0:
        raise ValueError(f'a clip with sound has sample_rate={self.sample_rate}; give its samples per second')

  @property
  def duration(self) -> float:
    """Seconds, of the longer of picture and sound."""
    picture = len(self.video) / self.fps if self.video is not None else 0.0
    sound = len(self.audio) / self.sample_rate if self.audio is not None else 0.0
    return max(picture, sound)


class Tokens(NamedTuple):
  """Packed rows: clips of any shape, sound and captions laid one after another in rows of a fixed length.

  A row holds several segments (clips, numbered from 1; 0 is padding). Each token points to a *group*: the tokens of one
  segment, one modality and one noise level. Noise levels are kept per group (float[B, G]) and gathered to the tokens;
  groups of one `group_level` stand at one time, before the shifts of their modalities, and GIVEN ones at noise 0.
  The text of every segment stands in `text` as ids; the tokens of modality TEXT point into it.
  """
  latent: Any          # float[B, L, C]; channels beyond a modality's own are zero; zero for text
  modality: Any        # int32[B, L]: PADDING, TEXT, AUDIO or VIDEO
  segment: Any         # int32[B, L]; 0 is padding
  position: Any        # float32[B, L, 3]: centre (t seconds, y, x in sqrt(H W))
  extent: Any          # float32[B, L, 3]: (dt seconds, dy, dx in sqrt(H W))
  group: Any           # int32[B, L]: index into G; 0 is padding's
  group_modality: Any  # int32[B, G]
  group_segment: Any   # int32[B, G]; 0 where the group is unused
  group_level: Any     # int32[B, G]: number in [0, G) of the group's time, or GIVEN
  text: Any            # int32[B, S]: ids of the text tokenizer
  text_segment: Any    # int32[B, S]; 0 is padding
  text_index: Any      # int32[B, L]: for tokens of modality TEXT the place in S, else 0
