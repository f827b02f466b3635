"""Does the sound belong to what is seen? Material, size, loudness and place of the impacts that are both seen and
heard.

An impact and an onset within 50 ms belong together. All but the synchrony is told from the impacts of one object while
all others are in free flight: of two that collide both sound. What is undefined for a clip is left out.
"""
import dataclasses

import numpy as np

from veojax.data import world
from veojax.evaluation import sound_parser, world_laws
from veojax.evaluation.world_laws import Impact
from veojax.evaluation.world_parser import Parse

STRETCH = .05            # seconds after an onset in which its loudness and place are heard
SMALLEST, LARGEST = .05, .16  # radii between which a pitch is sought, in widths
HARDER = 1.2             # times the impulse of another impact from which one must be louder
MASKED = .15             # seconds around another sound in which an impact may go unheard


@dataclasses.dataclass(frozen=True)
class Heard:
  """An impact with its sound. impulse: mass times change of velocity, as seen. alone: no other object has an impact
  then."""
  impact: Impact
  onset: float
  impulse: float
  alone: bool


def heard(parse: Parse, impacts: list[Impact], onsets: np.ndarray, gravity: float) -> list[Heard]:
  calm = {name: world_laws.bends(track, parse.fps, gravity) <= world_laws.FLAG * parse.fps
          for name, track in parse.tracks.items()}
  times = np.array([i.time for i in impacts])
  found = []
  for i, j in world_laws.match(times, onsets, world_laws.TOLERANCE):
    frame = min(int(times[i] * parse.fps), parse.num_frames - 2)
    alone = all(free[frame:frame + 2].all() for name, free in calm.items() if name != impacts[i].colour)
    mass = 100 * parse.tracks[impacts[i].colour].radius**2
    impulse = float(mass * np.hypot(*(impacts[i].after - impacts[i].before)))
    found.append(Heard(impacts[i], float(onsets[j]), impulse, alone))
  return sorted(found, key=lambda h: h.onset)


def measure(audio: np.ndarray, sample_rate: int, found: list[Heard], materials: dict[str, str],
            radii: dict[str, float]) -> dict[str, float]:
  """materials and radii: by colour, of the objects for which they are asked."""
  found, right, sizes = [one for one in found if one.alone], [], []
  for one in found:
    material = materials.get(one.impact.colour)
    if material is None:
      continue
    rings = sound_parser.materials(audio, sample_rate, one.onset)
    right.append(max(rings, key=rings.get) == material)
    if one.impact.colour in radii:
      radius = radius_heard(audio, sample_rate, one.onset, material)
      sizes.append(abs(radius / radii[one.impact.colour] - 1))
  result = {'sound_material': right, 'sound_size_error': sizes, 'pan_error': _pan_errors(audio, sample_rate, found),
            'loudness': _loudness(audio, sample_rate, found)}
  result = {name: float(np.mean(values)) for name, values in result.items() if len(values)}
  return result


def caption_material(audio: np.ndarray, sample_rate: int, parse: Parse, impacts: list[Impact], found: list[Heard],
                     onsets: np.ndarray, materials: dict[str, str]) -> dict[str, bool]:
  """{colour: do most of its impacts sound like its material}; False for one whose impacts are silent while nothing else
  sounds, nothing for one that hits nothing or is never heard alone."""
  def in_sight(impact):  # what is cut by a pillar may seem to turn
    frame = int(impact.time * parse.fps)
    return parse.tracks[impact.colour].whole[max(0, frame - 1):frame + 3].all()
  result = {}
  for colour, material in materials.items():
    rings = [sound_parser.materials(audio, sample_rate, one.onset) for one in found
             if one.alone and one.impact.colour == colour]
    silent = [np.abs(onsets - i.time).min(initial=np.inf) > MASKED for i in impacts
              if i.colour == colour and in_sight(i)]
    if rings:
      result[colour] = sum(max(r, key=r.get) == material for r in rings) * 2 > len(rings)
    elif silent and all(silent):
      result[colour] = False
  return result


def levels(audio: np.ndarray, sample_rate: int, onset: float) -> np.ndarray:
  """Rms float[channels] after an onset, less what rang before it."""
  power = lambda start: np.mean(
      np.square(sound_parser.stretch(audio, sample_rate, start, STRETCH), dtype=np.float64), axis=0)
  before = power(onset - STRETCH) if onset > STRETCH else 0.
  return np.sqrt(np.maximum(0., power(onset) - before))


def radius_heard(audio: np.ndarray, sample_rate: int, onset: float, material: str) -> float:
  """r = .1 f0 / f of the first partial f: the highest peak between the pitches of the radii SMALLEST and LARGEST."""
  rate, f0 = sample_rate, world.MATERIALS[material].frequency
  size = 1 << 14
  spectrum = lambda start: np.abs(np.fft.rfft(
      sound_parser.stretch(audio, rate, start, sound_parser.RING_SECONDS).mean(1), size))
  amplitude = spectrum(onset)
  if onset > sound_parser.RING_SECONDS:
    amplitude = np.maximum(0., amplitude - spectrum(onset - sound_parser.RING_SECONDS))
  frequency = np.fft.rfftfreq(size, 1 / rate)
  inside = (frequency > .1 * f0 / LARGEST) & (frequency < .1 * f0 / SMALLEST)
  return float(.1 * f0 / frequency[inside][amplitude[inside].argmax()])


def _pan_errors(audio: np.ndarray, sample_rate: int, found: list[Heard]) -> list[float]:
  """|x heard - x seen| in widths; nothing for a single channel."""
  if audio.shape[1] < 2:
    return []
  errors = []
  for one in found:
    left, right = levels(audio, sample_rate, one.onset)[:2]
    if max(left, right) > 1e-4:
      errors.append(abs(2 / np.pi * np.arctan2(right, left) - float(np.clip(one.impact.place[0], 0, 1))))
  return errors


def _loudness(audio: np.ndarray, sample_rate: int, found: list[Heard]) -> list[float]:
  """Of each two impacts of one object, the one clearly harder than the other: is it louder?"""
  level = [np.hypot.reduce(levels(audio, sample_rate, one.onset)) for one in found]
  return [float(level[i] > level[j]) for i, one in enumerate(found) for j, two in enumerate(found)
          if one.impact.colour == two.impact.colour and one.impulse > HARDER * two.impulse]
