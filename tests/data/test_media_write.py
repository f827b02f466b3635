"""Writing: ffmpeg's own reading of the files, and ours; what cannot be written is refused and harms nothing."""
import errno
import io
import os
import pathlib
import subprocess
import sys
import zlib

import av
import numpy as np
import pytest

from veojax.data import media, media_tags, media_write
from veojax.data.media_source import MediaError
from veojax.types import Clip

pytestmark = pytest.mark.smoke


def flash_and_click(num_frames=24, fps=24.0, sample_rate=16000, channels=2, height=48, width=64, at=9) -> Clip:
  """Black and silent, but for frame `at` and the sound from its time on for one frame."""
  video = np.full((num_frames, height, width, 3), 16, np.uint8)
  video[at] = 235
  audio = np.zeros((round(num_frames / fps * sample_rate), channels), np.float32)
  begin, end = round(at / fps * sample_rate), round((at + 1) / fps * sample_rate)
  audio[begin:end] = 0.7 * np.sin(np.arange(end - begin) * 2 * np.pi * 1000 / sample_rate)[:, None]
  return Clip(video=video, audio=audio, fps=fps, sample_rate=sample_rate)


def flash_time(clip: Clip) -> float:
  return int(np.argmax(clip.video.mean((1, 2, 3)) > 120)) / clip.fps


def click_time(clip: Clip) -> float:
  return int(np.argmax(np.abs(clip.audio).max(1) > 0.25)) / clip.sample_rate


def quadrants(height=48, width=80) -> np.ndarray:
  """Red, green / blue, white: every orientation looks different."""
  image = np.zeros((height, width, 3), np.uint8)
  top, left = height // 2, width // 2
  image[:top, :left], image[:top, left:] = (220, 0, 0), (0, 220, 0)
  image[top:, :left], image[top:, left:] = (0, 0, 220), (220, 220, 220)
  return image


def assert_near(image, expected, tolerance=8):
  assert image.shape == expected.shape
  assert np.abs(image.astype(int) - expected).mean() < tolerance


class Written:
  """What ffmpeg itself reads in a file: its packets and headers, decoded frame by frame."""

  def __init__(self, path):
    with av.open(str(path)) as container:
      self.duration = container.duration / 1e6
      self.streams = {stream.type: stream for stream in container.streams}
      self.codecs = {kind: stream.codec_context.codec.canonical_name for kind, stream in self.streams.items()}
      self.frames = {'video': [], 'audio': []}
      for packet in container.demux():
        for frame in packet.decode():
          self.frames[packet.stream.type].append(frame)
      self.start = {kind: frames[0].time for kind, frames in self.frames.items() if frames}
      video = self.streams.get('video')
      self.rate = float(video.average_rate) if video is not None else 0.0

  def flash(self) -> float:
    return next(frame.time for frame in self.frames['video'] if frame.to_ndarray(format='gray').mean() > 120)

  def click(self) -> float:
    for frame in self.frames['audio']:
      loud = np.abs(frame.to_ndarray()).max(0) > 0.25
      if loud.any():
        return frame.time + int(np.argmax(loud)) / frame.sample_rate
    raise AssertionError('silent')


@pytest.mark.parametrize('format, fps, sample_rate, channels, size', [
    ('mp4', 24, 16000, 2, (48, 64)), ('mp4', 23.976, 44100, 1, (47, 63)), ('mp4', 60, 48000, 6, (16, 16)),
    ('mp4', 8, 8000, 1, (33, 18)), ('mp4', 12.5, 22050, 2, (1, 1)), ('webm', 30, 48000, 2, (48, 64)),
    ('webm', 25, 16000, 1, (31, 45)), ('webm', 10, 11025, 2, (16, 64))])
def test_written_file_as_ffmpeg_reads_it(tmp_path, format, fps, sample_rate, channels, size):
  clip = flash_and_click(24, fps, sample_rate, channels, *size)
  path = tmp_path / f'clip.{format}'
  media.write(path, clip)
  written = Written(path)
  assert written.codecs == ({'video': 'h264', 'audio': 'aac'} if format == 'mp4' else {'video': 'vp9', 'audio': 'opus'})
  assert written.rate == pytest.approx(fps, rel=1e-3)
  assert written.duration == pytest.approx(24 / fps, abs=0.5 / fps + 0.021)
  frames = written.frames['video']
  assert len(frames) == 24
  assert (frames[0].height, frames[0].width) == tuple(side + side % 2 for side in size)
  assert frames[0].format.name == 'yuv420p'
  assert written.flash() - written.start['video'] == pytest.approx(9 / fps, abs=2e-3)
  assert abs(written.flash() - written.click()) < 0.5 / fps
  assert len(written.frames['audio'][0].layout.channels) == channels
  last = written.frames['audio'][-1]
  assert last.time + last.samples / last.sample_rate >= 24 / fps - 1e-3


