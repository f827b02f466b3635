"""Does a clip obey the world's laws? Permanence, gravity, error against the record, and synchrony of sound and picture.

Conventions: widths, seconds, y down. Times in the result are in milliseconds where the name says so. A metric that is
undefined for a clip (no track in flight, no impact) is NaN: average with nanmean and print how many are defined.

A visual impact is where two free flights meet: second differences that are not gravity, or not 0 where an object lies
or rolls, flag frames; with p(t) before and after on parabolas of the same g, their mismatch is linear in t, so its
least-squares zero is in closed form.
"""
import dataclasses

import numpy as np

from veojax.data.captions import VISIBLE, screen
from veojax.evaluation import sound_parser, world_parser
from veojax.evaluation.world_parser import Parse, Track
from veojax.types import Clip

TOLERANCE = .05  # seconds, whatever the frame rate: one frame of a slow clip would forgive a late sound
MERGE = .03      # seconds within which impacts are one
FLAG = .14       # widths/s: change of velocity between frames that is not free flight


def measure(clip: Clip, info: dict) -> dict[str, float]:
  """Scores of a clip against the record of the scene that it should show.

  count_constancy, permanence: shares of frames with the right number of objects, and of objects that are never missing.
  g_err: relative error of the gravity of flights (without gravity: its absolute value); NaN under a moving camera, whose
  own acceleration the picture adds to it. pos_err (widths), vel_err (widths/s): mean errors against the record. f1,
  impact_has_sound, sound_has_impact: synchrony within 50 ms. bias_ms: median delay of the sound, of matches within
  150 ms.
  """
  parse = world_parser.parse(clip.video, clip.fps)
  frames = min(parse.num_frames, info['num_frames'])
  due = np.array([o['visibility'] for o in info['objects']])[:, :frames] >= VISIBLE
  tracks = [parse.tracks.get(o['colour']) for o in info['objects']]
  present = np.array([t.present[:frames] if t is not None else np.zeros(frames, bool) for t in tracks])
  result = {
    'count_constancy': float(np.mean(parse.counts[:frames] == due.sum(0))),
    'permanence': float(np.mean([(p | ~d).all() for p, d in zip(present, due)])),
    'g_err': gravity_error(parse, info['gravity']) if info['level'] != 'L7' else float('nan'),
  }
  result |= dict(zip(('pos_err', 'vel_err'), map(_mean, errors(parse, info))))
  if clip.audio is not None:
    seen = visual_impacts(parse, info['gravity'])
    result |= synchrony(seen, sound_parser.onsets(clip.audio, clip.sample_rate))
  return result


@dataclasses.dataclass(frozen=True)
class Impact:
  """An impact of one object between two free flights: its time (seconds), place (widths), and velocities before and
  after it (widths/s). held: it lies or rolls before and after, so what holds it up takes part."""
  time: float
  colour: str
  place: np.ndarray
  before: np.ndarray
  after: np.ndarray
  held: bool


def impacts(parse: Parse, gravity: float) -> list[Impact]:
  """Of all tracks, in order of time."""
  found = [i for track in parse.tracks.values() for i in _impacts_of(track, parse.fps, gravity)]
  return sorted(found, key=lambda i: i.time)


def visual_impacts(parse: Parse, gravity: float) -> np.ndarray:
  """Times float[N] of the impacts of all tracks that two free flights enclose, merged within 30 ms."""
  return merged(impacts(parse, gravity))


def merged(found: list[Impact]) -> np.ndarray:
  times = []
  for impact in found:
    if not times or impact.time - times[-1] > MERGE:
      times.append(impact.time)
  return np.array(times)


def synchrony(seen: np.ndarray, heard: np.ndarray) -> dict[str, float]:
  """f1, impact_has_sound, sound_has_impact and bias_ms of impacts float[N] and onsets float[M], in seconds; offset_ms,
  the mean size of the delays whose median is bias_ms."""
  matches = len(match(seen, heard, TOLERANCE))
  delays = [heard[j] - seen[i] for i, j in match(seen, heard, .15)]
  share = lambda total: matches / total if total else float('nan')
  return {
    'f1': share((len(seen) + len(heard)) / 2),
    'impact_has_sound': share(len(seen)),
    'sound_has_impact': share(len(heard)),
    'bias_ms': float(np.median(delays) * 1e3) if delays else float('nan'),
    'offset_ms': float(np.mean(np.abs(delays)) * 1e3) if delays else float('nan'),
  }


def match(seen: np.ndarray, heard: np.ndarray, tolerance: float) -> list[tuple[int, int]]:
  """(number in seen, number in heard) of one-to-one matches, taken greedily by their delay."""
  left, found = np.abs(heard[None, :] - seen[:, None]), []
  while left.size and left.min() <= tolerance:
    i, j = (int(n) for n in np.unravel_index(left.argmin(), left.shape))
    found.append((i, j))
    left[i, :] = left[:, j] = np.inf
  return found


