"""Media in and out: any file people have to a Clip, and a Clip to a file that plays anywhere.

One clock: time 0 is the moment of the first picture (of the first sound where there is no picture), in seconds.
Picture and sound are both placed by the file's own time stamps, so they stay together whatever the frame rate, the
encoder's delay or the container's rounding. Output frame k is what is on screen at start + k / fps; sample n is what
sounds at start + n / sample_rate. The picture sets the length: sound is cut there or continued with silence.
PyAV (ffmpeg) decodes; nothing here depends on a file's name.
"""
import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from av.video.reformatter import Interpolation

from veojax.data import media_tags
from veojax.data.media_picture import FrameConverter, FrameSampler, display_size
from veojax.data.media_sound import SoundTrack, mix, resample
from veojax.data.media_source import SEEKABLE, MediaError, Source, open_file, opened
from veojax.data.media_write import FORMATS, encode, write
from veojax.types import Clip

__all__ = ['FORMATS', 'MediaError', 'MediaInfo', 'encode', 'frames', 'probe', 'read', 'write']

STILL_FPS = 24.0  # of a clip read from a still image, unless another is asked for
PREROLL = 1.0  # seconds decoded before a seek's target: sound codecs need 0.1 to settle, interleaving takes the rest
SLACK = 2.0  # seconds by which streams of a file may be interleaved out of step


@dataclasses.dataclass(frozen=True)
class MediaInfo:
  """What a file says about itself. Sizes are as shown (rotated, square pixels); fps is the average, num_frames a guess.

  Seconds, pixels, samples per second; 0 where it does not apply, as fps and duration of a still image.
  """
  kind: str  # 'video', 'audio' or 'image'
  has_video: bool = False
  has_audio: bool = False
  width: int = 0
  height: int = 0
  fps: float = 0.0
  duration: float = 0.0
  num_frames: int = 0
  sample_rate: int = 0
  channels: int = 0
  tags: dict[str, str] = dataclasses.field(default_factory=dict)  # those of `media_tags.NAMES` that the file has


def probe(source) -> MediaInfo:
  """Opens `source` (a path or bytes) and decodes its first frame and piece of sound; MediaError where it cannot."""
  with opened(source, threads=1) as media:
    heads = _heads(media)
    info = {'kind': 'audio', 'tags': _tags(media, source)}
    if media.audio is not None:
      sound = heads[media.audio][0]
      info |= dict(has_audio=True, sample_rate=sound.sample_rate, channels=len(sound.layout.channels))
    if media.video is None:
      return MediaInfo(**info, duration=_duration(media))
    pictures = heads[media.video]
    height, width = display_size(pictures[0], media.pixel_aspect)
    info |= dict(has_video=True, height=height, width=width)
    if media.audio is None and len(pictures) == 1:
      return MediaInfo(**info | {'kind': 'image'}, num_frames=1)
    fps, num_frames = media.average_fps, media.video.frames
  with opened(source, threads=1) as media:
    duration = _duration(media)
  fps = fps or _counted_fps(source)
  num_frames = num_frames or max(1, round(duration * fps))
  return MediaInfo(**info | {'kind': 'video'}, fps=fps, duration=duration, num_frames=num_frames)


