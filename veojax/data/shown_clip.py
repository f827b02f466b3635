"""A clip that plays where it is shown, in a notebook, and the HTML that holds and plays any clip."""
import base64
import dataclasses

from veojax.types import Clip


class ShownClip(Clip):
  """A Clip; in a notebook it plays."""

  def _repr_html_(self):
    return player(self)


def player(clip: Clip, width: int = 256) -> str:
  """HTML that holds and plays the clip, with its sound."""
  from veojax.data import media_write  # and with it PyAV, only where a clip is shown
  if clip.video is None:
    data = base64.b64encode(media_write.encode(clip, 'wav')).decode()
    return f'<audio controls src="data:audio/wav;base64,{data}"></audio>'
  data = base64.b64encode(media_write.encode(upscaled(clip, width), 'mp4')).decode()
  return f'<video controls loop playsinline width="{width}" src="data:video/mp4;base64,{data}"></video>'


def upscaled(clip: Clip, width: int) -> Clip:
  """The clip with its pixels repeated up to about `width`, so that small frames are not blurred by a player."""
  times = max(1, width // clip.video.shape[2])
  return dataclasses.replace(clip, video=clip.video.repeat(times, 1).repeat(times, 2))
