"""Ways to spoil a true clip of the world, and the metrics that each must move, and which way: the parser's own test.

A metric that a perturbation's line of MATRIX does not name stays where it is, within TOLERANCE of its mean over the
clips; one that it names moves by more. Some follow from others: with an object gone, or in slow motion, sounds have no
impacts any more, and what matches then is chance; where nothing is in free flight there are no impacts at all.

    python -m veojax.evaluation.world_perturbations [--num_clips=24]

prints every difference.
"""
import dataclasses
import sys

import numpy as np
from rich import console, table

from veojax.data import world, world_clip, world_physics
from veojax.data.world_scene import sample
from veojax.evaluation import world_judge
from veojax.types import Clip

LEVELS = ('L2', 'L3')
UP, DOWN, NONE, CHANCE = 'up', 'down', 'undefined', 'by chance'  # what a metric does; by chance: either way, or not


def scenes(num: int) -> list[tuple[Clip, world_physics.Record]]:
  """True clips that say all of their objects, with their records."""
  out = []
  for seed in range(num):
    config = world.WorldConfig(levels=(LEVELS[seed % 2],), split='test', num_frames=33)
    out.append((world_clip.make(seed, config, 'dense'), world_physics.simulate(sample(seed, config))))
  return out


def changed(record, **changes) -> Clip:
  """The clip of the scene with some of its fields changed, and solved anew."""
  return world_clip.render(world_physics.simulate(dataclasses.replace(record.scene, **changes)))


def _objects(record, change) -> Clip:
  things = tuple(change(i, thing) for i, thing in enumerate(record.scene.objects))
  return world_clip.render(dataclasses.replace(record, scene=dataclasses.replace(record.scene, objects=things)))


def vanish(clip, record, others) -> Clip:
  """The first object is gone in the second half."""
  far = record.segments[0] + np.array([0, 10, 0, 0, 0, 0, 0])  # ten widths to the right
  gone = world_clip.render(dataclasses.replace(record, segments=(far, *record.segments[1:]))).video
  half = len(clip.video) // 2
  return dataclasses.replace(clip, video=np.concatenate([clip.video[:half], gone[half:]]))


def swap(clip, record, others) -> Clip:
  """The first two objects change places half-way."""
  things = record.scene.objects
  if len(things) < 2:
    return clip
  colours = {0: things[1].colour, 1: things[0].colour}
  other = _objects(record, lambda i, t: dataclasses.replace(t, colour=colours.get(i, t.colour)))
  half = len(clip.video) // 2
  return dataclasses.replace(clip, video=np.concatenate([clip.video[:half], other.video[half:]]))


def shuffle(clip, record, others) -> Clip:
  """The frames in another order."""
  order = np.random.default_rng(record.scene.seed).permutation(len(clip.video))
  return dataclasses.replace(clip, video=clip.video[order])


def light_gravity(clip, record, others) -> Clip:
  """Gravity times .7, in the picture; the sound is the true one's."""
  return dataclasses.replace(clip, video=changed(record, gravity=.7 * record.scene.gravity).video)


def late(seconds: float):
  def delayed(clip, record, others) -> Clip:
    n = round(seconds * clip.sample_rate)
    return dataclasses.replace(clip, audio=np.pad(clip.audio, ((n, 0), (0, 0)))[:len(clip.audio)])
  return delayed


def foreign_sound(clip, record, others) -> Clip:
  """The sound of another clip."""
  return dataclasses.replace(clip, audio=others.audio)


def half_silent(clip, record, others) -> Clip:
  """Every second impact is silent."""
  mute = dataclasses.replace(record, events=record.events[::2])
  return dataclasses.replace(clip, audio=world_clip.render(mute).audio)


def slow_motion(clip, record, others) -> Clip:
  """Half as fast, in the picture."""
  slow = dataclasses.replace(record.scene, fps=2 * record.scene.fps)
  return dataclasses.replace(clip, video=world_clip.render(dataclasses.replace(record, scene=slow)).video)


def wrong_shape(clip, record, others) -> Clip:
  """The first object has another shape."""
  other = {'circle': 'square', 'square': 'circle', 'triangle': 'square'}
  return dataclasses.replace(clip, video=_objects(record, lambda i, t: dataclasses.replace(
      t, shape=other[t.shape]) if i == 0 else t).video)


def pixel_noise(clip, record, others) -> Clip:
  """Noise of deviation .03, in RGB from 0 to 1."""
  noise = np.random.default_rng(record.scene.seed).normal(0, .03 * 255, clip.video.shape)
  return dataclasses.replace(clip, video=np.clip(clip.video + noise, 0, 255).round().astype(np.uint8))


