"""What a clip of the world shows, as one vector: for distances between sets of clips that compare no two of them."""
import numpy as np

from veojax.evaluation import world_laws
from veojax.evaluation.world_judge import Seen
from veojax.types import Clip

TIMES = (0., .5, 1.)  # of the clip, at which states are taken


def features(seen: Seen) -> np.ndarray:
  """float64[20]: at three times the number of objects, the mean and spread of their places, their area; over the clip
  their mean speeds, and how much is heard."""
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


def error_by_frame(seen: Seen, truth: Clip) -> list[list[float]]:
  """[seconds, mean distance from the record over objects] of the frames in which one is whole and found."""
  errors, _ = world_laws.errors(seen.strict, truth.info)
  return [[round(k / truth.fps, 6), round(float(at[np.isfinite(at)].mean()), 6)]
          for k, at in enumerate(errors.T) if np.isfinite(at).any()]


def plots(rows: dict) -> dict:
  """Errors over time, where clips were made of which frames were given."""
  curves = {name: [point for row in part for point in row.kept.get('error', ())] for name, part in rows.items()}
  if not curves.get('made'):
    return {}
  import matplotlib
  matplotlib.use('agg')
  import matplotlib.pyplot as plt
  figure, axes = plt.subplots(figsize=(6, 3))
  for name, points in curves.items():
    if points:
      seconds, errors = np.array(points).T
      times = np.unique(seconds)
      axes.plot(times, [errors[seconds == t].mean() for t in times], label=name)
  axes.set(xlabel='seconds', ylabel='distance from the record, widths', yscale='log')
  axes.legend()
  axes.grid(alpha=.3)
  return {'Error over time': figure}