def test_mp4_can_be_played_while_it_loads(tmp_path):
  media.write(tmp_path / 'clip.mp4', flash_and_click())
  data = (tmp_path / 'clip.mp4').read_bytes()
  assert data.index(b'moov') < data.index(b'mdat')


@pytest.mark.parametrize('format', ['mp4', 'webm'])
@pytest.mark.parametrize('fps, sample_rate, channels', [(24.0, 16000, 2), (30.0, 8000, 1), (60.0, 44100, 6)])
def test_written_file_reads_back(tmp_path, format, fps, sample_rate, channels):
  clip = flash_and_click(24, fps, sample_rate, channels)
  media.write(tmp_path / f'clip.{format}', clip)
  for again in (media.read(tmp_path / f'clip.{format}'), media.read(media.encode(clip, format))):
    assert again.fps == pytest.approx(fps) and again.video.shape == clip.video.shape
    assert_near(again.video, clip.video)
    assert len(again.audio) == round(24 / fps * again.sample_rate) and again.audio.shape[1] == channels
    assert flash_time(again) == pytest.approx(9 / fps)
    assert abs(click_time(again) - 9 / fps) < 0.25 / fps


def test_colours_survive(tmp_path):
  video = np.broadcast_to(quadrants(), (5, 48, 80, 3))
  for format in ('mp4', 'webm', 'gif'):
    media.write(tmp_path / f'a.{format}', Clip(video=video.copy(), fps=10.0), crf=8)
    assert_near(media.read(tmp_path / f'a.{format}').video, video, 4)


@pytest.mark.parametrize('fps', [8, 10, 24, 25, 30, 60])
def test_gif(tmp_path, fps):
  video = np.zeros((24, 20, 31, 3), np.uint8)
  video[np.arange(24), :, np.arange(24)] = (255, 40, 0)
  media.write(tmp_path / 'a.gif', Clip(video=video, fps=float(fps)))
  clip = media.read(tmp_path / 'a.gif', fps=fps)
  assert clip.video.shape[1:] == (20, 31, 3) and abs(clip.duration - 24 / fps) < 0.6 / fps + 0.01
  own = media.read(tmp_path / 'a.gif')
  assert own.fps == pytest.approx(min(fps, 50), rel=0.05) and media.probe(tmp_path / 'a.gif').kind == 'video'
  if fps <= 50:
    assert_near(own.video[:24], video, 8)


def test_silent_and_pictureless(tmp_path):
  clip = flash_and_click()
  media.write(tmp_path / 'silent.mp4', Clip(video=clip.video, fps=24.0))
  silent = media.read(tmp_path / 'silent.mp4', sample_rate=16000, channels=2)
  assert silent.audio is None and not media.probe(tmp_path / 'silent.mp4').has_audio
  media.write(tmp_path / 'sound.mp4', Clip(audio=clip.audio, sample_rate=16000))
  sound = media.read(tmp_path / 'sound.mp4', fps=24, height=64, width=64)
  assert sound.video is None and click_time(sound) == pytest.approx(9 / 24, abs=5e-3)
  nothing = np.zeros((0, 2), np.float32)
  media.write(tmp_path / 'none.mp4', Clip(video=clip.video, audio=nothing, fps=24.0, sample_rate=16000))
  none = media.read(tmp_path / 'none.mp4')
  assert not none.audio.any() and len(none.audio) == 16000


def test_sound_is_fitted_to_the_picture_and_never_the_picture_to_the_sound(tmp_path):
  clip = flash_and_click()
  for samples, expected in [(9000, 16000), (15990, 16000), (16300, 16000)]:
    audio = np.resize(clip.audio, (samples, 2))
    for format in ('mp4', 'webm'):
      media.write(tmp_path / f'a.{format}', Clip(video=clip.video, audio=audio, fps=24.0, sample_rate=16000))
      assert len(Written(tmp_path / f'a.{format}').frames['video']) == 24
      assert len(media.read(tmp_path / f'a.{format}', sample_rate=16000).audio) == expected


