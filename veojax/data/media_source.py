"""A media file opened by its content, its streams chosen, its packets decoded.

The name's ending plays no part: an mp4 called `a.txt` opens, a text called `a.mp4` does not. Only the file itself is
ever read: playlists and references to other files or to the network are refused, and so is what is no regular file.
"""
import contextlib
import io
import os
import stat
from collections.abc import Iterator

import av

# Demuxers that hold media people have. Those that follow references (hls, concat, dash, image2), read devices or take
# any text for a picture (tty) are left out.
DEMUXERS = ('mov', 'matroska', 'avi', 'gif', 'apng', 'wav', 'w64', 'flac', 'mp3', 'ogg', 'aac', 'aiff', 'caf', 'asf',
            'flv', 'mpegts', 'mpeg', 'png_pipe', 'jpeg_pipe', 'webp_pipe', 'webp_anim', 'bmp_pipe', 'tiff_pipe')
EXACT_DURATION = ('matroska', 'avi', 'wav', 'flac')  # the header's duration is that of the whole file
SEEKABLE = ('mov', 'matroska')  # an index by time, so that a seek lands where it should
MAX_PIXELS = 1 << 27  # a frame of 400 MB in RGB; beyond it a header is more likely damaged than true
ANIMATIONS = ('gif', 'apng', 'webp_anim')
MAX_TOLD_FPS = 130  # a header that claims more means the ticks of its clock
MAX_BYTES = 8 << 30  # of one decoded clip
MAX_LEAP = 600.0  # seconds from one frame to the next; beyond it a time stamp is more likely damaged than true
# Tags of any bytes are read, which PyAV does by itself from version 19 on.
ANY_TAGS = {'metadata_errors': 'replace'} if int(av.__version__.split('.')[0]) < 19 else {}
DAMAGED_SHARE = 0.05  # of packets that the decoder may refuse before the file counts as corrupt


class MediaError(ValueError):
  """A media file cannot be read or written. The message is one line that names the file and the reason."""


class _Reader:
  """A file without its name, which ffmpeg would take for a hint."""

  def __init__(self, file):
    self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _refuse(url, flags, options):
  raise PermissionError(f'it refers to another file ({url})')


class Source:
  """An open container: `video` and `audio` are its chosen streams or None; `size` is in bytes."""

  def __init__(self, name: str, container, size: int, threads: int):
    self.name, self.container, self.size = name, container, size
    self.format = container.format.name
    best = container.streams.best
    self.video = best('video')
    if self.video is not None and self.video.disposition & av.stream.Disposition.attached_pic:
      self.video = None  # the cover of a piece of music
    self.audio = best('audio', related=self.video)
    for stream in container.streams:
      if stream not in self.streams:
        stream.discard = av.stream.Discard.all
    self.packets = self.damaged = 0
    if not self.streams:
      raise self.error('it has neither picture nor sound')
    self._check_header()
    for stream in self.streams:
      stream.thread_type, stream.thread_count = 'AUTO', threads

  @property
  def streams(self) -> list:
    return [stream for stream in (self.video, self.audio) if stream is not None]

  @property
  def is_still(self) -> bool:
    return self.format.endswith('_pipe')

  @property
  def pixel_aspect(self) -> float:
    """Width of a stored pixel over its height; 1 where the file does not say, or says nonsense."""
    aspect = float(self.video.sample_aspect_ratio or 1)
    return aspect if 0.1 < aspect < 10 else 1.0

  @property
  def average_fps(self) -> float:
    """Pictures per second by the header, 0 where it does not say.

    The header of a gif and of recordings of a screen or a browser gives the ticks of the clock instead.
    """
    average, base = (float(rate or 0) for rate in (self.video.average_rate, self.video.base_rate))
    regular = average <= MAX_TOLD_FPS and abs(average - base) < 0.01 * base
    return average if self.format not in ANIMATIONS and (self.video.frames or regular) else 0.0

  def counted_fps(self) -> float:
    """Pictures per second by the time stamps of all packets; 0 where there is but one. Reads the file to its end."""
    times = [packet.pts * packet.time_base for packet in self.container.demux(self.video) if packet.pts is not None]
    length = float(max(times, default=0) - min(times, default=0))
    return (len(times) - 1) / length if length > 0 else 0.0

  def error(self, reason: str) -> MediaError:
    return MediaError(f'{self.name}: {" ".join(reason.split())}')

  def _check_header(self):
    for stream in self.streams:
      if stream.codec_context is None:
        raise self.error(f'its {stream.type} is in a code that is not known here; the file may be damaged')
    if self.audio is not None and not self.audio.codec_context.sample_rate:
      raise self.error('its sound has no sample rate; the file is damaged')
    if self.video is not None:
      height, width = self.video.height, self.video.width
      if not (height and width):
        raise self.error('its picture has no size; the file is damaged')
      if height * width > MAX_PIXELS:
        raise self.error(f'a picture of {width} x {height} is more than this reads ({MAX_PIXELS} pixels)')
      if self.is_still:
        self.video.codec_context.options = {'err_detect': 'explode'}  # else half a JPEG passes as whole
    if self.format.startswith('mov'):
      # The index comes first in files made for the web, so that a cut file opens as if it were whole.
      for stream in self.streams:
        entries = stream.index_entries
        tail = [entries[i] for i in range(max(0, len(entries) - 16), len(entries))]
        end = max((entry.pos + entry.size for entry in tail), default=0)
        if end > self.size:
          raise self.error(f'truncated: it holds {self.size} bytes of at least {end}')

  def claimed_end(self) -> float | None:
    """Where the header says that the file ends, in file time (seconds), if it says so exactly."""
    if not self.format.startswith(EXACT_DURATION) or self.container.duration is None:
      return None
    return ((self.container.start_time or 0) + self.container.duration) / av.time_base

  def decode(self, wanted: set, until=None) -> Iterator:
    """(stream, frame) of the wanted streams in file order. A stream removed from `wanted` is no longer decoded.

    `until() -> float | None`: file time in seconds past which nothing is of use. Packets that the decoder refuses are
    counted and passed over.
    """
    for packet in self.container.demux(list(wanted)):
      if not wanted:
        return
      if until is not None and packet.dts is not None and (limit := until()) is not None:
        if packet.dts * packet.time_base > limit:
          return
      if packet.stream not in wanted:
        continue
      self.packets += 1
      try:
        frames = packet.decode()
      except av.error.EOFError:
        continue
      except av.error.FFmpegError:
        self.damaged += 1
        continue
      for frame in frames:
        yield packet.stream, frame

  def check_damage(self):
    if self.damaged > DAMAGED_SHARE * self.packets:
      raise self.error(f'corrupt: {self.damaged} of {self.packets} packets cannot be decoded')


