"""Pages hold all they show: media that ffmpeg reads, nothing from elsewhere, words escaped; their tables sort."""
import base64
import html.parser
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from veojax.data import media
from veojax.evaluation import page
from veojax.types import Clip


class Reader(html.parser.HTMLParser):

  def __init__(self):
    super().__init__()
    self.sources, self.words, self.rows, self.script = [], [], [], ''
    self._in = ''

  def handle_starttag(self, tag, attributes):
    self._in = tag
    self.sources += [value for name, value in attributes if name in ('src', 'href')]
    if tag == 'tr':
      self.rows.append([])
    if tag in ('th', 'td'):
      self.rows[-1].append({'tag': tag, 'textContent': '', 'dataset': {
          name.removeprefix('data-'): value for name, value in attributes if name.startswith('data-')}})

  def handle_data(self, data):
    self.words.append(data)
    if self._in in ('th', 'td'):
      self.rows[-1][-1]['textContent'] += data
    if self._in == 'script':
      self.script += data


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


# What the page's script asks of a browser's document: one table of READ's rows, whose headings are clicked in turn.
DOCUMENT = '''
const [heads, ...rows] = READ
const body = {rows: rows.map(cells => ({cells})), append(...rows) { this.rows = rows }}
const table = {tBodies: [body], querySelectorAll: () => heads}
globalThis.document = {querySelectorAll: () => [table]}
SCRIPT
const shown = CLICKS.map(column => (heads[column].onclick(), body.rows.map(row => row.cells[0].textContent)))
console.log(JSON.stringify(shown))
'''


@pytest.mark.skipif(not shutil.which('node'), reason='needs node, to run the page\'s script')
def test_a_click_on_a_heading_sorts_by_number_or_by_words_and_another_turns_it(tmp_path):
  made = page.Page('title', 'lead')
  made.sortable(['model', 'score'], [['b', ('9.0 [8, 10]', 9.0)], ['a', ('–', None)], ['d', ('10.0', 10.0, 'best')],
                                     ['c', ('-1', -1.0)]])
  made.write(tmp_path / 'page.html')
  reader = Reader()
  reader.feed((tmp_path / 'page.html').read_text())
  program = (DOCUMENT.replace('READ', json.dumps(reader.rows)).replace('CLICKS', '[1, 1, 0, 0]')
             .replace('SCRIPT', reader.script))
  shown = json.loads(subprocess.run(['node', '-e', program], capture_output=True, text=True, check=True).stdout)
  # What has no number comes last, whichever way.
  assert [''.join(names) for names in shown] == ['cbda', 'dbca', 'abcd', 'dcba']


def test_several_processes_write_one_page(tmp_path):
  program = ("import sys\nfrom veojax.evaluation import page\nout = page.Page('A', 'b')\n"
             "for _ in range(300):\n  out.write(sys.argv[1])")
  path = tmp_path / 'report.html'
  writers = [subprocess.Popen([sys.executable, '-c', program, str(path)]) for _ in range(2)]
  assert [writer.wait(timeout=300) for writer in writers] == [0, 0]
  assert path.read_text().endswith('</html>') and [p.name for p in tmp_path.iterdir()] == ['report.html']