def test_lossless_formats(tmp_path):
  rng = np.random.default_rng(0)
  clip = Clip(audio=rng.uniform(-1, 1, (5000, 2)).astype(np.float32), sample_rate=22050)
  for format in ('wav', 'flac'):
    media.write(tmp_path / f'a.{format}', clip)
    np.testing.assert_allclose(media.read(tmp_path / f'a.{format}').audio, clip.audio, atol=2**-15)
  image = rng.integers(0, 256, (3, 21, 33, 3)).astype(np.uint8)
  media.write(tmp_path / 'a.png', Clip(video=image, fps=5.0))
  np.testing.assert_array_equal(media.read(tmp_path / 'a.png').video, image[:1])


TAGS = {'title': 'café 犬が吠える 🐕 ' + 'пёс ' * 200 + '.', 'artist': 'wörld', 'comment': 'made; by=a "machine"',
        'description': 'çe', 'software': 'veojax'}


def tiny(format: str) -> Clip:
  clip = flash_and_click(5, 10.0, 16000, 2, 20, 32, 2)
  return Clip(audio=clip.audio, sample_rate=16000) if format in ('wav', 'flac') else clip


@pytest.mark.parametrize('format', media.FORMATS)
def test_tags_come_back_and_change_nothing_else(tmp_path, format):
  clip, path = tiny(format), tmp_path / f'a.{format}'
  media.write(path, clip, tags=TAGS)
  missing = {'mp4': {'software'}, 'wav': {'description', 'software'}, 'flac': {'description'}}.get(format, set())
  expected = {name: text for name, text in TAGS.items() if name not in missing}
  assert media.probe(path).tags == media.probe(path.read_bytes()).tags == expected
  plain = media.encode(clip, format)
  assert media.probe(plain).tags == media.probe(media.encode(clip, format, tags={'title': '\0'})).tags == {}
  tagged, untagged = media.read(path), media.read(plain)
  np.testing.assert_equal(vars(tagged), vars(untagged))


@pytest.mark.parametrize('format', ['mp4', 'webm', 'wav', 'flac'])
def test_tags_as_ffmpeg_reads_them(format):
  with av.open(io.BytesIO(media.encode(tiny(format), format, tags=TAGS))) as container:
    found = {name.lower(): text for name, text in container.metadata.items()}
  carried = media_tags.CARRIED[format]
  assert [found.get(name) for name in carried] == [TAGS[name] for name in carried]


def test_tags_as_pillow_reads_them():
  image = pytest.importorskip('PIL.Image')
  clip = tiny('png')
  png = image.open(io.BytesIO(media.encode(clip, 'png', tags=TAGS)))
  assert png.text == {media_tags.PNG_KEYWORDS[name]: text for name, text in TAGS.items()}
  np.testing.assert_array_equal(np.asarray(png), clip.video[0])
  gif = image.open(io.BytesIO(media.encode(clip, 'gif', tags=TAGS | {'title': 'one\ncomment: two'})))
  assert gif.n_frames == 5
  lines = gif.info['comment'].decode().split('\n')
  assert [line.partition(': ')[0] for line in lines] == list(TAGS) and lines[0] == 'title: one comment: two'


def test_text_of_other_pngs_is_read_and_damaged_text_passed_over():
  data = media.encode(tiny('png'), 'png')
  bodies = (b'tEXtTitle\0caf\xe9', b'zTXtAuthor\0\0' + zlib.compress(b'w\xf6rld'), b'tEXtOther\0x',
            b'iTXtDescription\0\1\0\0\0' + zlib.compress('犬'.encode()), b'iTXtComment\0\0',
            b'iTXtSoftware\0\0\0\0\0\xff')
  chunks = [(len(body) - 4).to_bytes(4, 'big') + body + zlib.crc32(body).to_bytes(4, 'big') for body in bodies]
  data = data[:media_tags.PNG_HEADER] + b''.join(chunks) + data[media_tags.PNG_HEADER:]
  assert media.probe(data).tags == {'title': 'café', 'artist': 'wörld', 'description': '犬'}


def test_unknown_tags_are_named_and_odd_text_is_written(tmp_path):
  with pytest.raises(ValueError, match="'prompt'.*title"):
    media.write(tmp_path / 'a.mp4', tiny('mp4'), tags={'prompt': 'x'})
  assert not os.listdir(tmp_path)
  for format in media.FORMATS:
    assert media.probe(media.encode(tiny(format), format, tags={'title': 'a\0b\udc80c'})).tags == {'title': 'ab?c'}


