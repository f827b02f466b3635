import collections

import numpy as np
import pytest

from veojax.data import mixing, pipeline
from veojax.data.mixing import DataConfig
from veojax.data.latent_clip import LatentClip
from veojax.data.packing import PackConfig

PACK = PackConfig(row_tokens=96, text_tokens=32, max_clips=8, max_text=8, channels=4)


class Latents:
  """`n` clips of one kind whose latents say which clip they are, counted from `first`."""

  def __init__(self, n, first, video=(0, 0, 0), audio=0):
    self.first = first
    self.lengths = pipeline.Lengths(np.tile(np.array(video), (n, 1)), np.full(n, audio))

  def __len__(self):
    return len(self.lengths.audio)

  def text(self, i):
    return f'{self.first + i}'

  def __getitem__(self, i):
    shape, sound, number = self.lengths.video[i], self.lengths.audio[i], float(self.first + i)
    return LatentClip(np.full((*shape, 4), number, np.float16) if shape.all() else None,
                      np.full((sound, 3), number, np.float16) if sound else None, (), 8.0, 16, 16, 4, 8, 25.0,
                      self.text(i))


class Letters:

  def encode(self, text, max_length):
    return ([1] + [3 + ord(c) for c in text] + [2])[:max_length]


KINDS = {'clips': Latents(12, 100, (3, 2, 3), 6), 'images': Latents(20, 200, (1, 2, 2)),
         'sounds': Latents(8, 300, audio=9)}


def rows(weights):
  joined = mixing.JoinedLatents(KINDS.values())
  weights = np.repeat(weights, [len(kind) for kind in KINDS.values()])
  return pipeline.RowSource(joined, Letters(), PACK, seed=2, caption_dropout=0.0, weights=weights)


def clips_in(row):
  """The clips of a row by number, as its latents have them."""
  return [int(row.latent[(row.segment == s) & (row.modality > 1)][0, 0]) for s in range(1, row.segment.max() + 1)]


def test_joined_latents_are_each_data_sets_own():
  joined = mixing.JoinedLatents(KINDS.values())
  assert len(joined) == 40 and len(joined.lengths.video) == len(joined.lengths.audio) == 40
  assert [joined.text(i) for i in (0, 11, 12, 31, 32, 39)] == ['100', '111', '200', '219', '300', '307']
  assert [joined.place(i) for i in (0, 11, 12, 39)] == [(0, 0), (0, 11), (1, 0), (2, 7)]
  assert joined[12].audio is None and joined[32].video is None and joined[13].video[0, 0, 0, 0] == 201
  with pytest.raises(IndexError, match='clip 40 of 40'):
    joined[40]


def test_every_epoch_holds_each_data_set_by_its_weight_in_mixed_rows():
  source = rows([1.0, 0.5, 2.0])
  for epoch in range(3):
    first = epoch * source.rows_per_epoch
    held = [clips_in(source[first + r]) for r in range(source.rows_per_epoch)]
    kinds = collections.Counter(clip // 100 for row in held for clip in row)
    assert kinds == {1: 12, 2: 10, 3: 16}
    assert sum(len({clip // 100 for clip in row}) > 1 for row in held) > len(held) / 2
  both = collections.Counter(clip for r in range(2 * source.rows_per_epoch) for clip in clips_in(source[r]))
  assert all(both[clip] == 1 for clip in range(200, 220)) and all(both[clip] == 4 for clip in range(300, 308))


def test_a_global_row_number_is_the_whole_state():
  a, b = rows([1.0, 0.5, 2.0]), rows([1.0, 0.5, 2.0])
  for row in (0, 5, 40, 41):
    for x, y in zip(a[row], b[row]):
      np.testing.assert_array_equal(x, y)


def test_data_of_a_config():
  assert mixing.parts('folder') == (DataConfig('folder', 1.0),)
  several = (DataConfig('a'), DataConfig('b', 0.5))
  assert mixing.parts(several) == several
  with pytest.raises(ValueError, match='no data set'):
    mixing.parts(())
  with pytest.raises(ValueError, match='weight=0 of x'):
    DataConfig('x', 0)
