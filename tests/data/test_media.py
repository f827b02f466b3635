"""Reading: files written here by ffmpeg directly; a flash and a click at one instant tell their offset."""
import json
import math
from fractions import Fraction

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext

from tests.data.made_media import flash_and_click, greys, record, still
from veojax.data import media
from veojax.types import Clip

pytestmark = pytest.mark.smoke


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


def test_clock_survives_every_change_of_rate(tmp_path):
  path = tmp_path / 'clip.mp4'
  media.write(path, flash_and_click(60, 30.0, 44100, 2, at=31))
  for fps, sample_rate in [(10, 8000), (24, 16000), (25, 48000), (60, 22050)]:
    clip = media.read(path, fps=fps, sample_rate=sample_rate, channels=1)
    assert clip.video.shape[0] == round(2 * fps) and clip.audio.shape == (2 * sample_rate, 1)
    # At fewer frames a second the flash may fall between two frames; where it shows, it shows at its time.
    if fps >= 24:
      assert abs(flash_time(clip) - 31 / 30) <= 0.5 / fps + 1e-6
    assert click_time(clip) == pytest.approx(31 / 30, abs=5e-3)


@pytest.mark.parametrize('name, codec, audio_codec', [
    ('a.mp4', 'libx264', 'aac'), ('a.mov', 'mpeg4', 'pcm_s16le'), ('a.mkv', 'libx264', 'ac3'),
    ('a.mkv', 'libx264', 'aac'), ('a.webm', 'libvpx', 'libopus'), ('a.avi', 'mpeg4', 'libmp3lame'),
    ('a.avi', 'mjpeg', 'pcm_s16le'), ('a.ts', 'libx264', 'aac'), ('a.mkv', 'mjpeg', 'flac')])
def test_containers_keep_picture_and_sound_together(tmp_path, name, codec, audio_codec):
  rate = 48000 if audio_codec in ('libopus', 'ac3') else 44100
  clip = flash_and_click(50, 25.0, rate, 1, at=30)
  pix_fmt = 'yuvj420p' if codec == 'mjpeg' else 'yuv420p'
  record(tmp_path / name, clip.video, codec=codec, pix_fmt=pix_fmt, audio=clip.audio, sample_rate=rate,
         audio_codec=audio_codec)
  again = media.read(tmp_path / name)
  assert again.fps == pytest.approx(25, rel=0.01) and abs(len(again.video) - 50) <= 1
  assert abs(flash_time(again) - click_time(again)) < 0.5 / 25
  info = media.probe(tmp_path / name)
  assert (info.kind, info.width, info.height, info.sample_rate, info.channels) == ('video', 64, 48, rate, 1)
  assert info.duration == pytest.approx(2, abs=0.1) and info.fps == pytest.approx(25, rel=0.01)


@pytest.mark.parametrize('name', ['a.mkv', 'a.mp4'])
def test_variable_frame_rate(tmp_path, name):
  rng = np.random.default_rng(0)
  times = np.concatenate([[0], np.cumsum(rng.choice([0.01, 0.04, 0.1, 0.5], 24))])
  images = greys(10 * np.arange(25), 32)
  record(tmp_path / name, images, times, codec='libx264', options={'crf': '5'})
  clip = media.read(tmp_path / name, fps=20)
  shown = np.round(clip.video.mean((1, 2, 3)) / 10).astype(int)
  for k, index in enumerate(shown):
    # On screen at some moment within half a frame.
    begin, end = times[index], times[index + 1] if index + 1 < len(times) else math.inf
    assert begin - 0.026 <= k / 20 <= end + 0.001
  average = media.read(tmp_path / name)
  assert average.fps == pytest.approx(24 / times[-1], rel=0.2)
  small = list(media.frames(tmp_path / name))
  assert np.allclose([t for t, _ in small], times, atol=2e-3)
  assert [round(image.mean() / 10) for _, image in small] == list(range(25))


