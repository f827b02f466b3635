"""What tracks do: reversals (impacts as sharp turns), named motions and directions, resting, leaving and hiding.

Conventions: widths and seconds, y down, frame k at k / fps. Everything here is soft or needs only signs, so it holds
on clips of models whose physics is not exact yet; the exact laws are measured elsewhere.
"""
import dataclasses

import numpy as np

from veojax.evaluation.world_parser import Parse, Track

TURN = .12   # widths/s: least change of speed that is an impact
REACH = .07  # widths: how near a side an object must be for its turn to be an impact with it


@dataclasses.dataclass(frozen=True)
class Reversal:
  """An impact by its kind ('floor', 'ceiling', 'left', 'right', 'pair'), time in s, and the colours of its actors."""
  time: float
  kind: str
  actors: tuple[str, ...]


def reversals(tracks: list[Track], parse: Parse) -> list[Reversal]:
  """Turns of tracks at the floor, ceiling and walls, and of pairs that approach, touch and part; in order of time."""
  found = []
  for track in tracks:
    p, r = _whole(track), track.radius
    # Under a triangle's box centre the base reaches as far as the disc; to the sides 1.155 times as far.
    wide = r * (1.155 if track.shape == 'triangle' else 1.)
    for kind, towards, distance in (
      ('floor', p[:, 1], parse.aspect - r - p[:, 1]), ('ceiling', -p[:, 1], p[:, 1] - r),
      ('right', p[:, 0], 1 - wide - p[:, 0]), ('left', -p[:, 0], p[:, 0] - wide),
    ):
      found += [Reversal(t, kind, (track.colour,)) for t in _turns(towards, distance, parse.fps)]
  for i, one in enumerate(tracks):
    for two in tracks[i + 1:]:
      gap = np.hypot(*(_whole(one) - _whole(two)).T)
      times = _turns(-gap, gap - one.radius - two.radius, parse.fps)
      found += [Reversal(t, 'pair', tuple(sorted((one.colour, two.colour)))) for t in times]
  return sorted(found, key=lambda r: r.time)


def _whole(track: Track) -> np.ndarray:
  """Positions float[T, 2], NaN where the object is cut: there the centroid of the rest is not its place."""
  return np.where(track.whole[:, None], track.positions, np.nan)


def _turns(towards: np.ndarray, distance: np.ndarray, fps: float) -> list[float]:
  """Times at which motion towards a thing float[T] turns into motion away from it, near it. NaN frames are skipped.

  A turn may take one frame (the impact lies between two frames) or two. Stopping dead at the thing is a turn too.
  """
  frames = np.flatnonzero(np.isfinite(towards))
  if len(frames) < 3:
    return []
  speed = np.diff(towards[frames]) / np.diff(frames) * fps
  times, last = [], -2
  for k in range(1, len(speed)):
    before = max(speed[k - 1], speed[k - 2] if k > 1 else -np.inf)
    turns = before > TURN / 2 and speed[k] < TURN / 4 and before - speed[k] > TURN
    near = distance[frames[max(0, k - 1):k + 2]].min() < REACH
    if turns and near and k - last > 1:
      times.append(float(frames[k] / fps))
      last = k
  return times


def likeness(track: Track, motion: str, fps: float) -> float:
  """How far a track shows a named motion of the captions, in [0, 1]."""
  p = track.positions[track.whole]
  if len(p) < 3:
    return 0.
  wide, high = np.ptp(p, axis=0)
  moves = float(np.clip((max(wide, high) - .02) / .08, 0, 1))
  down = float(np.clip((p[:, 1].max() - p[0, 1]) / .1, 0, 1))
  # The greatest rise from a place that it had fallen to: with gravity only an impact, even a hidden one, does that.
  lowest = np.maximum.accumulate(p[:, 1])
  rise = float(np.clip(np.max((lowest - p[:, 1])[lowest > p[0, 1] + .03], initial=0.) / .03, 0, 1))
  if motion == 'still':
    return 1 - moves
  if motion == 'bounces':
    return moves * max(rise, .25 * down)
  if motion == 'falls':
    return moves * down * (1 - rise / 2)
  if motion in ('rolls', 'slides'):
    return moves * float(np.clip(1 - (high - .02) / .08, 0, 1))
  if motion == 'drifts':
    accelerations = np.abs(np.diff(track.positions[:, 1], 2)) * fps**2
    falling = np.nanmedian(accelerations) / 2 if np.isfinite(accelerations).any() else 0.
    return moves * float(np.clip(1.25 - falling, 0, 1))
  return moves


def heads(track: Track, direction: str, fps: float) -> float:
  """1 where the mean velocity of the first three frames is .15 widths/s or more that way, .5 at rest, 0 against."""
  frames = np.flatnonzero(track.present)[:3]
  if len(frames) < 2:
    return 0.
  velocity = (track.positions[frames[-1]] - track.positions[frames[0]]) * fps / (frames[-1] - frames[0])
  along = {'left': -velocity[0], 'right': velocity[0], 'up': -velocity[1], 'down': velocity[1]}[direction]
  return float(np.clip(.5 + along / .3, 0, 1))


def final_speed(track: Track, fps: float) -> float:
  """Mean speed over the last three frames; infinite for a track of one frame."""
  frames = np.flatnonzero(track.present)[-3:]
  if len(frames) < 2:
    return float('inf')
  step = np.hypot(*np.diff(track.positions[frames], axis=0).T)
  return float(step.sum() * fps / (frames[-1] - frames[0]))


def crosses(track: Track, side: str, way: str, parse: Parse) -> float:
  """Whether a track begins ('enter') or ends ('exit') at a side of the frame: 1 within a radius of it, 0 beyond two."""
  frames = np.flatnonzero(track.present)
  x, y = track.positions[frames[0] if way == 'enter' else frames[-1]]
  distance = {'left': x, 'right': 1 - x, 'top': y, 'bottom': parse.aspect - y}[side]
  return float(np.clip(2 - distance / track.radius, 0, 1))


def hidden(track: Track) -> float:
  """1 for a track that is away for a while or for good, else how far its area shrinks."""
  frames = np.flatnonzero(track.present)
  if len(frames) < len(track.present[frames[0]:]):
    return 1.
  return float(np.clip(2 * (1 - track.areas[frames].min() / np.median(track.areas[frames])), 0, 1))
