"""What a clip of the world shows, as one vector: for distances between sets of clips that compare no two of them."""
import numpy as np

from veojax.evaluation import world_laws
from veojax.evaluation.world_judge import Seen
from veojax.types import Clip

ERRORS = {'position_error': 'distance from the record, widths',
          'velocity_error': 'difference of velocity, widths/s'}  # and what a plot calls them
TIMES = (0., .5, 1.)  # of the clip, at which states are taken
# Of each of `features`, the least spread that a set's distances are told in: what hardly varies in the truth would
# otherwise make any difference endless. Half an object, .05 widths, half a small object's area, .05 widths/s, one
# onset, rms .02; all below what the default levels vary by.
LEAST = np.array([.5, .05, .05, .05, .01] * len(TIMES) + [.05, .05] + [1., .02, .05])


def features(seen: Seen) -> np.ndarray:
  """float64[20]: at three times the number of objects, the mean and spread of their places, their area; over the clip
  their mean speeds; the number of onsets, the loudness and the place of the sound."""
  parse = seen.observation.parse
  tracks = list(parse.tracks.values())
  T = parse.num_frames
  places = np.array([t.positions for t in tracks]).reshape(-1, T, 2)
  areas = np.array([t.areas for t in tracks]).reshape(-1, T)
  out = []
  for time in TIMES:
    k = round(time * (T - 1))
    there = places[np.isfinite(places[:, k, 0]), k]
    middle = there.mean(0) if len(there) else np.full(2, .5)
    out += [len(there), *middle, there.std(0).mean() if len(there) else 0., areas[:, k].sum()]
  steps = np.abs(np.diff(places, axis=1)) * parse.fps
  steps = steps[np.isfinite(steps).all(-1)]
  out += list(steps.mean(0)) if len(steps) else [0., 0.]
  audible = seen.clip.audio is not None
  out += [len(seen.onsets), seen.observation.loudness, seen.observation.place] if audible else [0., 0., .5]
  return np.array(out, np.float64)


def errors_by_frame(seen: Seen, truth: Clip) -> dict[str, list[list[float]]]:
  """[seconds, mean error against the record over objects] for each of ERRORS, of the frames in which an object is whole
  and found: its distance, and the difference of its velocity, which is of two frames and stands midway."""
  position, velocity = world_laws.errors(seen.strict, truth.info)
  return {name: [[round((k + offset) / truth.fps, 6), round(float(at[np.isfinite(at)].mean()), 6)]
                 for k, at in enumerate(errors.T) if np.isfinite(at).any()]
          for name, errors, offset in zip(ERRORS, (position, velocity), (0, .5))}


def plots(rows: dict) -> dict:
  """Errors over time, where clips were made of which frames were given."""
  if not any(row.kept.get(name) for row in rows.get('made', ()) for name in ERRORS):
    return {}
  import matplotlib
  matplotlib.use('agg')
  import matplotlib.pyplot as plt
  figure, every = plt.subplots(1, len(ERRORS), figsize=(10, 3), layout='constrained')
  for axes, (name, label) in zip(every, ERRORS.items()):
    for column, part in rows.items():
      points = np.array([point for row in part for point in row.kept.get(name, ())]).reshape(-1, 2)
      if len(points):
        seconds, errors = points.T
        times = np.unique(seconds)
        axes.plot(times, [errors[seconds == t].mean() for t in times], label=column)
    axes.set(xlabel='seconds', ylabel=label, yscale='log')
    axes.legend()
    axes.grid(alpha=.3)
  return {'Errors over time': figure}
