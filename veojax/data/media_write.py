"""A Clip to a file that plays anywhere: mp4 (H.264 yuv420p + AAC), webm (VP9 + Opus), gif, wav, flac, png.

Frame k is stamped k / fps, sample 0 stands at time 0, and the encoders' delays are written where players look for them.
The picture is never cut: shorter sound is continued with silence. Colours are BT.709, limited range, and marked so.
In mp4 and webm odd sizes grow by one pixel (4:2:0 needs even ones). A file appears whole under its name or not at all.
Which tags each format carries, and where: `media_tags`.
"""
import collections
import dataclasses
import errno
import io
import itertools
import os
import threading
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc, Colorspace, Interpolation, VideoReformatter

from veojax.data import media_tags
from veojax.data.media_sound import LAYOUTS, mix, resample
from veojax.data.media_source import MediaError
from veojax.types import Clip

FORMATS = {'mp4': ('libx264', 'aac'), 'webm': ('libvpx-vp9', 'libopus'), 'gif': ('gif', None), 'png': ('png', None),
           'wav': (None, 'pcm_s16le'), 'flac': (None, 'flac')}
RATES = {'aac': (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350),
         'libopus': (48000,)}
BITS_PER_SECOND = 96_000  # of sound, per channel: transparent for AAC and Opus
GIF_FPS = 50  # browsers slow down anything faster


def write(path, clip: Clip | Iterable[Clip], *, tags: dict[str, str] | None = None, crf: int = 18):
  """Writes `clip` in the format that the path's ending names; an existing file is replaced by a whole one.

  tags: title, artist, comment, description, software, of which mp4 carries no software, flac no description and wav
  neither; what a format does not carry is left out, the rest is given back by `probe`. ValueError for any other name.
  crf: H.264's scale of quality, 0 lossless to 51; 18 looks like the original. A clip may come in pieces, one after
  another in time, of one size and one rate each: for mp4 and webm, in memory that does not grow with the whole.
  MediaError where the clip cannot be written so, or the disk refuses.
  """
  path, format = check_path(path)
  folder, name = os.path.split(path)
  pieces = iter([clip] if isinstance(clip, Clip) else clip)
  clip = next(pieces, None)
  if clip is None:
    raise MediaError(f'{name}: there is no piece to write')
  _check(clip, format, name)
  # Without the dot files of two threads or processes writing the same name could meet.
  draft = os.path.join(folder, f'.{name}.{os.getpid()}.{threading.get_ident()}.part')
  try:
    try:
      with open(draft, 'wb') as file:
        _mux(file, draft, clip, format, tags, crf, pieces)
      os.replace(draft, path)
    finally:
      if os.path.exists(draft):
        os.remove(draft)
  except OSError as error:
    remedy = {errno.ENOSPC: 'free some space or write elsewhere', errno.EDQUOT: 'free some space or write elsewhere',
              errno.EACCES: 'choose a folder you may write to', errno.EROFS: 'choose a folder you may write to'}
    reason = f'{(error.strerror or str(error)).lower()}; {remedy.get(error.errno, "choose another place")}'
    raise MediaError(f'{path}: cannot be written: {reason}') from error


def check_path(path, picture: bool = True, sound: bool = True) -> tuple[str, str]:
  """(absolute path, format) of a file to be written, of a clip with picture or sound. MediaError where its ending is
  unknown or of a format that holds neither of what there is, or its folder missing."""
  path = os.path.abspath(os.fspath(path))
  folder, name = os.path.split(path)
  format = os.path.splitext(name)[1][1:].lower()
  _check_format(format, name)
  holds = FORMATS[format]
  if not (picture and holds[0]) and not (sound and holds[1]):
    raise MediaError(f'{name}: the clip has no picture; write it as .wav, .flac or .mp4' if sound else
                     f'{name}: the clip has no sound; write it as .mp4, .webm, .gif or .png')
  if not os.path.isdir(folder):
    raise MediaError(f'{path}: the folder {folder} does not exist; make it first')
  return path, format


def encode(clip: Clip, format: str = 'mp4', *, tags: dict[str, str] | None = None, crf: int = 18) -> bytes:
  """The bytes of the file that `write` would make (an mp4's index then stands at its end)."""
  _check(clip, format, format)
  file = io.BytesIO()
  _mux(file, None, clip, format, tags, crf)
  return file.getvalue()


def _check_format(format: str, name: str):
  if format not in FORMATS:
    raise MediaError(f'{name}: cannot write the format {format!r}; '
                     f'the known endings are {", ".join("." + f for f in FORMATS)}')


