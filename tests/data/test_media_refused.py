"""Reading what is empty, cut, damaged or no media, and what nobody can mean: a clear error, never a crash."""
import math
import os
import pathlib

import numpy as np
import pytest

from tests.data.made_media import flash_and_click, greys, record, still
from veojax.data import media
from veojax.types import Clip

pytestmark = pytest.mark.smoke


def bad_files(folder) -> dict[str, bytes]:
  media.write(folder / 'good.mp4', flash_and_click())
  good = (folder / 'good.mp4').read_bytes()
  noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3)).astype(np.uint8)
  record(folder / 'good.mkv', noise, codec='mpeg4')
  record(folder / 'good.avi', noise, codec='mpeg4')
  for format in ('wav', 'flac'):
    media.write(folder / f'good.{format}', flash_and_click())
  files = {'empty.mp4': b'', 'text.mp4': b'this is not a film\n' * 100, 'page.png': b'<!doctype html><html></html>',
           'zeros.mkv': bytes(5000), 'random.mp4': np.random.default_rng(1).bytes(20000), 'head.mp4': good[:40],
           'playlist.mp4': b'#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1/a.ts\n#EXT-X-ENDLIST\n',
           'concat.mp4': b"ffconcat version 1.0\nfile 'good.mp4'\n",
           'noheader.mp4': good.replace(b'moov', b'wxyz'), 'jpeg.jpg': b'\xff\xd8\xff\xe0' + bytes(500)}
  for name in ('good.mp4', 'good.mkv', 'good.avi', 'good.wav', 'good.flac'):
    data = (folder / name).read_bytes()
    files[f'cut-{name}'] = data[:len(data) * 6 // 10]
  files['cut.png'] = media.encode(Clip(video=noise[:1], fps=1.0), 'png')[:4000]
  files['cut.jpg'] = still(noise[0], 'mjpeg', 'yuvj420p')[:2500]
  broken = bytearray((folder / 'good.mkv').read_bytes())
  for place in range(3000, len(broken) - 500, 700):
    broken[place:place + 400] = np.random.default_rng(place).bytes(400)
  files['broken.mkv'] = bytes(broken)
  return files


def test_bad_files_are_refused_by_name_in_one_line(tmp_path):
  for name, data in bad_files(tmp_path).items():
    (tmp_path / name).write_bytes(data)
    with pytest.raises(media.MediaError) as error:
      media.read(tmp_path / name)
    message = str(error.value)
    assert name in message and '\n' not in message and len(message) > len(str(tmp_path / name)) + 5
  for path in (tmp_path, tmp_path / 'absent.mp4', pathlib.Path('/dev/zero')):
    with pytest.raises(media.MediaError, match=str(path)):
      media.read(path)
  os.mkfifo(tmp_path / 'pipe.mp4')
  with pytest.raises(media.MediaError, match='not a regular file'):
    media.probe(tmp_path / 'pipe.mp4')


def test_leaping_time_stamps(tmp_path):
  times = [k / 25 for k in range(20)] + [3e5]
  record(tmp_path / 'a.mkv', greys(np.arange(21), 16), times, codec='mjpeg', pix_fmt='yuvj420p')
  with pytest.raises(media.MediaError, match='leap'):
    media.read(tmp_path / 'a.mkv', fps=25)
  assert len(media.read(tmp_path / 'a.mkv', fps=25, duration=0.4).video) == 10


def test_every_single_flipped_byte_is_read_or_refused(tmp_path):
  data = media.encode(flash_and_click(6, 24.0, 8000, 1, 16, 16, at=3))
  rng = np.random.default_rng(0)
  for place in rng.choice(len(data), 60, replace=False):
    damaged = bytearray(data)
    damaged[place] ^= 1 << int(rng.integers(8))
    try:
      clip = media.read(bytes(damaged), threads=1)
      assert clip.video is not None or clip.audio is not None
    except media.MediaError:
      pass


@pytest.mark.parametrize('arguments', [
    {'fps': 0}, {'fps': math.nan}, {'height': -1}, {'width': 1.5}, {'start': -1.0}, {'duration': 0.0},
    {'sample_rate': 0}, {'channels': 0}, {'max_side': 8, 'height': 8}])
def test_senseless_arguments(tmp_path, arguments):
  with pytest.raises(ValueError, match='give'):
    media.read(tmp_path / 'a.mp4', **arguments)
