"""Cuts: where a film changes from one shot to the next, and the spans of time that make clips of it.

The distance of two frames is the mean absolute difference of their pixels at a small size, in [0, 1]. A cut stands
before frame k where d(k-1, k) is large, stands out from its neighbours (a moving camera makes all of them large; the
adaptive rule of PySceneDetect), and lasts: after a flash, frame k+1 looks like frame k-1 again. Dissolves and fades
are not cuts.
"""
import math
from collections.abc import Iterable, Iterator

import numpy as np

SIDE = 32          # frames are compared at about this many pixels a side
SAMPLES = 4        # a side, of each of these
NEIGHBOURS = 4     # frames on either side that a cut must stand out from
PROMINENCE = 3.0   # how many times larger than its neighbours' mean
LASTING = 0.6      # of a cut's distance, that the frames on either side of it must still differ by


def thumbnail(frame_HW3: np.ndarray) -> np.ndarray:
  """uint8[H, W, 3] → float32[h, w, 3] in [0, 1], the shorter side SIDE to 2 SIDE where it was longer: block means."""
  # A few samples of each block stand for all of it: the mean of a whole 720p frame costs more than decoding it.
  step = max(1, min(frame_HW3.shape[:2]) // (SIDE * SAMPLES))
  frame_HW3 = frame_HW3[::step, ::step]
  block = max(1, min(frame_HW3.shape[:2]) // SIDE)
  h, w = (side // block for side in frame_HW3.shape[:2])
  rows = frame_HW3[:h * block, :w * block].reshape(h, block, w * block * 3).sum(1, dtype=np.int32)
  return rows.reshape(h, w, block, 3).sum(2).astype(np.float32) / (255 * block * block)


def distances(frames: Iterable[np.ndarray]) -> np.ndarray:
  """float32[T, 2]: distance of each frame to the one before, and to the one before that; 0 where there is none."""
  rows, before, earlier = [], None, None
  for frame_HW3 in frames:
    now = thumbnail(frame_HW3)
    rows.append([0.0 if other is None else float(np.abs(now - other).mean()) for other in (before, earlier)])
    before, earlier = now, before
  return np.asarray(rows, np.float32).reshape(-1, 2)


def find_cuts(distance_T2: np.ndarray, threshold: float) -> list[int]:
  """Indices of the frames that begin a new shot, from `distances`; `threshold` in [0, 1], about 0.1."""
  one, two = np.asarray(distance_T2, np.float64).T
  cuts = []
  for k in np.flatnonzero(one >= threshold):
    around = np.concatenate([one[max(1, k - NEIGHBOURS):k], one[k + 1:k + 1 + NEIGHBOURS]])
    stands_out = not around.size or one[k] >= PROMINENCE * around.mean()
    lasts = k + 1 >= len(two) or two[k + 1] >= LASTING * one[k]
    # The way back from a flash lands on a frame like the one before the flash.
    returns = k >= 2 and two[k] < LASTING * one[k]
    if stands_out and lasts and not returns:
      cuts.append(int(k))
  return cuts


def spans(duration: float, cuts: Iterable[float], max_seconds: float | None = None) -> Iterator[tuple[float, float]]:
  """(start, end) of the parts of [0, duration] between `cuts`; those above max_seconds are cut into equal parts."""
  ends = [0.0, *sorted(t for t in cuts if 0 < t < duration), duration]
  for start, end in zip(ends[:-1], ends[1:]):
    # The tolerance keeps a clip whole whose length is the limit up to rounding.
    parts = max(1, math.ceil((end - start) / max_seconds - 1e-3)) if max_seconds else 1
    edges = np.linspace(start, end, parts + 1)
    yield from ((float(a), float(b)) for a, b in zip(edges[:-1], edges[1:]))