def _check(clip: Clip, format: str, name: str):
  _check_format(format, name)
  picture, sound = FORMATS[format]
  if clip.video is None and (sound is None or clip.audio is None):
    raise MediaError(f'{name}: the clip has no picture; write it as .wav, .flac or .mp4' if clip.audio is not None else
                     f'{name}: the clip has neither picture nor sound')
  if clip.audio is None and picture is None:
    raise MediaError(f'{name}: the clip has no sound; write it as .mp4, .webm, .gif or .png')
  if sound is not None and clip.audio is not None:
    bad = len(clip.audio) - np.isfinite(clip.audio).all(1).sum()
    if bad:
      raise MediaError(f'{name}: {bad} of {len(clip.audio)} sound samples are NaN or infinite; find what made them so')
    channels = clip.audio.shape[1]
    if channels not in (1, 2, 6) and (channels not in LAYOUTS or picture is not None):
      raise MediaError(f'{name}: sound of {channels} channels; give 1, 2 or 6')


class _Output:
  """A file without its name, and, for mp4, ffmpeg's second handle on it to move the index to the front."""

  def __init__(self, file, path):
    self.file, self.path = file, path
    self.seek, self.tell, self.failure = file.seek, file.tell, None

  def write(self, data) -> int:
    try:
      return self.file.write(data)
    except OSError as error:
      self.failure = error  # PyAV may hand on an error of its own instead
      raise

  def reopen(self, url, flags, options):
    self.file.flush()
    return open(self.path, 'rb')


def _mux(file, path, clip: Clip, format: str, tags, crf: int, later: Iterable[Clip] = ()):
  """Writes `clip`, and the pieces that come after it."""
  tags = media_tags.fitting(tags, format)
  picture_codec, sound_codec = FORMATS[format]
  if format == 'png':
    file.write(media_tags.into_png(_png(clip.video[0]), tags))
    return
  if format == 'gif':  # its colours are chosen for all of it
    clip, later = dataclasses.replace(clip, video=np.concatenate([clip.video, *(piece.video for piece in later)])), ()
  if format == 'gif' and tags:
    file.write(media_tags.into_gif(encode(clip, 'gif'), tags))
    return
  output = _Output(file, path)
  options, reopen = {}, None
  if format == 'mp4' and path is not None:
    options, reopen = {'movflags': '+faststart'}, output.reopen
  if format == 'gif':
    options = {'final_delay': str(_gif_ticks(clip)[-1] - _gif_ticks(clip)[-2])}
  try:
    with av.open(output, 'w', format=format, options=options, io_open=reopen, buffer_size=1 << 17) as container:
      container.metadata.update(tags)
      picture = sound = None
      if picture_codec and clip.video is not None:
        picture = _picture_stream(container, picture_codec, clip, crf)
      if sound_codec and clip.audio is not None:
        sound = _sound_stream(container, sound_codec, clip)
      container.start_encoding()
      _encode(container, itertools.chain([clip], later), picture, sound)
  except av.error.FFmpegError as error:
    raise output.failure or OSError(error.errno, f'ffmpeg: {error.strerror}') from error


def _encode(container, pieces: Iterable[Clip], picture, sound):
  """Picture and sound side by side, so that a player need not read ahead, and no more than a piece or two is held."""
  readers = {sound: _sound_frames, picture: _gif_frames if container.format.name == 'gif' else _picture_frames}
  readers.pop(None, None)
  feeds = zip(readers.items(), _shared(pieces, len(readers)))
  streams = [(stream, frames, next(frames, None)) for (stream, read), feed in feeds for frames in [read(stream, feed)]]
  while streams:
    streams.sort(key=lambda item: -1.0 if item[2] is None else item[2].time)
    stream, frames, frame = streams[0]
    for packet in stream.encode(frame):
      container.mux(packet)
    streams[0] = (stream, frames, next(frames, None))
    if frame is None:
      del streams[0]


def _shared(pieces: Iterable[Clip], num: int) -> list[Iterator[Clip]]:
  """The pieces, to be read by `num` readers; held until the last of them has read them (tee holds 57)."""
  source, queues = iter(pieces), [collections.deque() for _ in range(num)]

  def feed(mine):
    while True:
      if not mine:
        piece = next(source, None)
        if piece is None:
          return
        for queue in queues:
          queue.append(piece)
        del piece
      yield mine.popleft()
  return [feed(queue) for queue in queues]


def _rate(fps: float) -> Fraction:
  return Fraction(fps).limit_denominator(1001)


def _picture_stream(container, codec: str, clip: Clip, crf: int):
  height, width = clip.video.shape[1:3]
  if codec == 'gif':
    stream = container.add_stream('gif', rate=100)
    stream.width, stream.height, stream.pix_fmt = width, height, 'pal8'
    stream.codec_context.time_base = Fraction(1, 100)
    return stream
  options = {'crf': str(crf)} if codec == 'libx264' else {
      'crf': str(round(crf * 63 / 51)), 'b': '0', 'deadline': 'good', 'cpu-used': '4', 'row-mt': '1'}
  stream = container.add_stream(codec, rate=_rate(clip.fps), options=options)
  stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, 'yuv420p'
  context = stream.codec_context
  context.time_base = 1 / _rate(clip.fps)
  context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
  context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
  return stream


