"""Decoded sound on the clip's clock: samples at their time stamps, channels mixed, rate converted.

Sound is float32[R, channels] in [-1, 1]; sample n stands at n / sample_rate seconds. Channels are in ffmpeg's order
(5.1: FL FR FC LFE BL BR). Mixing down follows ITU-R BS.775: centre and surrounds at -3 dB, no LFE, scaled so that it
cannot clip.
"""
import math

import av
import numpy as np

from veojax.data.media_source import MAX_BYTES, MAX_LEAP

JITTER = 0.01  # seconds that a time stamp may be off before the sound is moved to it; containers round to 1 ms
SCALE = {'u8': 2.0**7, 's16': 2.0**15, 's32': 2.0**31, 's64': 2.0**63}
LAYOUTS = {1: 'mono', 2: 'stereo', 3: '3.0', 4: '4.0', 5: '5.0', 6: '5.1', 7: '6.1', 8: '7.1'}
MINUS_3_DB = 0.5**0.5
LEFT, RIGHT, CENTRE = ('FL', 'BL', 'SL', 'FLC', 'WL'), ('FR', 'BR', 'SR', 'FRC', 'WR'), ('FC', 'BC')


def samples(frame) -> np.ndarray:
  """float32[R, channels] of a decoded frame of any sample format."""
  array = frame.to_ndarray()
  array = array.T if frame.format.is_planar else array.reshape(-1, len(frame.layout.channels))
  scale = SCALE.get(frame.format.packed.name)
  if scale is None:
    return np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=1.0, neginf=-1.0)
  return (array.astype(np.float32) - (scale if array.dtype == np.uint8 else 0)) / np.float32(scale)


def mix(audio: np.ndarray, channels: int, names: tuple[str, ...] = ()) -> np.ndarray:
  """float32[R, channels_in] → float32[R, channels]. `names`: what each channel is ('FL', 'FC', ...), where known."""
  given = audio.shape[1]
  if given == channels:
    return audio
  if given == 1:
    return np.repeat(audio, channels, 1)
  if channels > 2:
    raise ValueError(f'sound of {given} channels cannot be spread over {channels}; give channels=1, 2 or None')
  if given > 2:
    names = names if len(names) == given else ('FL', 'FR', 'FC', 'LFE', 'BL', 'BR', 'SL', 'SR')[:given]
    matrix = np.zeros((given, 2), np.float32)
    for i, name in enumerate(names):
      gain = 1.0 if name in ('FL', 'FR') else MINUS_3_DB
      matrix[i] = gain * np.array([name in LEFT + CENTRE, name in RIGHT + CENTRE])
    if not matrix.any():
      matrix[:] = 1.0
    audio = audio @ (matrix / matrix.sum(0).max())
  return audio.mean(1, keepdims=True) if channels == 1 else audio


def resample(audio: np.ndarray, rate: int, new_rate: int, num_samples: int | None = None) -> np.ndarray:
  """float32[R, channels] at `rate` → float32[num_samples, channels] at `new_rate`; sample 0 stays at time 0.

  num_samples defaults to the same duration; what is missing is silence.
  """
  if num_samples is None:
    num_samples = round(len(audio) * new_rate / rate)
  result = np.zeros((num_samples, audio.shape[1]), np.float32)
  for channel in range(audio.shape[1] if len(audio) else 0):
    if rate == new_rate:
      signal = audio[:, channel]
    else:
      frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio[None, :, channel]), format='fltp', layout='mono')
      frame.sample_rate = rate
      resampler = av.AudioResampler(format='fltp', layout='mono', rate=new_rate)
      pieces = resampler.resample(frame) + resampler.resample(None)
      signal = np.concatenate([piece.to_ndarray()[0] for piece in pieces]) if pieces else np.zeros(0, np.float32)
    size = min(num_samples, len(signal))
    result[:size, channel] = signal[:size]
  return result


class SoundTrack:
  """Pieces of a stream's sound laid on one line at the source's rate. Times are file times in seconds."""

  def __init__(self, stream):
    """`stream`: where the rate and channels come from while nothing is decoded; None where there is no sound."""
    self.rate = stream.codec_context.sample_rate if stream is not None else 0
    self.names = tuple(channel.name for channel in stream.codec_context.layout.channels) if stream is not None else ()
    self.begin, self.num_samples, self.pieces, self.started = 0.0, 0, [], False

  @property
  def end(self) -> float:
    return self.begin + self.num_samples / self.rate if self.started else -math.inf

  def add(self, time: float | None, frame, since: float | None = None):
    """`since`: file time before which nothing is of use."""
    if not self.started:
      self.rate, self.begin, self.started = frame.sample_rate, time or 0.0, True
      self.names = tuple(channel.name for channel in frame.layout.channels)
    elif frame.sample_rate != self.rate or len(frame.layout.channels) != len(self.names):
      raise ValueError('its sound changes rate or channels midway')
    # Whole samples from the first one on, so that rounding opens no gap between two pieces.
    if time is not None and abs(time - self.end) > JITTER:
      if time - self.end > MAX_LEAP:
        raise ValueError(f'the time stamps of its sound leap by {time - self.end:.0f} s; they are damaged')
      self.num_samples = round((time - self.begin) * self.rate)
    if since is None or self.end + frame.samples / self.rate > since:
      self.pieces.append((self.num_samples, samples(frame)))
    self.num_samples += frame.samples

  def audio(self, start: float, end: float) -> np.ndarray:
    """float32[R, channels] at the source's rate, of file times start to end; silence where there is none."""
    num_samples = max(0, round((end - start) * self.rate))
    if num_samples * len(self.names) * 4 > MAX_BYTES:
      raise MemoryError(f'decoded its sound would fill more than {MAX_BYTES >> 30} GiB; read less of it (duration)')
    audio = np.zeros((num_samples, len(self.names)), np.float32)
    offset = round((self.begin - start) * self.rate)
    for position, piece in self.pieces:
      first = position + offset
      skip, stop = max(0, -first), min(len(piece), num_samples - first)
      if skip < stop:
        audio[first + skip:first + stop] = piece[skip:stop]
    return audio
