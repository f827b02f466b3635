"""Everything that is measured of one clip of the world: parsed once, then judged against a scene and its caption.

A clip made from text is free in all that the text leaves open, so it is held to the caption, to the laws (of the
scene's gravity, walls and materials) and to the agreement of sound and picture; to the record of the scene only where
frames of it were given. What is undefined for a clip is left out.
"""
import dataclasses
import functools
import math

import numpy as np

from veojax.data import captions, world
from veojax.evaluation import (camera_parser, sound_parser, world_dynamics, world_heard, world_laws, world_motion,
                               world_objects, world_parser, world_score)
from veojax.evaluation.benchmark import Metric
from veojax.evaluation.world_parser import Parse
from veojax.types import Clip

METRICS = {
    'count_constancy': Metric('higher', 'share of frames that account for as many objects as the scene has', 'objects'),
    'permanence': Metric('higher', 'share of objects that are never gone but behind a pillar or past the edge',
                         'objects'),
    'reappearance': Metric('higher', 'of objects gone behind the pillar: back in time and in place', 'objects'),
    'spurious': Metric('lower', 'share of frames with an object of a colour that is not in the scene, or two of one',
                       'objects'),
    'identity_swaps': Metric('lower', 'times that objects change places or shapes', 'objects', 'per clip'),
    'colour': Metric('higher', 'share of captioned colours that are seen', 'caption'),
    'shape': Metric('higher', 'share of captioned shapes that are right', 'caption'),
    'size': Metric('higher', 'share of captioned sizes that are right', 'caption'),
    'count': Metric('higher', 'whether the number of objects is the captioned one', 'caption'),
    'direction': Metric('higher', 'share of captioned directions that are right', 'caption'),
    'material': Metric('higher', 'share of captioned materials that the impacts sound like', 'caption'),
    'all_right': Metric('higher', 'whether these six are right, those of them that can be told of a clip', 'caption'),
    'told': Metric('higher', 'share of all that the caption states that is found, softly', 'caption'),
    'gravity_error': Metric('lower', 'relative error of the acceleration in flight (absolute where there is none)',
                            'physics'),
    'restitution_error': Metric('lower', 'error of the speed that a bounce leaves, for the captioned material',
                                'physics'),
    'friction_error': Metric('lower', 'relative error of what slows a rolling object, for the captioned material',
                             'physics'),
    'momentum_error': Metric('lower', 'momentum that a collision gains or loses, relative', 'physics'),
    'energy_gain': Metric('lower', 'largest rise of the energy, relative', 'physics'),
    'teleports': Metric('lower', 'share of steps faster than anything could be', 'physics'),
    'position_error': Metric('lower', 'distance from the record of the scene', 'given frames', 'widths'),
    'velocity_error': Metric('lower', 'difference of velocity from the record', 'given frames', 'widths/s'),
    'f1': Metric('higher', 'impacts seen and onsets heard within 50 ms of each other', 'sync'),
    'impact_has_sound': Metric('higher', 'share of the impacts seen that are heard within 50 ms', 'sync'),
    'sound_has_impact': Metric('higher', 'share of the onsets heard that are seen within 50 ms', 'sync'),
    'offset': Metric('lower', 'mean distance in time of impacts and sounds within 150 ms', 'sync', 'ms'),
    'bias': Metric('zero', 'median delay of the sound, of these', 'sync', 'ms'),
    'sound_material': Metric('higher', 'share of single impacts that sound like the captioned material', 'sound'),
    'sound_size_error': Metric('lower', 'relative error of the radius that the pitch tells', 'sound'),
    'loudness': Metric('higher', 'share of pairs of impacts of one object of which the harder is the louder', 'sound'),
    'pan_error': Metric('lower', 'distance of where an impact is heard from where it is seen', 'sound', 'widths'),
    'noise': Metric('lower', 'largest level of the sound where nothing sounds', 'sound'),
    'camera_move': Metric('higher', "whether the camera's move is the captioned one", 'camera'),
    'camera_pan_error': Metric('lower', "error of the camera's mean velocity", 'camera', 'widths/s'),
    'camera_zoom_error': Metric('lower', 'error of the mean rate of its zoom', 'camera', '1/s'),
}
SYNC = ('f1', 'impact_has_sound', 'sound_has_impact', 'offset', 'bias', 'pan_error', 'loudness')  # of sound and picture
# Of what happens from frame to frame: another clip's caption says nothing of it.
ORDER = ('reappearance', 'identity_swaps', *(n for n, m in METRICS.items() if m.group in ('physics', 'given frames')))
SIX = ('colour', 'shape', 'size', 'count', 'direction', 'material')  # that make a caption all right
HEADING = .6  # of `world_motion.heads`, from which a direction is right: .03 widths/s that way


@dataclasses.dataclass(frozen=True)
class Seen:
  """A parsed clip. observation: the parse that forgives a blurred picture. strict: that for exact positions."""
  clip: Clip
  observation: world_score.Observation

  @functools.cached_property
  def strict(self) -> Parse:
    return world_parser.parse(self.clip.video, self.clip.fps)

  @functools.cached_property
  def onsets(self) -> np.ndarray:
    return sound_parser.onsets(np.nan_to_num(self.clip.audio), self.clip.sample_rate)

  @functools.cached_property
  def camera(self) -> np.ndarray:
    return camera_parser.path(self.clip.video)


def see(clip: Clip) -> Seen:
  if clip.video is None:
    raise ValueError('a clip without a picture is no clip of the world; give a model that makes pictures')
  return Seen(clip, world_score.observe(clip))