def test_what_cannot_be_written_says_why(tmp_path):
  clip = flash_and_click()
  with pytest.raises(media.MediaError, match='webm'):
    media.write(tmp_path / 'a.xyz', clip)
  with pytest.raises(media.MediaError, match='does not exist'):
    media.write(tmp_path / 'absent' / 'a.mp4', clip)
  with pytest.raises(media.MediaError, match='no sound'):
    media.write(tmp_path / 'a.wav', Clip(video=clip.video, fps=24.0))
  with pytest.raises(media.MediaError, match='no picture'):
    media.write(tmp_path / 'a.gif', Clip(audio=clip.audio, sample_rate=16000))
  clip.audio[77] = np.nan
  media.write(tmp_path / 'a.gif', clip)
  with pytest.raises(media.MediaError, match='NaN'):
    media.write(tmp_path / 'a.mp4', clip)
  assert os.listdir(tmp_path) == ['a.gif']


FULL_DISK = '''
import resource, sys, numpy as np
from veojax.data import media
from veojax.types import Clip
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
video = np.random.default_rng(0).integers(0, 256, (30, 96, 96, 3)).astype(np.uint8)
try:
  media.write(sys.argv[1], Clip(video=video, audio=np.zeros((16000, 1), np.float32), fps=30.0, sample_rate=16000))
except media.MediaError as error:
  print(error)
'''


@pytest.mark.parametrize('format', ['mp4', 'webm', 'gif'])
def test_full_disk_leaves_what_was_there(tmp_path, format):
  path = tmp_path / f'a.{format}'
  path.write_bytes(b'what was there')
  done = subprocess.run([sys.executable, '-c', FULL_DISK, str(path)], capture_output=True, text=True, timeout=120,
                        env=os.environ | {'PYTHONPATH': str(pathlib.Path(media.__file__).parents[2])})
  assert done.returncode == 0 and 'cannot be written' in done.stdout and str(path) in done.stdout, done
  assert path.read_bytes() == b'what was there' and os.listdir(tmp_path) == [path.name]


def test_no_permission(tmp_path, monkeypatch):
  def refuse(path, *arguments):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

  # Root, as which tests often run, may write anywhere: the refusal has to be made.
  monkeypatch.setattr('builtins.open', refuse)
  with pytest.raises(media.MediaError, match='permission denied; choose a folder you may write to'):
    media.write(tmp_path / 'a.mp4', flash_and_click())


def in_pieces(clip: Clip, sizes) -> list[Clip]:
  """The clip cut after so many frames each; the sound's cuts lie elsewhere."""
  ends = np.cumsum([0, *sizes])
  cuts = [0, *(round(e / clip.fps * clip.sample_rate) - 37 for e in ends[1:-1]), len(clip.audio)]
  return [Clip(video=clip.video[a:b], audio=clip.audio[c:d], fps=clip.fps, sample_rate=clip.sample_rate)
          for a, b, c, d in zip(ends, ends[1:], cuts, cuts[1:])]


@pytest.mark.parametrize('tags', [None, {'title': 'a ball'}])
@pytest.mark.parametrize('format', ['mp4', 'gif', 'wav'])
def test_pieces_make_the_file_that_the_whole_makes(tmp_path, format, tags):
  clip = flash_and_click()
  media_write.write(tmp_path / f'whole.{format}', clip, tags=tags)
  media_write.write(tmp_path / f'pieces.{format}', iter(in_pieces(clip, (1, 10, 13))), tags=tags)
  whole, pieces = (media.read(tmp_path / f'{name}.{format}') for name in ('whole', 'pieces'))
  for a, b in ((whole.video, pieces.video), (whole.audio, pieces.audio)):
    assert (a is None) == (b is None)
    if a is not None:
      np.testing.assert_array_equal(a, b)


def test_no_more_than_two_pieces_are_held_while_a_long_clip_is_written(tmp_path):
  import weakref
  alive, most = [], 0

  def made():
    nonlocal most
    for _ in range(12):
      clip = flash_and_click(num_frames=8, at=3)
      alive.append(weakref.ref(clip.video))
      most = max(most, sum(ref() is not None for ref in alive))
      yield clip
      del clip
  media_write.write(tmp_path / 'long.mp4', made())
  assert len(media.read(tmp_path / 'long.mp4').video) == 96 and most <= 4


def test_sound_in_pieces_at_a_rate_that_the_codec_has_not_is_refused(tmp_path):
  with pytest.raises(MediaError, match='cannot be resampled'):
    media_write.write(tmp_path / 'odd.mp4', in_pieces(flash_and_click(sample_rate=10000), (4, 20)))
