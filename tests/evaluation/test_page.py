"""Pages hold all they show: media that ffmpeg reads, nothing from elsewhere, words escaped."""
import base64
import html.parser
import re

import numpy as np

from veojax.data import media
from veojax.evaluation import page
from veojax.types import Clip


class Reader(html.parser.HTMLParser):

  def __init__(self):
    super().__init__()
    self.sources, self.words = [], []

  def handle_starttag(self, tag, attributes):
    self.sources += [value for name, value in attributes if name in ('src', 'href')]

  def handle_data(self, data):
    self.words.append(data)


def test_a_page_holds_playable_clips_and_nothing_from_elsewhere(tmp_path):
  rng = np.random.default_rng(0)
  clip = Clip(rng.integers(0, 256, (9, 16, 24, 3), np.uint8),
              rng.uniform(-.1, .1, (9000, 2)).astype(np.float32), 8.0, 8000)
  made = page.Page('a <b> title', 'a lead')
  made.section('clips')
  made.clips([clip], ['a "quoted" <caption>'])
  made.table(['x', 'y'], [['1 < 2', 3]])
  made.commands('veojax --help')
  made.write(tmp_path / 'page.html')
  reader = Reader()
  reader.feed((tmp_path / 'page.html').read_text())
  words = ''.join(reader.words)
  assert all(text in words for text in ('a <b> title', 'a "quoted" <caption>', '1 < 2', 'veojax --help'))
  assert all(source.startswith('data:') for source in reader.sources)
  videos = [s for s in reader.sources if s.startswith('data:video/mp4')]
  info = media.probe(base64.b64decode(re.sub('^[^,]*,', '', videos[0])))
  assert (info.num_frames, info.fps, info.has_audio) == (9, 8.0, True)
  assert info.width % 24 == 0 and info.width / info.height == 24 / 16
  images = [media.probe(base64.b64decode(s.split(',')[1])) for s in reader.sources if s.startswith('data:image/png')]
  assert (images[0].width, images[0].height) == (8 * 24, 16) and len(images) == 2