def read(source, *, fps: float | None = None, height: int | None = None, width: int | None = None, start: float = 0.0,
         duration: float | None = None, sample_rate: int | None = None, channels: int | None = None,
         max_side: int | None = None, threads: int = 0) -> Clip:
  """A file (path or bytes) as a Clip; None keeps what the file has.

  fps: frames per second of the clip (the file's average). height, width: scaled to cover, cropped at the centre; either
  alone keeps the aspect. max_side: the longer side at most, aspect kept. start, duration: seconds; the clip is shorter
  where the file ends sooner. sample_rate, channels: of the sound (5.1 is mixed down to 2 or 1). threads: of the
  decoder, 0 for one per core. MediaError where the file is missing, empty, truncated, corrupt or no media; ValueError
  for an argument that makes no sense.
  """
  _check_arguments(fps=fps, height=height, width=width, duration=duration, sample_rate=sample_rate, channels=channels,
                   max_side=max_side)
  if not (math.isfinite(start) and start >= 0):
    raise ValueError(f'start={start}: give the seconds from the beginning, 0 or more')
  if max_side and (height or width):
    raise ValueError(f'max_side={max_side} beside height={height}, width={width}: give one or the other')
  origin = _seek_origin(source) if start > 2 * PREROLL else None
  with opened(source, threads) as media:
    window = _Window(media, start, duration)
    if media.video is None:
      window.read_sound()
      clip, length = Clip(), window.end - window.begin
      if length <= 0:
        raise media.error(f'start={start} s is past its end at {start + length:.3f} s')
    else:
      fps = fps or (STILL_FPS if media.is_still else media.average_fps or _counted_fps(source))
      video = window.read_picture(fps, dict(height=height, width=width, max_side=max_side), origin)
      clip, length = Clip(video=video, fps=float(fps)), len(video) / fps
    if media.audio is None:
      return clip
    track = window.track
    new_rate = int(sample_rate or track.rate)
    audio = mix(track.audio(window.begin, window.begin + length), channels or len(track.names), track.names)
    audio = resample(audio, track.rate, new_rate, round(length * new_rate))
    return dataclasses.replace(clip, audio=np.clip(audio, -1, 1), sample_rate=new_rate)


def frames(source, *, max_side: int = 64, threads: int = 0) -> Iterator[tuple[float, np.ndarray]]:
  """(seconds, uint8[H, W, 3]) of every source frame, small and cheaply decoded: for finding scene changes."""
  with opened(source, threads) as media:
    if media.video is None:
      raise media.error('it has no picture')
    media.video.codec_context.options = {'skip_loop_filter': 'all'}
    convert, origin, previous = None, 0.0, -math.inf
    for _, frame in media.decode({media.video}):
      if convert is None:
        convert = FrameConverter(frame, media.pixel_aspect, max_side=max_side, quality=Interpolation(0))
        origin = frame.time or 0.0
      if frame.time is not None and frame.time > previous:
        previous = frame.time
        yield frame.time - origin, np.ascontiguousarray(convert(frame))
    if convert is None:
      raise media.error('no picture in it can be decoded')
    media.check_damage()


def _check_arguments(**arguments):
  for name, value in arguments.items():
    if value is not None and not (math.isfinite(value) and value > 0):
      raise ValueError(f'{name}={value}: give a number above 0, or None to keep what the file has')
    if name not in ('fps', 'duration') and value is not None and value != int(value):
      raise ValueError(f'{name}={value}: give a whole number')


def _heads(media: Source) -> dict:
  """The first two frames of the picture (one, if sound tells that it is no still) and the first of the sound."""
  needed = {media.video: 1 if media.audio is not None or media.is_still else 2, media.audio: 1}
  heads = {stream: [] for stream in media.streams}
  wanted = set(media.streams)
  for stream, frame in media.decode(wanted):
    heads[stream].append(frame)
    if len(heads[stream]) >= needed[stream]:
      wanted.discard(stream)
    if not wanted:
      break
  for stream, found in heads.items():
    if not found:
      raise media.error(f'no {"picture" if stream is media.video else "sound"} in it can be decoded')
  return heads


def _tags(media: Source, source) -> dict[str, str]:
  if media.format == 'png_pipe':
    _, file, _ = open_file(source)
    with file:
      return media_tags.from_png(file)
  tags = {name.lower(): text for name, text in media.container.metadata.items()}
  if media.format == 'gif' and 'comment' in tags:
    return media_tags.from_gif(tags['comment'])
  return {name: tags[name] for name in media_tags.NAMES if name in tags}


def _duration(media: Source) -> float:
  """Seconds, by the header, or by the last packet where the header is silent (live recordings)."""
  main = media.video or media.audio
  if main.duration is not None:
    return float(main.duration * main.time_base)
  if media.container.duration is not None:
    return media.container.duration / 1e6
  begin, end = math.inf, -math.inf
  for packet in media.container.demux(main):
    if packet.pts is not None:
      begin, end = min(begin, packet.pts), max(end, packet.pts + (packet.duration or 0))
  return float(max(0, end - begin) * main.time_base) if end > begin else 0.0


