"""Ways to spoil a true clip of the world, and the metrics that each must move, and which way: the parser's own test.

A metric that a perturbation's line of MATRIX does not name stays where it is, within TOLERANCE of its mean over the
clips; one that it names moves by more. Some follow from others: with an object gone, or in slow motion, sounds have no
impacts any more, and what matches then is chance; where nothing is in free flight there are no impacts at all. Under a
moving camera laws and impacts are read through its recovered path.

Each is done to clips of the levels that show what it spoils (SCENES), and is held to these as they were.

    python -m veojax.evaluation.world_perturbations [--num_clips=16]

prints every difference; of the rarer levels a quarter as many clips are looked at.
"""
import dataclasses
import sys

import numpy as np
from rich import console, table

from veojax.data import world, world_clip, world_physics
from veojax.data.world_scene import sample
from veojax.evaluation import world_judge
from veojax.types import Clip

UP, DOWN, NONE, CHANCE = 'up', 'down', 'undefined', 'by chance'  # what a metric does; by chance: either way, or not


def scenes(levels: tuple[str, ...], num: int) -> list[tuple[Clip, world_physics.Record]]:
  """True clips that say all of their objects, with their records. Those with a pillar go on for as long again, until
  what is behind it is overdue; what rolls is alone."""
  out = []
  for seed in range(num):
    level = levels[seed % len(levels)]
    scene = sample(seed, world.WorldConfig(levels=(level,), split='test', num_frames=33,
                                           max_objects=1 if level == 'L5' else 3))
    if scene.occluders:
      scene = dataclasses.replace(scene, num_frames=2 * scene.num_frames - 1)
    record = world_physics.simulate(scene)
    out.append((world_clip.captioned(record, 'dense'), record))
  return out


def changed(record, **changes) -> Clip:
  """The clip of the scene with some of its fields changed, and solved anew."""
  return world_clip.render(world_physics.simulate(dataclasses.replace(record.scene, **changes)))


def _objects(record, change) -> Clip:
  things = tuple(change(i, thing) for i, thing in enumerate(record.scene.objects))
  return world_clip.render(dataclasses.replace(record, scene=dataclasses.replace(record.scene, objects=things)))


def _without_first(clip, record, start: int) -> Clip:
  """The first object is gone from this frame on."""
  far = record.segments[0] + np.array([0, 10, 0, 0, 0, 0, 0])  # ten widths to the right
  gone = world_clip.render(dataclasses.replace(record, segments=(far, *record.segments[1:]))).video
  return dataclasses.replace(clip, video=np.concatenate([clip.video[:start], gone[start:]]))


