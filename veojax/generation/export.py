"""A generated clip, which saves and shows itself, and pictures of clips: contact sheets and spectrograms."""
import base64
import dataclasses
import io

import numpy as np

from veojax.data import media, media_write
from veojax.types import Clip


@dataclasses.dataclass
class Sample(Clip):
  """A clip that knows how to write itself; in a notebook it plays."""

  def save(self, path, **options):
    """Writes mp4, webm, gif, wav, flac or png, by the path's extension; `options` as of `data.media_write.write`."""
    media_write.write(path, self, **options)

  def _repr_html_(self):
    return player(self)


def read(path, **options) -> Sample:
  """A file of video, sound or a picture as a Sample; `options` as of `data.media.read`."""
  return Sample(**vars(media.read(path, **options)))


def player(clip: Clip, width: int = 256) -> str:
  """HTML that holds and plays the clip, with its sound."""
  if clip.video is None:
    data = base64.b64encode(media_write.encode(clip, 'wav')).decode()
    return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'
  data = base64.b64encode(media_write.encode(upscaled(clip, width), 'mp4')).decode()
  return f'<video controls loop playsinline width="{width}" src="data:video/mp4;base64,{data}"></video>'


def upscaled(clip: Clip, width: int) -> Clip:
  """The clip with its pixels repeated up to about `width`, so that small frames are not blurred by a player."""
  times = max(1, width // clip.video.shape[2])
  return dataclasses.replace(clip, video=clip.video.repeat(times, 1).repeat(times, 2))


def contact_sheet(clip: Clip, num_frames: int = 8) -> np.ndarray:
  """Evenly spaced frames side by side: uint8[H, num_frames W, 3]."""
  index = np.linspace(0, len(clip.video) - 1, min(num_frames, len(clip.video))).round().astype(int)
  return np.concatenate(list(clip.video[index]), 1)


def png(image: np.ndarray) -> bytes:
  return media_write.encode(Clip(video=image[None], fps=1.0), 'png')


def figure_png(figure) -> bytes:
  import matplotlib.pyplot as plt
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=90, bbox_inches='tight')
  plt.close(figure)
  return buffer.getvalue()


def spectrogram(clip: Clip) -> bytes:
  """PNG of the sound's spectrogram in dB, all channels averaged, 0 dB being full scale."""
  import matplotlib
  matplotlib.use('agg')
  import matplotlib.pyplot as plt
  figure, axes = plt.subplots(figsize=(4, 1.6))
  sound = clip.audio.mean(1)
  window = max(16, min(512, len(sound)))
  frames = np.lib.stride_tricks.sliding_window_view(np.pad(sound, (0, max(0, window - len(sound)))), window)[::window // 4]
  power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) * 2 / window
  axes.imshow(20 * np.log10(power.T + 1e-5), origin='lower', aspect='auto', vmin=-100, vmax=0, cmap='magma',
              extent=[0, len(sound) / clip.sample_rate, 0, clip.sample_rate / 2000])
  axes.set_xlabel('seconds')
  axes.set_ylabel('kHz')
  return figure_png(figure)