def test_regular_rates_are_neither_doubled_nor_dropped(tmp_path):
  # Matroska rounds to milliseconds: 33, 67, 100 ... for 30 frames a second.
  images = greys(8 * np.arange(30), 16)
  record(tmp_path / 'a.mkv', images, [round(k / 30, 3) for k in range(30)], codec='libx264', options={'crf': '5'})
  clip = media.read(tmp_path / 'a.mkv', fps=30)
  assert np.round(clip.video.mean((1, 2, 3)) / 8).astype(int).tolist() == list(range(30))
  half = media.read(tmp_path / 'a.mkv', fps=15)
  assert np.round(half.video.mean((1, 2, 3)) / 8).astype(int).tolist() == list(range(0, 30, 2))


def test_sound_that_starts_late_and_early(tmp_path):
  clip = flash_and_click(50, 25.0, 48000, 1, at=30)
  pcm = dict(sample_rate=48000, audio_codec='pcm_s16le')
  record(tmp_path / 'late.mkv', clip.video, audio=clip.audio[12000:], sound_from=0.25, **pcm)
  late = media.read(tmp_path / 'late.mkv')
  assert click_time(late) == pytest.approx(1.2, abs=2e-3) and flash_time(late) == pytest.approx(1.2)
  record(tmp_path / 'early.mkv', clip.video[10:], [0.4 + k / 25 for k in range(40)], audio=clip.audio, **pcm)
  early = media.read(tmp_path / 'early.mkv', fps=25)
  assert click_time(early) == pytest.approx(0.8, abs=2e-3) and flash_time(early) == pytest.approx(0.8)


@pytest.mark.parametrize('name', ['a.mp4', 'a.mkv'])
def test_window_is_a_part_of_the_whole(tmp_path, name):
  rng = np.random.default_rng(0)
  images = greys(2 * np.arange(125), 16)
  audio = (0.3 * rng.standard_normal((5 * 48000, 1))).astype(np.float32)
  record(tmp_path / name, images, codec='libx264', audio=audio, sample_rate=48000, audio_codec='flac',
         options={'g': '10', 'crf': '5'})
  whole = media.read(tmp_path / name)
  for start, duration in [(0.0, 1.0), (1.0, 0.48), (3.0, 1.2), (4.4, None), (4.4, 9.0)]:
    part = media.read(tmp_path / name, start=start, duration=duration)
    first, last = round(start * 25), round(min(5, start + (duration or 9)) * 25)
    np.testing.assert_array_equal(part.video, whole.video[first:last])
    np.testing.assert_allclose(part.audio, whole.audio[first * 1920:last * 1920], atol=2e-4)
  with pytest.raises(media.MediaError, match='past its end'):
    media.read(tmp_path / name, start=7.0)


