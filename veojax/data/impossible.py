"""Possible clips of the world and impossible ones made of their parts (after IntPhys, Riochet et al. 2022).

A case is two possible clips A and B and two impossible ones: A that goes on as B, and B that goes on as A; for the
sound, A with the sound of B, and B with that of A. So both sides show and sound the same things, frame by frame and
sample by sample, and only what belongs together differs: a model that merely finds one object or colour harder than
another finds both sides equally hard.

  vanish    A passes behind a pillar, B has no object: it goes and does not come out, or comes out of nowhere
  colour, shape   A and B differ in it: it changes behind the pillar
  teleport  B stands to the side of A: in mid-air it is suddenly elsewhere
  bounce    A falls and B rises through one place at one moment: it turns in mid-air, touching nothing
  sound     B falls from another height: impacts are silent, and sounds have no impact
"""
import dataclasses

import numpy as np

from veojax.data import world_view
from veojax.data.world import COLOURS, Scene, WorldConfig
from veojax.data.world_physics import ROLLING, Record, simulate
from veojax.data.world_render import picture
from veojax.data.world_scene import sample
from veojax.data.world_sound import impacts, synthesize
from veojax.types import Clip

ATTEMPTS = 200       # scenes looked at for one case
EARLY, LATE = 3, 3   # frames that are shown before a change and after it
STEP = .3            # widths that a teleport is wide
FAST = .3            # widths/s at which what bounces in mid-air falls
APART = .15          # seconds between the first impacts of two sounds
ELSEWHERE = np.array([[0., 10., 10., 0., 0., 0., 0.]])  # the segment of an object that is not there


class NoSceneError(ValueError):
  """Clips of these sizes and rates cannot show a kind."""


@dataclasses.dataclass(frozen=True)
class Case:
  """frame: the first that shows what cannot be; 0 where only the sound is wrong."""
  kind: str
  frame: int
  possible: tuple[Clip, Clip]
  impossible: tuple[Clip, Clip]


def make(kind: str, number: int, config: WorldConfig) -> Case:
  """The case of this number. Of `config` the sizes, rates and split count; the scenes are those that the kind needs.

  Raises ValueError for an unknown kind, and NoSceneError where the clips are too short or too flat for it.
  """
  if kind not in KINDS:
    raise ValueError(f'kind={kind!r}; give one of {", ".join(KINDS)}')
  level, find = KINDS[kind]
  config = dataclasses.replace(config, levels=(level,), min_objects=1, max_objects=1)
  for attempt in range(ATTEMPTS):
    seed = number * ATTEMPTS + attempt
    record = simulate(sample(seed, config))
    found = find(record, np.random.default_rng([seed, 7]))
    if found is None or _rolls(record) or _rolls(found[0]):
      continue
    other, frame = found
    return Case(kind, frame or 0, (_spliced(record, other, None), _spliced(other, record, None)),
                _swapped(record, other) if frame is None else
                (_spliced(record, other, frame), _spliced(other, record, frame)))
  raise NoSceneError(f'no scene of {config.num_frames} frames at {config.fps} a second shows kind={kind!r}; '
                     'give longer or taller clips, or more frames a second')


def _rolls(record: Record) -> bool:
  """Rolling sounds without impacts, so that its sound could not be spliced by them."""
  return any(ROLLING in modes for modes in record.modes)


def _spliced(first: Record, then: Record, frame: int | None) -> Clip:
  """`first` up to the frame, `then` from it on, each impact sounding on; None: `first` alone."""
  scene, video, heard = first.scene, picture(first), impacts(first)
  if frame is not None:
    time = frame / scene.fps
    video = np.concatenate([video[:frame], picture(then)[frame:]])
    heard = [one for one in heard if one.time < time] + [one for one in impacts(then) if one.time >= time]
  return Clip(video=video, fps=float(scene.fps), **_sound(scene, heard))


def _swapped(one: Record, two: Record) -> tuple[Clip, Clip]:
  """Each picture with the other's sound."""
  return tuple(Clip(video=picture(seen), fps=float(seen.scene.fps), **_sound(seen.scene, impacts(heard)))
               for seen, heard in ((one, two), (two, one)))


