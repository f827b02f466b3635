"""A clip of the world: picture, sound, caption and the exact record, from one seed.

Clip.info is JSON: the scene, every object's positions and velocities per frame (world coordinates, see `world`), its
segments of motion (as in `world_physics.Record`, so any moment can be had from them), its visible fraction per frame,
the events with exact times, the rings that sound, the camera, and under 'fields' what the caption may speak of.
"""
import numpy as np

from veojax.data import captions, world_view
from veojax.data.world import SPLITS, WorldConfig
from veojax.data.world_physics import Record, simulate
from veojax.data.world_render import picture
from veojax.data.world_scene import sample
from veojax.data.world_sound import impacts, sound
from veojax.types import Clip


def make(seed: int, config: WorldConfig, density: str | None = None) -> Clip:
  """The clip of this seed with its caption. density: 'short', 'normal' or 'dense'; None draws one."""
  return captioned(simulate(sample(seed, config)), density)


def captioned(record: Record, density: str | None = None) -> Clip:
  """Picture, sound and caption of a record."""
  clip, scene = render(record), record.scene
  clip.info['fields'] = captions.fields(clip.info)
  # A third stream beside the scene's format and content: wording never shifts what is shown.
  rng = np.random.default_rng([scene.seed, SPLITS.index(scene.split), 2])
  clip.text = captions.write(clip.info['fields'], rng, density)
  return clip


def render(record: Record) -> Clip:
  """Picture and sound of a record, without a caption."""
  scene = record.scene
  audio = sound(record)
  return Clip(
      video=picture(record), audio=audio, fps=float(scene.fps),
      sample_rate=scene.sample_rate if audio is not None else 0, info=describe(record))


def describe(record: Record) -> dict:
  """The record in plain JSON types."""
  scene = record.scene
  times = scene.frame_times
  positions, velocities = record.states(times)
  seen = world_view.visibility(record, times)
  objects = []
  for i, thing in enumerate(scene.objects):
    objects.append({
        'shape': thing.shape, 'colour': thing.colour, 'size': thing.size, 'material': thing.material,
        'mass': thing.mass, 'restitution': thing.restitution, 'friction': thing.friction, 'radius': thing.radius,
        'half_width': thing.half_width, 'positions': positions[:, i].tolist(), 'velocities': velocities[:, i].tolist(),
        'visibility': seen[:, i].tolist(), 'segments': record.segments[i].tolist(), 'modes': list(record.modes[i])})
  events = [{
      'time': event.time, 'frame': int(event.time * scene.fps), 'kind': event.kind, 'instances': list(event.instances),
      'impulse': event.impulse, 'speed': event.speed, 'position': list(event.position), 'normal': list(event.normal),
      'side': event.side} for event in record.events]
  sounds = [{
      'time': one.time, 'instance': one.instance, 'impulse': one.impulse, 'x': one.x, 'gains': list(one.gains)}
      for one in impacts(record)]
  keys = [dict(zip(('time', 'x', 'y', 'zoom'), map(float, key))) for key in scene.camera.keys]
  return {
      'seed': int(scene.seed), 'split': scene.split, 'level': scene.level, 'content': scene.content,
      'fps': float(scene.fps), 'sample_rate': int(scene.sample_rate), 'num_frames': scene.num_frames,
      'height': scene.height, 'width': scene.width, 'duration': scene.duration,
      'gravity': scene.gravity, 'rest_speed': scene.rest_speed, 'walls': scene.walls,
      'ceiling': scene.ceiling, 'objects': objects, 'events': events, 'sounds': sounds,
      'visibility_events': world_view.visibility_events(record),
      'occluders': [{'x0': x0, 'x1': x1} for x0, x1 in scene.occluders],
      'camera': {'move': scene.camera.move, 'ease': scene.camera.ease, 'keys': keys,
                 'values': scene.camera.path(times).tolist()}}