def judge(seen: Seen, truth: Clip, *, against_record: bool = True) -> dict[str, float]:
  """METRICS of a clip that should show what `truth`, a clip of `world_clip.make`, shows."""
  info, stated = truth.info, captions.read(truth.text)
  fastest = 1.5 * (math.sqrt(2 * info['gravity'] * info['height'] / info['width']) + max(
      .6, *(math.hypot(*o['velocities'][0]) for o in info['objects'])))
  colours = [o['colour'] for o in info['fields']['objects']]
  result = world_objects.measure(seen.observation.parse, colours, fastest=fastest,
                                 open_edges=not info['walls'] or info['level'] == 'L7')
  laws, observation = seen.strict, seen.observation
  if info['level'] == 'L7':
    laws, unmoved = (in_world(parse, seen.camera, info) for parse in (laws, observation.parse))
    observation = dataclasses.replace(observation, radii={
        colour: unmoved.tracks[colour].radius / world.shrinking(unmoved.aspect) for colour in observation.radii})
  impacts = world_laws.impacts(laws, info['gravity'])
  told = {o['colour']: o for o in stated['objects'] if 'colour' in o}
  record = {o['colour']: o for o in info['objects'] if o['colour'] in told}
  materials = {c: o['material'] for c, o in record.items() if 'material' in told[c]}
  result |= world_dynamics.measure(
      laws, impacts, info['gravity'], {c: record[c] for c in materials}, rest_speed=info['rest_speed'],
      fastest=fastest)
  result |= _caption(observation, stated)
  if against_record:
    result |= dict(zip(('position_error', 'velocity_error'), map(_mean, world_laws.errors(seen.strict, info))))
  if seen.clip.audio is not None:
    result |= _sound(seen, impacts, laws, info, materials,
                     {c: o['radius'] for c, o in record.items() if 'size' in told[c]})
  if info['level'] == 'L7':
    result |= _camera(seen, info, stated)
  six = [result[name] for name in SIX if name in result]
  result['all_right'] = float(all(value == 1 for value in six))
  return {name: float(result[name]) for name in METRICS if np.isfinite(result.get(name, np.nan))}


def in_world(parse: Parse, camera: np.ndarray, info: dict) -> Parse:
  """The parse with the camera's motion, as recovered from the picture, taken out of positions and areas. Where the
  camera begins is the scene's: the picture does not tell it."""
  x, y, zoom = info['camera']['values'][0]
  path = camera * (1 / zoom, 1 / zoom, zoom) + (x, y, 0)
  middle = np.array([.5, parse.aspect / 2])
  tracks = {name: dataclasses.replace(
      track, positions=(track.positions - middle) / path[:, 2:] + path[:, :2], areas=track.areas / path[:, 2]**2)
      for name, track in parse.tracks.items()}
  return dataclasses.replace(parse, tracks=tracks)


def _mean(values: np.ndarray) -> float:
  return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float('nan')


def _caption(seen: world_score.Observation, stated: dict) -> dict[str, float]:
  """All of the caption but the materials."""
  tracks = {t.colour: t for t in seen.tracks}
  right = {'count': [len(tracks) >= 1 if stated['count'] == 'some' else len(tracks) == stated['count']]}
  for o in stated['objects']:
    track = tracks.get(o.get('colour'))
    found = {'colour': track is not None, 'shape': track is not None and track.shape == o.get('shape'),
             'size': track is not None and world_parser.size(seen.radii[track.colour]) == o.get('size'),
             'direction': track is not None and all(
                 world_motion.heads(track, d, seen.parse.fps) > HEADING for d in o.get('direction', ()))}
    for name, value in found.items():
      if o.get(name):
        right.setdefault(name, []).append(value)
  told = world_score.caption_score(seen, stated)['overall']
  return {name: float(np.mean(values)) for name, values in right.items()} | {'told': told}


def _sound(seen: Seen, impacts, laws: Parse, info: dict, materials: dict, radii: dict) -> dict[str, float]:
  audio, rate = np.nan_to_num(seen.clip.audio), seen.clip.sample_rate
  sync = world_laws.synchrony(world_laws.merged(impacts), seen.onsets)
  result = {'offset': sync.pop('offset_ms'), 'bias': sync.pop('bias_ms')} | sync
  found = world_heard.heard(laws, impacts, seen.onsets, info['gravity'])
  result |= world_heard.measure(audio, rate, found, materials, radii)
  right = world_heard.caption_material(audio, rate, laws, impacts, found, seen.onsets, materials)
  if right:
    result['material'] = float(np.mean(list(right.values())))
  if info['fields']['sound'] and info['fields']['sound']['silent']:
    result['noise'] = seen.observation.loudness
  return result


def _camera(seen: Seen, info: dict, stated: dict) -> dict[str, float]:
  values = np.array(info['camera']['values'])
  fps, zoom = seen.clip.fps, values[0, 2]
  velocity, rate = camera_parser.speeds(seen.camera * (1 / zoom, 1 / zoom, 1), fps)
  asked, asked_rate = camera_parser.speeds(values, info['fps'])
  result = {'camera_pan_error': np.hypot(*(velocity - asked)), 'camera_zoom_error': abs(rate - asked_rate)}
  if 'camera' in stated:
    result['camera_move'] = camera_parser.move(seen.camera, fps) == stated['camera']
  return {name: float(value) for name, value in result.items()}