def vanish(clip, record, others) -> Clip:
  """The first object is gone in the second half."""
  return _without_first(clip, record, len(clip.video) // 2)


def no_exit(clip, record, others) -> Clip:
  """The first object, which passes behind the pillar, does not come out."""
  return _without_first(clip, record, clip.info['objects'][0]['visibility'].index(0))


def backwards(clip, record, others) -> Clip:
  """The camera's move reversed in time, over the same scene."""
  scene = record.scene
  (start, *first), (end, *last) = scene.camera.keys
  camera = dataclasses.replace(scene.camera, keys=((start, *last), (end, *first)))
  moved = dataclasses.replace(record, scene=dataclasses.replace(scene, camera=camera))
  return dataclasses.replace(clip, video=world_clip.render(moved).video)


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


def stranger(clip, record, others) -> Clip:
  """In the last two frames the first object has a colour that no object of the scene has."""
  free = next(c for c in world.COLOURS if c not in {thing.colour for thing in record.scene.objects})
  other = _objects(record, lambda i, t: dataclasses.replace(t, colour=free) if i == 0 else t)
  return dataclasses.replace(clip, video=np.concatenate([clip.video[:-2], other.video[-2:]]))


def double(clip, record, others) -> Clip:
  """In the second half there are two of the first object, the other one to its side and behind all else."""
  scene, half = record.scene, len(clip.video) // 2
  x = record.states(scene.frame_times[half:])[0][:, 0, 0].mean()
  aside = record.segments[0] + np.array([0, .4 if x < .5 else -.4, 0, 0, 0, 0, 0])
  two = dataclasses.replace(record, segments=(aside, *record.segments), modes=(record.modes[0], *record.modes),
                            scene=dataclasses.replace(scene, objects=(scene.objects[0], *scene.objects)))
  return dataclasses.replace(clip, video=np.concatenate([clip.video[:half], world_clip.render(two).video[half:]]))


class Dull(world.Object):
  """An object that a bounce leaves less of its speed than its material says."""

  @property
  def restitution(self) -> float:
    return .8 * super().restitution


class Slippery(world.Object):
  """An object that rolling slows less than its material says."""

  @property
  def friction(self) -> float:
    return .5 * super().friction


def made_of(kind: type[world.Object]):
  """The scene with objects of another kind, seen and heard."""
  def other(clip, record, others) -> Clip:
    return changed(record, objects=tuple(kind(**vars(thing)) for thing in record.scene.objects))
  return other


def soft_is_loud(clip, record, others) -> Clip:
  """The softer an impact is, the louder it sounds: the hardest as the softest did, and so on."""
  impulses = [event.impulse for event in record.events]
  ends = min(impulses) + max(impulses)
  events = tuple(dataclasses.replace(event, impulse=ends - event.impulse) for event in record.events)
  return dataclasses.replace(clip, audio=world_clip.render(dataclasses.replace(record, events=events)).audio)


def pixel_noise(clip, record, others) -> Clip:
  """Noise of deviation .03, in RGB from 0 to 1."""
  noise = np.random.default_rng(record.scene.seed).normal(0, .03 * 255, clip.video.shape)
  return dataclasses.replace(clip, video=np.clip(clip.video + noise, 0, 255).round().astype(np.uint8))


PERTURBATIONS = {
    'vanish': vanish, 'swap': swap, 'shuffle': shuffle, 'gravity x 0.7': light_gravity, 'sound + 40 ms': late(.04),
    'sound + 100 ms': late(.1), "another clip's sound": foreign_sound, 'every second impact silent': half_silent,
    'slow motion': slow_motion, 'wrong shape': wrong_shape, 'stranger': stranger, 'pixel noise': pixel_noise,
    'no exit': no_exit, "camera's move reversed": backwards, 'sound in silence': foreign_sound, 'double': double,
    'restitution x 0.8': made_of(Dull), 'softer is louder': soft_is_loud, 'friction x 0.5': made_of(Slippery),
}
FALLING = ('L2', 'L3')
RARE = 4  # times fewer clips of the other levels
SCENES = dict.fromkeys(PERTURBATIONS, FALLING) | {
    'no exit': ('L4',), "camera's move reversed": ('L7',), 'sound in silence': ('L0',),
    'restitution x 0.8': ('L2',), 'softer is louder': ('L2',), 'friction x 0.5': ('L5',)}
UNHEARD = {'f1': DOWN, 'impact_has_sound': DOWN, 'sound_has_impact': DOWN, 'offset': UP, 'bias': CHANCE, 'told': DOWN,
           'material': DOWN, 'all_right': DOWN, 'sound_material': DOWN, 'sound_size_error': UP, 'pan_error': UP}
CAPTIONED = ('colour', 'shape', 'size', 'count', 'direction', 'all_right', 'told')
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
    # What falls at a quarter of its pace looks held up, and collisions of such objects are not pairs' alone.
    'slow motion': {**STRAYED, **UNHEARD, 'gravity_error': UP, 'energy_gain': UP, 'momentum_error': NONE,
                    'loudness': CHANCE},
    'wrong shape': {'shape': DOWN, 'told': DOWN, 'all_right': DOWN},
    # No impact is known to sound alone while another object is out of sight, as the stranger is at first.
    'stranger': {'spurious': UP, 'permanence': DOWN, 'f1': DOWN, 'sound_has_impact': DOWN, **dict.fromkeys(
        ('material', 'sound_material', 'sound_size_error', 'loudness', 'pan_error'), NONE)},
    'pixel noise': {},
    # It is to be seen in too few frames to be one of the caption's objects; the others' laws and sounds are left.
    'no exit': {**dict.fromkeys(('reappearance', 'permanence', 'count_constancy', *CAPTIONED, 'f1', 'sound_has_impact'),
                                DOWN), 'sound_size_error': CHANCE, 'loudness': NONE, 'friction_error': NONE},
    # Laws and sizes are told as seen from where the record has the camera begin, which is elsewhere now.
    "camera's move reversed": {
        **STRAYED, 'camera_move': DOWN, 'camera_pan_error': UP, 'camera_zoom_error': UP,
        **dict.fromkeys(('gravity_error', 'restitution_error', 'energy_gain', 'f1', 'impact_has_sound', 'told', 'size',
                         'sound_has_impact', 'offset', 'bias', 'material', 'all_right'), CHANCE)},
    'sound in silence': {'noise': UP, 'told': DOWN},
    'double': {'spurious': UP},
    # All of single objects: where several collide, other motion leaves other collisions, and other sounds stand alone.
    'restitution x 0.8': {**STRAYED, 'restitution_error': UP},
    'softer is louder': {'loudness': DOWN},
    # Over the sound of rolling a pitch is told by chance.
    'friction x 0.5': {**STRAYED, 'friction_error': UP, 'sound_size_error': CHANCE},
}
TOLERANCE = dict.fromkeys(world_judge.METRICS, .05) | {
    'told': .015, 'spurious': .01, 'teleports': .005, 'gravity_error': .02, 'energy_gain': .02, 'position_error': .005,
    'velocity_error': .01, 'sound_size_error': .03, 'pan_error': .04, 'loudness': .15, 'offset': 4., 'bias': 4.,
    'camera_pan_error': .02, 'camera_zoom_error': .02}