def _sound(scene: Scene, heard) -> dict:
  if not scene.sample_rate:
    return {}
  track = synthesize(heard, round(scene.duration * scene.sample_rate), scene.sample_rate)
  return {'audio': np.clip(track, -1, 1).astype(np.float32), 'sample_rate': scene.sample_rate}


def _altered(scene: Scene, **changes) -> Scene:
  """The scene with its one object changed."""
  return dataclasses.replace(scene, objects=(dataclasses.replace(scene.objects[0], **changes),))


# What each kind makes of a record: the record of B and the frame of the change (None: of the sound), or None.


def _behind(record: Record) -> int | None:
  """The middle frame of those in which the object is wholly behind the pillar, if it is seen before and after."""
  seen = world_view.visibility(record, record.scene.frame_times)[:, 0]
  gone = np.flatnonzero(seen < 1e-9)
  if not len(gone) or (seen[:gone[0]] > .5).sum() < EARLY or (seen[gone[-1] + 1:] > .5).sum() < LATE:
    return None
  return int(gone[len(gone) // 2]) if len(gone) == gone[-1] - gone[0] + 1 else None


def _vanish(record, rng):
  frame = _behind(record)
  absent = dataclasses.replace(record, segments=(ELSEWHERE,), modes=(('resting',),), events=())
  return frame and (absent, frame)


def _colour(record, rng):
  frame, own = _behind(record), record.scene.objects[0].colour
  other = str(rng.choice([name for name in COLOURS if name != own]))
  return frame and (dataclasses.replace(record, scene=_altered(record.scene, colour=other)), frame)


def _shape(record, rng):
  # A triangle meets walls with its corners, so that it would move otherwise.
  other = {'circle': 'square', 'square': 'circle'}.get(record.scene.objects[0].shape)
  frame = _behind(record)
  return frame and other and (dataclasses.replace(record, scene=_altered(record.scene, shape=other)), frame)


def _flying(*records: Record) -> int:
  """The last frame before the first impact of any, and before the end."""
  first = min((event.time for record in records for event in record.events), default=records[0].scene.duration)
  scene = records[0].scene
  return min(int(first * scene.fps), scene.num_frames - LATE)


def _teleport(record, rng):
  x, y = record.scene.objects[0].position
  other = simulate(_altered(record.scene, position=(x + STEP if x < .5 else x - STEP, y)))
  frame = _flying(record, other)
  return (other, frame) if frame >= EARLY else None


def _bounce(record, rng):
  frames = range(EARLY, _flying(record) + 1)
  turns = (_turned(record, int(frame)) for frame in rng.permutation(frames))
  return next((turn for turn in turns if turn is not None), None)


def _turned(record: Record, frame: int):
  """B at the same place at this frame with the other vertical velocity, for which it began below; None from under the
  floor."""
  scene, time = record.scene, frame / record.scene.fps
  (x, y), (vx, vy) = (state[0, 0] for state in record.states([time]))
  start, speed = y + vy * time + .5 * scene.gravity * time ** 2, -vy - scene.gravity * time
  if vy < FAST or start > scene.aspect - scene.objects[0].radius:
    return None
  other = simulate(_altered(scene, position=(record.scene.objects[0].position[0], float(start)),
                            velocity=(float(vx), float(speed))))
  return (other, frame) if _flying(other) >= frame else None


def _sounds(record, rng):
  scene, thing = record.scene, record.scene.objects[0]
  height = rng.uniform(thing.radius, .6 * scene.aspect)
  other = simulate(_altered(scene, position=(thing.position[0], float(height))))
  first = [next((event.time for event in r.events), np.inf) for r in (record, other)]
  return (other, None) if max(first) < .8 * scene.duration and abs(first[0] - first[1]) > APART else None


KINDS = {'vanish': ('L4', _vanish), 'colour': ('L4', _colour), 'shape': ('L4', _shape),
         'teleport': ('L2', _teleport), 'bounce': ('L2', _bounce), 'sound': ('L2', _sounds)}
