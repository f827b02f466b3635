"""Which clips an epoch holds, where some are wanted more often than others.

With weight 1 a clip is in every epoch once, with 2 twice, with 0.25 in every fourth. For a weight p/q in lowest terms
the clips of that weight are sorted by length, and each q of them form a block, of which an epoch takes the next p in
turn.
Epochs then differ in their clips and hardly in their lengths: each has the same number of places, and no place is ever
taken by a clip longer than its bound. The last block of a weight may have fewer clips; what an epoch takes of it is
rounded, to at least one.
"""
import fractions

import numpy as np

BLOCKS = 6  # stream of random numbers; packing and pipeline have those before it
LARGEST_BLOCK = 1000


class Epochs:
  """epochs[e]: int64[number of places], the clips of epoch e by number.

  lengths: int[N, 2] and weights: float[N], of every clip. bound: int[number of places, 2], what no epoch exceeds.
  """

  def __init__(self, lengths: np.ndarray, weights: np.ndarray, seed: int):
    self.tables, bounds = [], []  # (clips of blocks int64[number, size], how many of each an epoch takes)
    for weight in np.unique(weights).tolist():
      clips = np.flatnonzero(weights == weight)
      share = fractions.Fraction(weight).limit_denominator(LARGEST_BLOCK)
      for blocks in _blocks(clips[np.argsort(lengths[clips, 0], kind='stable')], share.denominator):
        rng = np.random.default_rng([seed, BLOCKS, len(self.tables)])
        take = max(1, round(share * blocks.shape[1]))
        self.tables.append((rng.permuted(blocks, axis=1), take))
        bounds.append(np.repeat(lengths[blocks].max(1), take, 0))
    self.bound = np.concatenate(bounds)

  def __getitem__(self, epoch: int) -> np.ndarray:
    return np.concatenate([blocks[:, (epoch * take + np.arange(take)) % blocks.shape[1]].reshape(-1)
                           for blocks, take in self.tables])


def _blocks(clips, size):
  """Clips as blocks [number, size], and what is left as one smaller block."""
  whole = len(clips) // size * size
  return [blocks for blocks in (clips[:whole].reshape(-1, size), clips[whole:][None]) if blocks.size]
