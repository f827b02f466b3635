"""Media files as other programs make them."""
from fractions import Fraction

import av
import numpy as np

from veojax.types import Clip


def flash_and_click(num_frames=24, fps=24.0, sample_rate=16000, channels=2, height=48, width=64, at=9) -> Clip:
  """Black and silent, but for frame `at` and the sound from its time on for one frame."""
  video = np.full((num_frames, height, width, 3), 16, np.uint8)
  video[at] = 235
  audio = np.zeros((round(num_frames / fps * sample_rate), channels), np.float32)
  begin, end = round(at / fps * sample_rate), round((at + 1) / fps * sample_rate)
  audio[begin:end] = 0.7 * np.sin(np.arange(end - begin) * 2 * np.pi * 1000 / sample_rate)[:, None]
  return Clip(video=video, audio=audio, fps=fps, sample_rate=sample_rate)


def record(path, images=None, times=None, *, codec='mpeg4', pix_fmt='yuv420p', audio=None, sample_rate=16000,
           audio_codec='aac', layout='mono', sound_from=0.0, rotation=0, options=None):
  """A file as other programs make it: `images` at `times` (seconds, kept to a millisecond), sound from `sound_from`."""
  with av.open(str(path), 'w') as out:
    if images is not None:
      picture = out.add_stream(codec, rate=1000 if times is not None else 25, options=options or {})
      picture.height, picture.width, picture.pix_fmt = *images.shape[1:3], pix_fmt
      picture.codec_context.time_base = Fraction(1, 1000) if times is not None else Fraction(1, 25)
      if rotation:
        picture.set_display_rotation(rotation)
    if audio is not None:
      sound = out.add_stream(audio_codec, rate=sample_rate, layout=layout)
    out.start_encoding()
    for k, image in enumerate(images if images is not None else ()):
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format='rgb24').reformat(format=pix_fmt)
      frame.time_base = picture.codec_context.time_base
      frame.pts = k if times is None else round(times[k] * 1000)
      out.mux(picture.encode(frame))
    if images is not None:
      out.mux(picture.encode(None))
    if audio is not None:
      size = sound.codec_context.frame_size or len(audio)
      resampler = av.AudioResampler(sound.codec_context.format.name, layout, sample_rate)
      for begin in range(0, len(audio), size):
        piece = np.ascontiguousarray(audio[begin:begin + size].T)
        frame = av.AudioFrame.from_ndarray(piece, format='fltp', layout=layout)
        frame.sample_rate, frame.time_base = sample_rate, Fraction(1, sample_rate)
        frame.pts = begin + round(sound_from * sample_rate)
        for converted in resampler.resample(frame):
          out.mux(sound.encode(converted))
      out.mux(sound.encode(None))


def greys(levels, side: int) -> np.ndarray:
  """One even grey a frame."""
  return np.broadcast_to(levels.astype(np.uint8)[:, None, None, None], (len(levels), side, side, 3))


def still(image, codec, pix_fmt) -> bytes:
  context = av.CodecContext.create(codec, 'w')
  context.height, context.width, context.pix_fmt, context.time_base = *image.shape[:2], pix_fmt, Fraction(1, 25)
  frame = av.VideoFrame.from_ndarray(image, format='rgb24').reformat(format=pix_fmt)
  frame.pts, frame.time_base = 0, Fraction(1, 25)
  return b''.join(bytes(packet) for packet in context.encode(frame) + context.encode(None))