def _counted_fps(source) -> float:
  with opened(source, threads=1) as media:
    return media.counted_fps() or STILL_FPS


def _seek_origin(source) -> float | None:
  """File time of the first picture, where the file can be entered in the middle."""
  with opened(source, threads=1) as media:
    if media.video is None or not media.format.startswith(SEEKABLE):
      return None
    return next((frame.time for _, frame in media.decode({media.video})), None)


class _Window:
  """The part of a file from `start` seconds on, for `duration` seconds or to its end. begin and end are file times."""

  def __init__(self, media: Source, start: float, duration: float | None):
    self.media, self.start, self.duration = media, start, duration
    self.track, self.begin, self.end = SoundTrack(media.audio), None, math.inf

  def _open(self, origin: float):
    self.begin = origin + self.start
    if self.duration is not None:
      self.end = self.begin + self.duration

  def read_sound(self):
    wanted = {self.media.audio}
    for _, frame in self.media.decode(wanted):
      if self.begin is None:
        self._open(frame.time or 0.0)
      self._add_sound(frame, wanted)
    if not self.track.pieces:
      raise self.media.error('no sound in it can be decoded')
    self._check_whole(self.track.end, stopped=not wanted)
    self.end = min(self.end, self.track.end)

  def _add_sound(self, frame, wanted: set):
    self.track.add(frame.time, frame, since=self.begin)
    if self.begin is not None and self.track.end > self.end:
      wanted.discard(self.media.audio)

  def read_picture(self, fps: float, sizes: dict, origin: float | None) -> np.ndarray:
    """uint8[T, H, W, 3]; the sound is left in `track`.

    `origin`: file time of the first picture, to seek by; None reads from the start.
    """
    media, wanted, sampler, last = self.media, set(self.media.streams), None, None
    if origin is not None:
      self._open(origin)
      media.container.seek(int((self.begin - PREROLL) / media.video.time_base), stream=media.video)
    num_source = 0
    for stream, frame in media.decode(wanted, lambda: None if self.begin is None else self.end + SLACK):
      if stream is media.audio:
        self._add_sound(frame, wanted)
        continue
      time = frame.time if frame.time is not None else last or 0.0
      if self.begin is None:
        self._open(time)
      if sampler is None:
        num_frames = None if self.duration is None else max(1, round(self.duration * fps))
        sampler = FrameSampler(fps, num_frames, FrameConverter(frame, media.pixel_aspect, **sizes))
      num_source += 1
      sampler.add(time - self.begin, frame)
      # The last frame's own length may be missing, or a mere tick of the clock.
      length = float(frame.duration * frame.time_base) if frame.duration else 0.0
      last = time + max(length, min(sampler.gap or 1 / fps, 1 / fps))
      if sampler.full:
        wanted.discard(stream)
    if sampler is None:
      raise media.error('no picture in it can be decoded')
    if not sampler.full:
      self._check_whole(max(last, self.track.end), stopped=last > self.end)
      if last <= self.begin:
        raise media.error(f'start={self.start} s is past its end at {last - self.begin + self.start:.3f} s')
      sampler.close(last - self.begin)
    if num_source == 1 and origin is None and media.audio is None:
      del sampler.images[1:]  # a still image stands for any time
    return sampler.video()

  def _check_whole(self, end: float, stopped: bool):
    """`end`: file time of the last thing decoded. `stopped`: there was no need to go on."""
    media, claimed = self.media, self.media.claimed_end()
    media.check_damage()
    if stopped or claimed is None:
      return
    frame = 1 / media.average_fps if media.video is not None and media.average_fps else 0.0
    if end < claimed - max(0.1, 2 * frame, 0.02 * claimed):
      raise media.error(f'truncated: it ends at {end:.2f} s of the {claimed:.2f} s that its header states')
