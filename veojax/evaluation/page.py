"""Self-contained HTML pages: clips with sound, pictures, plots and tables in one file that opens anywhere."""
import base64
import dataclasses
import html
import os
import pathlib

from veojax import files
from veojax.data import shown_clip
from veojax.generation import export
from veojax.types import Clip

STYLE = '''
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
p.lead { opacity: .75; margin-top: 0 }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.2rem }
figure { margin: 0; border: 1px solid var(--line); border-radius: .5rem; padding: .6rem }
figure video, figure img { width: 100%; display: block; border-radius: .3rem }
figure img.pixels { image-rendering: pixelated; margin-top: .4rem }
figcaption { font-size: .88rem; margin-bottom: .4rem; min-height: 2.6em }
table { border-collapse: collapse } td, th { text-align: left; padding: .3rem 1.2rem .3rem 0;
  border-bottom: 1px solid var(--line) }
pre { background: color-mix(in srgb, currentColor 7%, transparent); padding: .8rem; border-radius: .4rem;
  overflow-x: auto }
.wide { overflow-x: auto }
table.sortable { font-size: .85rem; font-variant-numeric: tabular-nums } table.sortable td { padding-right: .9rem }
table.sortable td[data-value] { white-space: nowrap }
table.sortable th { cursor: pointer; white-space: nowrap } table.sortable th::after { content: ' ↕'; opacity: .35 }
td.best { font-weight: 650 } td.worse { opacity: .55 }
img.plot { max-width: 100%; background: white; border-radius: .4rem }
'''
SORTING = '''
document.querySelectorAll('table.sortable').forEach(table => table.querySelectorAll('th').forEach((head, column) => {
  let way = 1
  head.onclick = () => {
    const key = row => { const cell = row.cells[column], n = cell.dataset.value
      return n === undefined ? cell.textContent : n === '' ? Infinity * way : Number(n) }
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const x = key(a), y = key(b)
      return way * (x < y ? -1 : x > y ? 1 : 0) })
    way = -way
    table.tBodies[0].append(...rows) } }))
'''


class Page:
  """Sections one after another, then `write`."""

  def __init__(self, title: str, lead: str):
    self.title = title
    self.parts = [f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>']

  def section(self, heading: str):
    self.parts.append(f'<h2>{html.escape(heading)}</h2>')

  def text(self, words: str):
    self.parts.append(f'<p>{html.escape(words)}</p>')

  def commands(self, text: str):
    self.parts.append(f'<pre>{html.escape(text)}</pre>')

  def table(self, header: list[str], rows: list[list]):
    line = lambda tag, cells: '<tr>' + ''.join(f'<{tag}>{html.escape(str(c))}</{tag}>' for c in cells) + '</tr>'
    self.parts.append('<table>' + line('th', header) + ''.join(line('td', row) for row in rows) + '</table>')

  def sortable(self, header: list[str], rows: list[list]):
    """A table whose rows a click on a heading sorts. A cell is a text, or (text, number to sort by or None), or these
    two and a class: 'best' or 'worse'."""
    def shown(cell):
      if not isinstance(cell, tuple):
        return f'<td>{html.escape(str(cell))}</td>'
      text, value, *kind = cell
      number = '' if value is None else repr(float(value))
      return f'<td data-value="{number}" class="{html.escape(" ".join(kind))}">{html.escape(text)}</td>'
    head = ''.join(f'<th>{html.escape(h)}</th>' for h in header)
    body = ''.join(f'<tr>{"".join(map(shown, row))}</tr>' for row in rows)
    self.parts.append(f'<div class="wide"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody>'
                      '</table></div>')

  def plot(self, figure):
    self.parts.append(f'<img class="plot" alt="plot" src="{data_url(export.figure_png(figure))}">')

  def clips(self, clips: list[Clip], captions: list[str]):
    """A grid: caption, the clip with its sound, a contact sheet, the sound's spectrogram."""
    cards = []
    for clip, caption in zip(clips, captions, strict=True):
      card = f'<figure><figcaption>{html.escape(caption)}</figcaption>{shown_clip.player(clip)}'
      if clip.video is not None:
        card += f'<img class="pixels" alt="frames" src="{data_url(export.png(export.contact_sheet(clip)))}">'
      if clip.audio is not None:
        card += f'<img alt="spectrogram" src="{data_url(export.spectrogram(clip))}">'
      cards.append(card + '</figure>')
    self.parts.append(f'<div class="grid">{"".join(cards)}</div>')

  def write(self, path):
    text = ('<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<title>{html.escape(self.title)}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
            + '\n'.join(self.parts) + f'<script>{SORTING}</script></body></html>')
    files.write(path, text.encode())


@dataclasses.dataclass(frozen=True)
class Report:
  """A page on disk; in a notebook it shows itself."""
  path: str | os.PathLike
  height: int = 800  # of its frame, in pixels

  def _repr_html_(self):
    text = html.escape(pathlib.Path(self.path).read_text(encoding='utf-8'), quote=True)
    return f'<iframe srcdoc="{text}" width="100%" height="{self.height}" style="border: 0"></iframe>'


def data_url(png: bytes) -> str:
  return f'data:image/png;base64,{base64.b64encode(png).decode()}'