PERTURBATIONS = {
    'vanish': vanish, 'swap': swap, 'shuffle': shuffle, 'gravity x 0.7': light_gravity, 'sound + 40 ms': late(.04),
    'sound + 100 ms': late(.1), "another clip's sound": foreign_sound, 'every second impact silent': half_silent,
    'slow motion': slow_motion, 'wrong shape': wrong_shape, 'pixel noise': pixel_noise,
}
UNHEARD = {'f1': DOWN, 'impact_has_sound': DOWN, 'sound_has_impact': DOWN, 'offset': UP, 'bias': CHANCE, 'told': DOWN,
           'material': DOWN, 'all_right': DOWN, 'sound_material': DOWN, 'sound_size_error': UP, 'pan_error': UP}
STRAYED = {'position_error': UP, 'velocity_error': UP}
MATRIX = {
    'vanish': {'count_constancy': DOWN, 'permanence': DOWN, 'told': DOWN, 'f1': DOWN, 'sound_has_impact': DOWN,
               'loudness': CHANCE},
    'swap': {**STRAYED, 'identity_swaps': UP, 'teleports': UP, 'size': DOWN, 'told': DOWN, 'all_right': DOWN,
             'material': DOWN, 'sound_material': DOWN, 'sound_size_error': UP},
    'shuffle': {**STRAYED, 'gravity_error': UP, 'teleports': UP, 'identity_swaps': UP, 'direction': DOWN, 'told': DOWN,
                'all_right': DOWN, 'f1': DOWN, 'sound_has_impact': DOWN, 'impact_has_sound': NONE, 'offset': NONE,
                'bias': NONE, 'material': NONE, 'restitution_error': NONE, 'momentum_error': NONE, 'energy_gain': NONE,
                'sound_material': NONE, 'sound_size_error': NONE, 'loudness': NONE, 'pan_error': NONE},
    'gravity x 0.7': {**STRAYED, **UNHEARD, 'gravity_error': UP, 'energy_gain': UP, 'momentum_error': UP,
                      'loudness': CHANCE},
    'sound + 40 ms': {'offset': UP, 'bias': UP},
    # The material is still told in the caption's words, wherever it sounds.
    'sound + 100 ms': {**UNHEARD, 'bias': UP, 'loudness': NONE, 'told': CHANCE},
    "another clip's sound": {**UNHEARD, 'loudness': NONE},
    'every second impact silent': {'f1': DOWN, 'impact_has_sound': DOWN, 'sound_has_impact': UP},
    'slow motion': {**STRAYED, **UNHEARD, 'gravity_error': UP, 'energy_gain': UP, 'momentum_error': UP,
                    'loudness': CHANCE},
    'wrong shape': {'shape': DOWN, 'told': DOWN, 'all_right': DOWN},
    'pixel noise': {},
}
TOLERANCE = dict.fromkeys(world_judge.METRICS, .05) | {
    'told': .015, 'spurious': .01, 'teleports': .005, 'gravity_error': .02, 'energy_gain': .02, 'position_error': .005,
    'velocity_error': .01, 'sound_size_error': .03, 'pan_error': .04, 'loudness': .15, 'offset': 4., 'bias': 4.}


def means(num_clips: int) -> dict[str, dict[str, float]]:
  """{'truth' or a perturbation: {metric: mean over the clips that define it}}."""
  truths = scenes(num_clips)
  rows = {'truth': [world_judge.judge(world_judge.see(clip), clip) for clip, _ in truths]}
  for name, spoil in PERTURBATIONS.items():
    rows[name] = []
    for i, (clip, record) in enumerate(truths):
      others = truths[(i + 2) % len(truths)][0]  # of the same level
      spoilt = dataclasses.replace(spoil(clip, record, others), text=clip.text)
      rows[name].append(world_judge.judge(world_judge.see(spoilt), clip))
  return {name: {m: float(np.mean([v[m] for v in part if m in v])) for m in world_judge.METRICS
                 if any(m in v for v in part)} for name, part in rows.items()}


def agrees(found: dict, name: str, metric: str) -> bool:
  """Whether a perturbation does to a metric what MATRIX says; found: of `means`."""
  expected = MATRIX[name].get(metric)
  if metric not in found[name]:
    return expected == NONE
  gap, tolerance = found[name][metric] - found['truth'][metric], TOLERANCE[metric]
  return {UP: gap > tolerance, DOWN: gap < -tolerance, NONE: False, CHANCE: True, None: abs(gap) <= tolerance}[expected]


def main(*options: str):
  from veojax import arguments
  found = means(int(arguments.parse(list(options)).get('num_clips', 24)))
  out = table.Table(title='Difference from the truth; bold moves, as MATRIX says', title_justify='left')
  out.add_column('metric')
  for name in found:
    out.add_column(name)
  for metric, truth in found['truth'].items():
    cells = [f'{truth:.3f}']
    for name in PERTURBATIONS:
      moved = f'{found[name][metric] - truth:+.3f}' if metric in found[name] else 'undefined'
      right = agrees(found, name, metric)
      cells.append(f'[bold]{moved}' if metric in MATRIX[name] and right else moved if right else f'[red]{moved} (!)')
    out.add_row(metric, *cells)
  console.Console(width=200).print(out)


if __name__ == '__main__':
  main(*sys.argv[1:])