def open_file(source) -> tuple[str, object, int]:
  """(name, open file, bytes) of a path or of the bytes themselves. MediaError where it is no regular file."""
  if isinstance(source, (bytes, bytearray, memoryview)):
    return f'<{len(source)} bytes>', io.BytesIO(source), len(source)
  name = os.fspath(source)
  try:
    status = os.stat(name)
    if not stat.S_ISREG(status.st_mode):
      kind = 'a folder' if stat.S_ISDIR(status.st_mode) else 'not a regular file'
      raise MediaError(f'{name}: it is {kind}; give a media file')
    return name, open(name, 'rb'), status.st_size
  except OSError as error:
    raise MediaError(f'{name}: {(error.strerror or str(error)).lower()}') from error


@contextlib.contextmanager
def opened(source, threads: int = 0) -> Iterator[Source]:
  """`source`: a path, or the file's bytes. `threads` of the decoder; 0 means one per core.

  Whatever fails inside the block becomes a MediaError of one line.
  """
  name, file, size = open_file(source)
  with file:
    if not size:
      raise MediaError(f'{name}: the file is empty')
    head = file.read(8)
    file.seek(0)
    # A size near 2^32 is that of a writer which did not know it yet.
    if head[:4] == b'RIFF' and size < (told := int.from_bytes(head[4:], 'little')) < 0xFFFFFF00:
      raise MediaError(f'{name}: truncated: it holds {size} of {told + 8} bytes')
    options = {'format_whitelist': ','.join(DEMUXERS), 'protocol_whitelist': ''}
    try:
      with av.open(_Reader(file), options=options, buffer_size=1 << 17, io_open=_refuse, **ANY_TAGS) as container:
        yield Source(name, container, size, threads)
    except MediaError:
      raise
    except (av.error.InvalidDataError, av.error.ArgumentError) as error:
      raise MediaError(f'{name}: not a media file, or a damaged one') from error
    except av.error.EOFError as error:
      raise MediaError(f'{name}: truncated: it ends in the middle') from error
    except (av.error.FFmpegError, OSError, MemoryError, ValueError) as error:
      reason = getattr(error, 'strerror', None) or str(error) or type(error).__name__
      raise MediaError(f'{name}: {" ".join(reason.split())}') from error
