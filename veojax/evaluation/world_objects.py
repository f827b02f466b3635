"""Do objects stay what they are? Count, permanence (also behind a pillar), reappearance, strangers, swapped identities.

An object may be out of sight only where something hides it: at a pillar, for as long as its speed before takes to cross
it, with some to spare; or past the frame's edge, where the scene has no walls or the camera moves. All from the clip's
own pixels, so it holds for clips made from text alone, whose timing nobody has fixed.

Conventions: widths, seconds, y down; frame k at k / fps.
"""
import numpy as np

from veojax.evaluation.world_parser import Parse, Track

SLACK = 1.5          # times the crossing of a pillar may take what the speed before says
SLACK_FRAMES = 2     # and frames more
SHAPE_FRAMES = 3     # of another shape in a row that make another object
WIDE = 1.155         # half the width of a triangle, in radii


def measure(parse: Parse, colours: list[str], *, open_edges: bool, fastest: float) -> dict[str, float]:
  """colours: those of the objects that are asked for. open_edges: whether objects may leave the frame. fastest:
  widths/s that nothing in the scene reaches."""
  T = parse.num_frames
  accounted = {name: track.present | explained(track, parse, open_edges) for name, track in parse.tracks.items()}
  asked = [accounted.get(colour, np.zeros(T, bool)) for colour in colours]
  strangers = np.array([t.present for name, t in parse.tracks.items() if name not in colours]).reshape(-1, T)
  doubles = np.array([t.doubled for t in parse.tracks.values()]).reshape(-1, T)
  there = np.sum(asked, axis=0) + strangers.sum(0)
  result = {
      'count_constancy': float(np.mean(there == len(colours))),
      'permanence': float(np.mean([a.all() for a in asked])),
      'spurious': float((strangers.any(0) | doubles.any(0)).mean()),
      'identity_swaps': float(exchanges(parse, fastest) + sum(changes_of_shape(t) for t in parse.tracks.values())),
  }
  alone = len(colours) == 1  # nothing behind the pillar that could turn it round
  back = [r for colour in colours if colour in parse.tracks for r in returns(parse.tracks[colour], parse, alone)]
  return result | ({'reappearance': float(np.mean(back))} if back else {})


def gaps(track: Track) -> list[tuple[int, int]]:
  """[first, end) of the runs of frames in which the object is missing."""
  edges = np.flatnonzero(np.diff(np.concatenate([[0], ~track.present, [0]])))
  return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2])]


def explained(track: Track, parse: Parse, open_edges: bool) -> np.ndarray:
  """bool[T]: missing frames that a pillar or the frame's edge accounts for."""
  out = np.zeros(parse.num_frames, bool)
  for first, end in gaps(track):
    around = [k for k in (first - 1, end) if 0 <= k < parse.num_frames]
    if parse.pillar is not None and all(_at_pillar(track, k, parse) for k in around):
      last = end
      if end == parse.num_frames:  # it has not come back: not for longer than it may take
        last = min(end, first + round(_crossing(track, first - 1, parse) * SLACK * parse.fps) + SLACK_FRAMES)
      out[first:last] = True
    elif open_edges and all(_at_edge(track, k, parse) for k in around):
      out[first:end] = True
  return out


def returns(track: Track, parse: Parse, through: bool) -> list[bool]:
  """Of each time that the object goes behind the pillar and is due to come out before the clip ends: does it, beside
  the pillar and about when its speed before says? `through`: on the other side."""
  if parse.pillar is None:
    return []
  found = []
  for first, end in gaps(track):
    if first == 0 or not _at_pillar(track, first - 1, parse):
      continue
    late = first + round(_crossing(track, first - 1, parse) * SLACK * parse.fps) + SLACK_FRAMES
    if min(late, end) >= parse.num_frames:
      continue
    middle = np.mean(parse.pillar)
    sides = [track.positions[k, 0] > middle for k in (first - 1, end)] if end <= late else []
    found.append(bool(sides and _at_pillar(track, end, parse) and (sides[0] != sides[1] or not through)))
  return found


def exchanges(parse: Parse, fastest: float) -> int:
  """Steps in which an object stands where another one was, too far from its own place to have moved there."""
  tracks, count = list(parse.tracks.values()), 0
  for i, one in enumerate(tracks):
    for two in tracks[i + 1:]:
      a, b = one.positions, two.positions
      taken = [(_apart(x[1:], y[:-1]) < track.radius / 2) & (_apart(x[1:], x[:-1]) > fastest / parse.fps)
               for x, y, track in ((a, b, one), (b, a, two))]
      count += int((taken[0] | taken[1]).sum())
  return count


def changes_of_shape(track: Track) -> int:
  """Runs of whole frames in which the object has another shape than over the clip."""
  frames = np.flatnonzero(track.whole)
  other = track.likeness[frames].argmax(1) != track.likeness[frames].mean(0).argmax()
  edges = np.flatnonzero(np.diff(np.concatenate([[0], other, [0]])))
  return int(np.sum(edges[1::2] - edges[::2] >= SHAPE_FRAMES))


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  return np.hypot(*(a - b).T)


def _velocity(track: Track, frame: int, parse: Parse) -> float:
  """Horizontal, over the last whole frames until `frame`."""
  frames = np.flatnonzero(track.whole[:frame + 1])[-4:]
  if len(frames) < 2:
    return 0.
  x = track.positions[frames, 0]
  return float((x[-1] - x[0]) * parse.fps / (frames[-1] - frames[0]))


def _crossing(track: Track, frame: int, parse: Parse) -> float:
  """Seconds that the object needs from one side of the pillar to the other; long for one that stands."""
  way = parse.pillar[1] - parse.pillar[0] + 2 * WIDE * track.radius
  return way / max(abs(_velocity(track, frame, parse)), .02)


def _at_pillar(track: Track, frame: int, parse: Parse) -> bool:
  x, reach = track.positions[frame, 0], _reach(track, frame, parse)
  return parse.pillar[0] - reach < x < parse.pillar[1] + reach


def _at_edge(track: Track, frame: int, parse: Parse) -> bool:
  (x, y), reach = track.positions[frame], _reach(track, frame, parse)
  return min(x, 1 - x, y, parse.aspect - y) < reach


def _reach(track: Track, frame: int, parse: Parse) -> float:
  """How far from what hides it an object's middle may be in the frame beside its absence."""
  frames = np.flatnonzero(track.present)
  near = frames[np.argsort(np.abs(frames - frame))[:3]]
  step = np.hypot(*np.ptp(track.positions[near], axis=0)) if len(near) > 1 else 0.
  return WIDE * track.radius + float(step)