def _picture_frames(stream, pieces: Iterable[Clip]):
  reformatter = VideoReformatter()
  flags = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
  for k, (clip, image) in enumerate((clip, image) for clip in pieces for image in clip.video):
    image = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), 'edge')
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format='rgb24')
    frame = reformatter.reformat(frame, format='yuv420p', interpolation=flags, threads=1,
                                 dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
    frame.pts, frame.time_base = k, 1 / _rate(clip.fps)
    yield frame


def _gif_ticks(clip: Clip) -> np.ndarray:
  """int[n + 1]: when each of n frames begins and the last one ends, in hundredths of a second."""
  fps = min(clip.fps, GIF_FPS)
  return np.round(np.arange(max(1, round(len(clip.video) * fps / clip.fps)) + 1) * 100 / fps).astype(int)


def _gif_frames(stream, pieces: Iterable[Clip]):
  """Frames in the 256 colours that suit this clip best, stamped in hundredths of a second."""
  clip, = pieces
  ticks = _gif_ticks(clip)[:-1]
  chosen = clip.video[np.minimum(ticks * clip.fps / 100 + 0.5, len(clip.video) - 1).astype(int)]
  height, width = clip.video.shape[1:3]
  graph = av.filter.Graph()
  source = graph.add('buffer', width=str(width), height=str(height), pix_fmt='rgb24', time_base='1/100',
                     pixel_aspect='1/1')
  split, make, use, sink = (graph.add(name) for name in ('split', 'palettegen', 'paletteuse', 'buffersink'))
  source.link_to(split)
  split.link_to(make, 0, 0)
  split.link_to(use, 1, 0)
  make.link_to(use, 0, 1)
  use.link_to(sink)
  graph.configure()
  for k, image in enumerate(chosen):
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format='rgb24')
    frame.pts, frame.time_base = int(ticks[k]), Fraction(1, 100)
    source.push(frame)
  source.push(None)
  for _ in chosen:
    yield sink.pull()


def _sound_stream(container, codec: str, clip: Clip):
  rates = RATES.get(codec, (clip.sample_rate,))
  rate = min((r for r in rates if r >= clip.sample_rate), default=rates[0])
  channels = clip.audio.shape[1]
  stream = container.add_stream(codec, rate=rate, layout=LAYOUTS[channels])
  if codec in RATES:
    stream.bit_rate = min(BITS_PER_SECOND, 4 * rate) * channels
  return stream


def _sound_frames(stream, pieces: Iterable[Clip]):
  """Frames of the codec's size, cut and joined from the pieces' sounds."""
  codec = stream.codec_context
  size = codec.frame_size or 4096
  rest, begin = np.zeros((0, len(codec.layout.channels)), np.float32), 0
  for audio in _sounds(codec, pieces):
    rest = np.concatenate([rest, audio])
    whole = len(rest) // size * size
    for first in range(0, whole, size):
      yield _sound_frame(codec, rest[first:first + size], begin + first)
    rest, begin = rest[whole:], begin + whole
  if len(rest):
    yield _sound_frame(codec, rest, begin)


def _sounds(codec, pieces: Iterable[Clip]):
  """The pieces' sounds at the codec's rate; all together as long as the picture where they are not a frame longer."""
  heard = seconds = 0
  clip = next(pieces := iter(pieces))
  while clip is not None:
    following = next(pieces, None)
    if clip.sample_rate != codec.sample_rate and (heard or following is not None):
      raise MediaError(f'sound in pieces of {clip.sample_rate} samples a second cannot be resampled to the '
                       f'{codec.sample_rate} of {codec.name}; write wav, or resample the pieces')
    audio = resample(mix(np.clip(clip.audio, -1, 1), len(codec.layout.channels)), clip.sample_rate, codec.sample_rate)
    seconds += len(clip.video) / clip.fps if clip.video is not None else 0
    if following is None and clip.video is not None:
      picture = round(seconds * codec.sample_rate) - heard
      if len(audio) < picture + codec.sample_rate / clip.fps:
        audio = np.pad(audio[:picture], ((0, max(0, picture - len(audio))), (0, 0)))
    heard += len(audio)
    yield audio
    clip = following


def _sound_frame(codec, piece: np.ndarray, begin: int):
  if codec.format.packed.name == 's16':
    piece = np.clip(np.round(piece * 2.0**15), -2**15, 2**15 - 1).astype(np.int16)
  piece = np.ascontiguousarray(piece.T) if codec.format.is_planar else piece.reshape(1, -1)
  frame = av.AudioFrame.from_ndarray(piece, format=codec.format.name, layout=codec.layout.name)
  frame.sample_rate, frame.pts, frame.time_base = codec.sample_rate, begin, Fraction(1, codec.sample_rate)
  return frame


def _png(image: np.ndarray) -> bytes:
  codec = av.CodecContext.create('png', 'w')
  codec.height, codec.width = image.shape[:2]
  codec.pix_fmt, codec.time_base = 'rgb24', Fraction(1, 1)
  frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format='rgb24')
  frame.pts, frame.time_base = 0, Fraction(1, 1)
  return b''.join(bytes(packet) for packet in codec.encode(frame) + codec.encode(None))