def bends(track: Track, fps: float, gravity: float | np.ndarray) -> np.ndarray:
  """float[T], widths/s²: how far the acceleration in a frame is from gravity, of all frames or float[T] of each, which
  is that of a free flight; above FLAG fps it is none. NaN at the ends and beside missing frames."""
  acceleration = _accelerations(track, fps)
  return np.hypot(acceleration[:, 0], acceleration[:, 1] - gravity)


def _accelerations(track: Track, fps: float) -> np.ndarray:
  """float[T, 2], widths/s², by second differences; NaN at the ends and beside missing frames."""
  p, result = track.positions, np.full(track.positions.shape, np.nan)
  result[1:-1] = (p[2:] - 2 * p[1:-1] + p[:-2]) * fps**2
  return result


def _pull(falling: np.ndarray, gravity: float) -> np.ndarray:
  """What of gravity an object feels in a frame, from its acceleration downwards, float[T] each, widths/s²: none where it
  is held up, which the median over five frames tells."""
  around = np.lib.stride_tricks.sliding_window_view(np.pad(falling, 2, constant_values=np.nan), 5)
  around = np.where(np.isfinite(falling)[:, None], around, 0)
  return np.where(np.abs(np.nanmedian(around, 1)) < gravity / 2, 0, gravity)


def _impacts_of(track: Track, fps: float, gravity: float) -> list[Impact]:
  """Impacts of one track, by runs of up to three flagged frames between two free flights that meet there, and differ.
  What lies or rolls flies as if nothing pulled: else what shakes it a little would flag it."""
  p, pull = track.positions, _pull(_accelerations(track, fps)[:, 1], gravity)
  size = bends(track, fps, pull)
  flagged, free = size > FLAG * fps, size <= FLAG * fps
  found, k = [], 0
  while k < len(size):
    end = k
    while end < len(size) and flagged[end]:
      end += 1
    if 1 <= end - k <= 3 and k > 0 and end < len(size) and free[k - 1] and free[end]:
      first, last, fall = k, end - 1, np.array((0, max(pull[k - 1], pull[end])))
      # Velocities at the two frames, of the parabolas through them and the frames before and after.
      before = (p[first] - p[first - 1]) * fps + fall / (2 * fps)
      after = (p[last + 1] - p[last]) * fps - fall / (2 * fps)
      span = (last - first) / fps
      # Mismatch at time t after `first`: p0 + v0 t + g t²/2 - (p1 + v1 (t - span) + g (t - span)²/2) = d + e t.
      d = p[first] - p[last] + after * span - fall * span**2 / 2
      e = before - after + fall * span
      since = -d @ e / max(e @ e, 1e-12)  # `first`
      if np.hypot(*e) >= FLAG and -1 <= since * fps <= last - first + 1:
        place = p[first] + before * since + fall * since**2 / 2
        found.append(Impact(float(first / fps + since), track.colour, place, before + fall * since,
                            after + fall * (since - span), bool(fall[1] < gravity)))
    k = end + 1
  return found


def gravity_error(parse: Parse, gravity: float) -> float:
  """Error of the median vertical acceleration over frames in flight, per track, averaged; NaN without a flight."""
  errors = []
  for track in parse.tracks.values():
    y = np.where(track.whole, track.positions[:, 1], np.nan)
    flying = np.nanmax(np.append(y, -np.inf)) - y > .01 if gravity else np.isfinite(y)
    flying[1:-1] &= flying[2:] & flying[:-2]
    acceleration = ((y[2:] - 2 * y[1:-1] + y[:-2]) * parse.fps**2)[flying[1:-1]]
    if np.isfinite(acceleration).sum() >= 3:
      errors.append(abs(np.nanmedian(acceleration) - gravity) / (gravity or 1.))
  return float(np.mean(errors)) if errors else float('nan')


def errors(parse: Parse, info: dict) -> tuple[np.ndarray, np.ndarray]:
  """Distance (widths) and difference of velocity (widths/s) from the record, float[objects, T] and float[objects, T -
  1]; NaN but where an object is nearly whole in the record and found in the clip."""
  frames = min(parse.num_frames, info['num_frames'])
  position = np.full((len(info['objects']), frames), np.nan)
  velocity = np.full((len(info['objects']), max(0, frames - 1)), np.nan)
  for i, o in enumerate(info['objects']):
    track = parse.tracks.get(o['colour'])
    if track is None:
      continue
    truth = screen(info, o['positions'])[:frames]
    whole = (np.array(o['visibility'])[:frames] > .99) & track.present[:frames]
    off = np.where(whole[:, None], track.positions[:frames] - truth, np.nan)
    position[i], velocity[i] = np.hypot(*off.T), np.hypot(*np.diff(off, axis=0).T) * parse.fps
  return position, velocity


def _mean(values: np.ndarray) -> float:
  return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float('nan')