@pytest.mark.parametrize('degrees', [90, 180, 270])
def test_rotation_flags(tmp_path, degrees):
  image = quadrants()
  record(tmp_path / 'a.mp4', np.stack([image] * 5), rotation=degrees)
  expected = np.rot90(image, degrees // 90)  # ffmpeg's angles, like numpy's, turn counterclockwise
  clip = media.read(tmp_path / 'a.mp4')
  assert_near(clip.video[2], expected)
  info = media.probe(tmp_path / 'a.mp4')
  assert (info.height, info.width) == expected.shape[:2]
  assert media.read(tmp_path / 'a.mp4', max_side=40).video.shape[1:3] == ((40, 24) if degrees != 180 else (24, 40))
  assert next(media.frames(tmp_path / 'a.mp4', max_side=40))[1].shape[:2] == ((40, 24) if degrees != 180 else (24, 40))


def test_phone_matrix(tmp_path):
  """As phones write it: the track header's matrix (0, 1, -1, 0) turns the stored picture clockwise."""
  image = quadrants()
  record(tmp_path / 'a.mp4', np.stack([image] * 5))
  data = bytearray((tmp_path / 'a.mp4').read_bytes())
  place = data.index(b'tkhd') + 44
  one, w = 1 << 16, 1 << 30
  data[place:place + 36] = np.array([0, one, 0, -one, 0, 0, image.shape[0] * one, 0, w], '>i4').tobytes()
  assert_near(media.read(bytes(data)).video[2], np.rot90(image, -1))
  data[place:place + 36] = np.array([-one, 0, 0, 0, one, 0, image.shape[1] * one, 0, w], '>i4').tobytes()
  assert_near(media.read(bytes(data)).video[2], image[:, ::-1])


def test_h264_orientation_message(tmp_path):
  image = quadrants()
  record(tmp_path / 'a.mp4', np.stack([image] * 5), codec='libx264')
  with av.open(str(tmp_path / 'a.mp4')) as source, av.open(str(tmp_path / 'b.mkv'), 'w') as target:
    stream = target.add_stream_from_template(source.streams.video[0])
    video = source.streams.video[0]
    insert = BitStreamFilterContext('h264_metadata=display_orientation=insert:rotate=90', video, stream)
    for packet in source.demux(video):
      for changed in insert.filter(packet if packet.dts is not None else None):
        changed.stream = stream
        target.mux(changed)
  assert_near(media.read(tmp_path / 'b.mkv').video[2], np.rot90(image))


def test_sizes(tmp_path):
  image = quadrants(60, 90)
  media.write(tmp_path / 'a.png', Clip(video=image[None], fps=1.0))
  np.testing.assert_array_equal(media.read(tmp_path / 'a.png').video[0], image)
  read = lambda **sizes: media.read(tmp_path / 'a.png', **sizes).video[0]
  for sizes in ({'height': 30}, {'width': 45}, {'max_side': 45}):
    assert read(**sizes).shape == (30, 45, 3)
  assert read(max_side=900).shape == (60, 90, 3)  # a limit, not a goal
  square = read(height=40, width=40)
  assert square.shape == (40, 40, 3)
  # Cut at the centre, not squeezed: the four colours still meet in the middle, at equal scale both ways.
  assert_near(square, quadrants(40, 40), 4)
  assert read(height=7, width=301).shape == (7, 301, 3) and read(height=1, width=1).shape == (1, 1, 3)
  # The mean colour survives shrinking: areas are averaged.
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
  shrunk = media.read(media.encode(Clip(video=noise[None], fps=1.0), 'png'), height=16, width=16).video[0]
  np.testing.assert_allclose(shrunk, noise.reshape(16, 4, 16, 4, 3).mean((1, 3)), atol=2)


def test_pixels_that_are_not_square(tmp_path):
  with av.open(str(tmp_path / 'a.mp4'), 'w') as out:
    stream = out.add_stream('mpeg4', rate=25)
    stream.width, stream.height, stream.pix_fmt = 48, 48, 'yuv420p'
    stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
    for _ in range(3):
      out.mux(stream.encode(av.VideoFrame.from_ndarray(quadrants(48, 48), format='rgb24')))
    out.mux(stream.encode(None))
  assert media.read(tmp_path / 'a.mp4').video.shape[1:3] == (48, 64)
  assert media.probe(tmp_path / 'a.mp4').width == 64


@pytest.mark.parametrize('name, codec, pix_fmt', [
    ('a.jpg', 'mjpeg', 'yuvj444p'), ('a.webp', 'libwebp', 'bgra'), ('a.png', 'png', 'rgb24'), ('a.gif', 'gif', 'bgr8')])
def test_still_images(tmp_path, name, codec, pix_fmt):
  image = quadrants(33, 47)
  if codec == 'gif':
    record(tmp_path / name, image[None], codec=codec, pix_fmt=pix_fmt)
  else:
    (tmp_path / name).write_bytes(still(image, codec, pix_fmt))
  clip = media.read(tmp_path / name, duration=2.0)
  assert clip.video.shape == (1, 33, 47, 3) and clip.audio is None
  assert_near(clip.video[0], image, 30 if codec == 'gif' else 10)
  info = media.probe(tmp_path / name)
  assert (info.kind, info.num_frames, info.width, info.height, info.has_audio) == ('image', 1, 47, 33, False)


def test_transparency_is_white():
  context = av.CodecContext.create('png', 'w')
  context.height, context.width, context.pix_fmt, context.time_base = 4, 4, 'rgba', Fraction(1, 1)
  frame = av.VideoFrame.from_ndarray(np.full((4, 4, 4), (200, 0, 0, 0), np.uint8), format='rgba')
  frame.pts, frame.time_base = 0, Fraction(1, 1)
  data = b''.join(bytes(packet) for packet in context.encode(frame) + context.encode(None))
  assert (media.read(data).video == 255).all()


@pytest.mark.parametrize('name, codec, rate, layout', [
    ('a.wav', 'pcm_s16le', 8000, 'mono'), ('a.wav', 'pcm_u8', 11025, 'stereo'), ('a.wav', 'pcm_f32le', 96000, '5.1'),
    ('a.flac', 'flac', 44100, 'stereo'), ('a.mp3', 'libmp3lame', 44100, 'mono'),
    ('a.mp3', 'libmp3lame', 16000, 'stereo'),
    ('a.ogg', 'libopus', 48000, 'stereo'), ('a.m4a', 'aac', 32000, '5.1')])
def test_sound_files(tmp_path, name, codec, rate, layout):
  channels = {'mono': 1, 'stereo': 2, '5.1': 6}[layout]
  times = np.arange(rate * 2) / rate
  audio = np.zeros((rate * 2, channels), np.float32)
  audio[rate:] = 0.5 * np.sin(2 * np.pi * 500 * times[rate:])[:, None]
  record(tmp_path / name, audio=audio, sample_rate=rate, audio_codec=codec, layout=layout)
  info = media.probe(tmp_path / name)
  assert (info.kind, info.has_video, info.sample_rate, info.channels) == ('audio', False, rate, channels)
  assert info.duration == pytest.approx(2, abs=0.1)
  clip = media.read(tmp_path / name, sample_rate=16000, channels=2)
  assert clip.video is None and clip.audio.shape[1] == 2 and clip.duration == pytest.approx(2, abs=0.08)
  assert click_time(clip) == pytest.approx(1, abs=0.004)
  part = media.read(tmp_path / name, sample_rate=16000, channels=2, start=0.5, duration=1.0)
  assert part.audio.shape == (16000, 2) and click_time(part) == pytest.approx(0.5, abs=0.004)
  assert np.abs(part.audio).max() <= 0.56


def test_window_beyond_the_sound_is_silent(tmp_path):
  audio = np.full((8000, 1), 0.2, np.float32)
  record(tmp_path / 'a.mkv', greys(np.arange(125), 16), audio=audio, sample_rate=16000)
  clip = media.read(tmp_path / 'a.mkv', start=4.0)
  assert clip.audio.shape == (16000, 1) and clip.sample_rate == 16000 and not clip.audio.any()


def test_content_decides_not_the_name(tmp_path):
  media.write(tmp_path / 'a.mp4', flash_and_click())
  media.write(tmp_path / 'a.png', flash_and_click())
  for content, name in [('a.mp4', 'a.jpg'), ('a.mp4', '%03d.txt'), ('a.png', 'b.mp4'), ('a.mp4', 'http:a.wav'),
                        ('a.mp4', 'ünï cödé')]:
    (tmp_path / name).write_bytes((tmp_path / content).read_bytes())
    assert media.probe(tmp_path / name).kind == ('image' if content == 'a.png' else 'video')


def test_photo_turned_by_its_camera():
  """EXIF orientation 6: the stored picture is to be turned clockwise."""
  image = quadrants(48, 80)
  data = still(image, 'mjpeg', 'yuvj420p')
  exif = b'Exif\0\0MM\0*\0\0\0\x08' + b'\0\x01' + b'\x01\x12\0\x03\0\0\0\x01\0\x06\0\0' + bytes(4)
  turned = data[:2] + b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif + data[2:]
  assert_near(media.read(turned).video[0], np.rot90(image, -1))


def test_real_clips(clips_folder):
  for line in (clips_folder / 'metadata.jsonl').read_text().splitlines():
    path = clips_folder / json.loads(line)['file_name']
    info = media.probe(path)
    clip = media.read(path, fps=8, max_side=32, sample_rate=8000, channels=1, start=1.0, duration=0.5)
    assert clip.video.shape[0] == 4 and max(clip.video.shape[1:3]) == 32
    assert (clip.audio is not None) == info.has_audio
    assert clip.audio is None or clip.audio.shape == (4000, 1)
