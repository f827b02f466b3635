"""Which clips share a row.

An epoch's rows are planned from the index of lengths alone, as a pure function of (seed, epoch), and every epoch has
the same number of rows. So a global row number says by one division which epoch and which clips it is made of.
"""
import bisect
import dataclasses
import heapq

import numpy as np

from veojax.data.packing import PackConfig

SHUFFLE, SHUFFLE_ROWS = 1, 2  # streams of random numbers, so that one seed serves several uses
MAX_OPEN_ROWS = 256  # rows kept open while an epoch is planned: more fill better and take longer
# Clips of a shuffled block, and what it is sorted by: all tokens (0) fill best, text (1) where text is what runs short.
ORDERS = ((64, 0), (16, 1))


@dataclasses.dataclass(frozen=True)
class Rows:
  """Which clips stand in each row of an epoch: row r holds clips[start[r]:start[r + 1]]."""
  clips: np.ndarray  # int64[number of clips]
  start: np.ndarray  # int64[number of rows + 1]

  def __len__(self):
    return len(self.start) - 1

  def __getitem__(self, row: int) -> np.ndarray:
    return self.clips[self.start[row]:self.start[row + 1]]


def plan(lengths: np.ndarray, config: PackConfig, seed: int, epoch: int, rows: int | None = None,
         bound: np.ndarray | None = None) -> Rows:
  """Rows of an epoch: every clip exactly once, always `num_rows(bound, config, seed)` rows (pass it where known).

  lengths: int[N, 2], for each clip its tokens and the text tokens among them. bound: the lengths that no epoch's
  exceed, where they change from epoch to epoch. Best fit over a shuffled order (Johnson 1974), so which clips meet
  differs from epoch to epoch.
  """
  bound = lengths if bound is None else bound
  rows = num_rows(bound, config, seed) if rows is None else rows
  for attempt in range(4):
    bins = _fewest(lengths, config, seed, epoch, attempt)
    if len(bins) <= rows:
      break
  else:
    bins = _fewest(bound, config, seed, 0, 0)
  _split(bins, rows)
  bins = [bins[i] for i in np.random.default_rng([seed, SHUFFLE_ROWS, epoch]).permutation(rows)]
  start = np.cumsum([0] + [len(b) for b in bins])
  return Rows(np.concatenate([np.array(b, np.int64) for b in bins]), start)


def num_rows(lengths: np.ndarray, config: PackConfig, seed: int) -> int:
  """Rows of every epoch: enough for the plans of the first few epochs as they come.

  A later epoch that comes out longer is shuffled again, and at last takes the rows of epoch 0, which are known to do;
  one that comes out shorter has some of its rows split.
  """
  _check(lengths, config)
  probes = min(8, max(1, 100_000 // len(lengths)))
  most = max(len(_fewest(lengths, config, seed, epoch, 0)) for epoch in range(probes))
  return min(len(lengths), most + most // 500)


def _check(lengths, config):
  if not len(lengths):
    raise ValueError('there are no clips to pack; prepare some, or see why all of them were left out')
  if lengths[:, 0].min() < 1 or lengths[:, 0].max() > config.row_tokens or lengths[:, 1].max() > config.text_tokens:
    raise ValueError(f'clips of {lengths[:, 0].min()} to {lengths[:, 0].max()} tokens, at most {lengths[:, 1].max()} '
                     f'of them text, do not fit rows of {config.row_tokens} tokens, {config.text_tokens} of them text; '
                     'raise row_tokens and text_tokens, or prepare shorter or smaller clips')


def _fewest(lengths, config, seed, epoch, attempt) -> list[list[int]]:
  """The better of the plans that the orders give."""
  shuffled = np.random.default_rng([seed, SHUFFLE, epoch, attempt]).permutation(len(lengths))
  return min((_best_fit(_order(shuffled, lengths, *order), lengths, config) for order in ORDERS), key=len)


def _order(shuffled, lengths, size, by):
  """A shuffled order, in short blocks the longest first: they fill better, and who meets whom is left to chance."""
  blocks = np.array_split(shuffled, max(8, len(shuffled) // size))
  return np.concatenate([block[np.argsort(-lengths[block, by], kind='stable')] for block in blocks])


def _best_fit(order, lengths, config) -> list[list[int]]:
  """Each clip in turn into the fullest open row that still takes it."""
  tokens, text = lengths[:, 0].tolist(), lengths[:, 1].tolist()
  smallest, smallest_text = min(tokens), min(text)
  bins, text_room = [], []
  open_rows = []  # sorted (room, row)
  for clip in order.tolist():
    at = bisect.bisect_left(open_rows, (tokens[clip], -1))
    while at < len(open_rows) and text_room[open_rows[at][1]] < text[clip]:
      at += 1
    if at < len(open_rows):
      room, row = open_rows.pop(at)
    else:
      room, row = config.row_tokens, len(bins)
      bins.append([])
      text_room.append(config.text_tokens)
    bins[row].append(clip)
    room -= tokens[clip]
    text_room[row] -= text[clip]
    if room >= smallest and text_room[row] >= smallest_text and len(bins[row]) < config.max_clips:
      bisect.insort(open_rows, (room, row))
      if len(open_rows) > MAX_OPEN_ROWS:
        del open_rows[0]
  return bins


def _split(bins, rows):
  """Moves clips out of the rows with the most of them until there are `rows` rows."""
  heap = [(-len(b), i) for i, b in enumerate(bins)]
  heapq.heapify(heap)
  while len(bins) < rows:
    size, i = heapq.heappop(heap)
    assert size < -1, (size, rows)
    bins.append([bins[i].pop()])
    heapq.heappush(heap, (size + 1, i))