def means(num_clips: int) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
  """{perturbation: ({metric: mean over the true clips that define it}, the same of the spoilt ones)}, of num_clips
  falling scenes, and a quarter as many of the other levels."""
  truths = {levels: scenes(levels, num_clips if set(levels) <= set(FALLING) else max(1, num_clips // RARE))
            for levels in dict.fromkeys(SCENES.values())}
  unspoilt = {levels: _mean([(clip, clip) for clip, _ in pairs]) for levels, pairs in truths.items()}
  out = {}
  for name, spoil in PERTURBATIONS.items():
    pairs = []
    for i, (clip, record) in enumerate(truths[SCENES[name]]):
      others = truths[FALLING][(i + 2) % num_clips][0]  # of the same level, if both are FALLING
      pairs.append((dataclasses.replace(spoil(clip, record, others), text=clip.text), clip))
    out[name] = unspoilt[SCENES[name]], _mean(pairs)
  return out


def _mean(pairs: list[tuple[Clip, Clip]]) -> dict[str, float]:
  """Of clips, each held to a true one."""
  rows = [world_judge.judge(world_judge.see(clip), truth) for clip, truth in pairs]
  return {m: float(np.mean([v[m] for v in rows if m in v])) for m in world_judge.METRICS if any(m in v for v in rows)}


def agrees(found: dict, name: str, metric: str) -> bool:
  """Whether a perturbation does what MATRIX says to a metric that its true clips define; found: of `means`."""
  expected, (truth, spoilt) = MATRIX[name].get(metric), found[name]
  if metric not in spoilt:
    return expected in (NONE, CHANCE)
  gap, tolerance = spoilt[metric] - truth[metric], TOLERANCE[metric]
  return {UP: gap > tolerance, DOWN: gap < -tolerance, NONE: False, CHANCE: True, None: abs(gap) <= tolerance}[expected]


def main(*options: str):
  from veojax import arguments
  found = means(int(arguments.parse(list(options)).get('num_clips', 16)))
  out = table.Table(title='Difference from the truth; bold moves, as MATRIX says', title_justify='left')
  out.add_column('metric', no_wrap=True)
  first = {levels: name for name, levels in reversed(SCENES.items())}
  for levels in first:
    out.add_column(' '.join(('truth', *levels)))
  for name in found:
    out.add_column(name)
  for metric in world_judge.METRICS:
    cells = [f'{found[name][0][metric]:.3f}' if metric in found[name][0] else '' for name in first.values()]
    cells += [_cell(found, name, metric) if metric in found[name][0] else '' for name in found]
    out.add_row(metric, *cells)
  console.Console(width=270).print(out)


def _cell(found: dict, name: str, metric: str) -> str:
  truth, spoilt = found[name]
  moved = f'{spoilt[metric] - truth[metric]:+.3f}' if metric in spoilt else 'undefined'
  right = agrees(found, name, metric)
  return f'[bold]{moved}' if metric in MATRIX[name] and right else moved if right else f'[red]{moved} (!)'


if __name__ == '__main__':
  main(*sys.argv[1:])
