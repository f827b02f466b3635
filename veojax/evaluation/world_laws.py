"""Does a clip obey the world's laws? Permanence, gravity, error against the record, and synchrony of sound and picture.

Conventions: widths, seconds, y down. Times in the result are in milliseconds where the name says so. A metric that is
undefined for a clip (no track in flight, no impact) is NaN: average with nanmean and print how many are defined.

A visual impact is where two free flights meet: second differences that are not gravity flag frames; with p(t) before
and after on parabolas of the same g, their mismatch is linear in t, so its least-squares zero is in closed form.
"""
import numpy as np

from veojax.data.captions import VISIBLE, screen
from veojax.evaluation import sound_parser, world_parser
from veojax.evaluation.world_parser import Parse
from veojax.types import Clip

TOLERANCE = .05  # seconds, whatever the frame rate: one frame of a slow clip would forgive a late sound
MERGE = .03      # seconds within which impacts are one
FLAG = .14       # widths/s: change of velocity between frames that is not free flight


def measure(clip: Clip, info: dict) -> dict[str, float]:
  """Scores of a clip against the record of the scene that it should show.

  count_constancy, permanence: shares of frames with the right number of objects, and of objects that are never missing.
  g_err: relative error of the gravity of flights (without gravity: its absolute value). pos_err (widths), vel_err
  (widths/s): mean errors against the record. f1, impact_has_sound, sound_has_impact: synchrony within 50 ms. bias_ms:
  median delay of the sound, of matches within 150 ms.
  """
  parse = world_parser.parse(clip.video, clip.fps)
  frames = min(parse.num_frames, info['num_frames'])
  due = np.array([o['visibility'] for o in info['objects']])[:, :frames] >= VISIBLE
  tracks = [parse.tracks.get(o['colour']) for o in info['objects']]
  present = np.array([t.present[:frames] if t is not None else np.zeros(frames, bool) for t in tracks])
  result = {
    'count_constancy': float(np.mean(parse.counts[:frames] == due.sum(0))),
    'permanence': float(np.mean([(p | ~d).all() for p, d in zip(present, due)])),
    'g_err': _gravity_error(parse, info['gravity']),
  }
  result |= _errors_against(info, tracks, frames, parse.fps)
  if clip.audio is not None:
    seen = visual_impacts(parse, info['gravity'])
    result |= synchrony(seen, sound_parser.onsets(clip.audio, clip.sample_rate))
  return result


def visual_impacts(parse: Parse, gravity: float) -> np.ndarray:
  """Times float[N] of the impacts of all tracks that two free flights enclose, merged within 30 ms."""
  times = []
  for track in parse.tracks.values():
    times += _impacts_of(track.positions, parse.fps, gravity)
  merged = []
  for t in sorted(times):
    if not merged or t - merged[-1] > MERGE:
      merged.append(t)
  return np.array(merged)


def synchrony(seen: np.ndarray, heard: np.ndarray) -> dict[str, float]:
  """f1, impact_has_sound, sound_has_impact and bias_ms of impacts float[N] and onsets float[M], in seconds."""
  matches = len(_match(seen, heard, TOLERANCE))
  delays = _match(seen, heard, .15)
  share = lambda total: matches / total if total else float('nan')
  return {
    'f1': share((len(seen) + len(heard)) / 2),
    'impact_has_sound': share(len(seen)),
    'sound_has_impact': share(len(heard)),
    'bias_ms': float(np.median(delays) * 1e3) if delays else float('nan'),
  }


def _match(seen: np.ndarray, heard: np.ndarray, tolerance: float) -> list[float]:
  """Delays of one-to-one matches, taken greedily by their size."""
  delay = heard[None, :] - seen[:, None]
  left, found = np.abs(delay), []
  while left.size and left.min() <= tolerance:
    i, j = np.unravel_index(left.argmin(), left.shape)
    found.append(float(delay[i, j]))
    left[i, :] = left[:, j] = np.inf
  return found


def _impacts_of(p: np.ndarray, fps: float, gravity: float) -> list[float]:
  """Impact times of one track float[T, 2], by runs of up to three flagged frames between two free flights."""
  off = (p[2:] - 2 * p[1:-1] + p[:-2]) * fps**2 - (0, gravity)
  # Entry k of the padded arrays belongs to frame k; at the ends and beside missing frames no flight is known.
  size = np.concatenate([[np.nan], np.hypot(*off.T), [np.nan]])
  flagged, free = size > FLAG * fps, size <= FLAG * fps
  times, k = [], 0
  while k < len(size):
    end = k
    while end < len(size) and flagged[end]:
      end += 1
    if 1 <= end - k <= 3 and k > 0 and end < len(size) and free[k - 1] and free[end]:
      first, last = k, end - 1
      # Velocities at the two frames, of the parabolas through them and the frames before and after.
      before = (p[first] - p[first - 1]) * fps + (0, gravity / (2 * fps))
      after = (p[last + 1] - p[last]) * fps - (0, gravity / (2 * fps))
      span = (last - first) / fps
      # Mismatch at time t after `first`: p0 + v0 t + g t²/2 - (p1 + v1 (t - span) + g (t - span)²/2) = d + e t.
      d = p[first] - p[last] + after * span - np.array((0, gravity * span**2 / 2))
      e = before - after + np.array((0, gravity * span))
      times.append(float(first / fps - d @ e / max(e @ e, 1e-12)))
    k = end + 1
  return times


def _gravity_error(parse: Parse, gravity: float) -> float:
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


def _errors_against(info: dict, tracks: list, frames: int, fps: float) -> dict[str, float]:
  """pos_err and vel_err over the frames in which an object is nearly whole in the record and found in the clip."""
  errors = {'pos_err': [], 'vel_err': []}
  for o, track in zip(info['objects'], tracks):
    if track is None:
      continue
    truth = screen(info, o['positions'])[:frames]
    whole = (np.array(o['visibility'])[:frames] > .99) & track.present[:frames]
    off = np.where(whole[:, None], track.positions[:frames] - truth, np.nan)
    errors['pos_err'].append(np.hypot(*off.T))
    errors['vel_err'].append(np.hypot(*np.diff(off, axis=0).T) * fps)
  joined = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in errors.items()}
  return {name: float(v[np.isfinite(v)].mean()) if np.isfinite(v).any() else float('nan') for name, v in joined.items()}
