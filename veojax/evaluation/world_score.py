"""How well a clip follows a caption of the world, by parsing its pixels and sound; no network, no ground truth.

Conventions: every score lies in [0, 1]; a field that the text does not state, or that the clip cannot show (no sound
track, a single frame), is left out rather than counted as 0 or 1. Scores are soft, so that blurred or half-right clips
of a young model are told from wrong ones; a sharp right clip scores 1, up to the parser's own errors.

Captioned objects are matched with tracks by colour; those left over take the remaining tracks by area, so a right
shape in a wrong colour loses on `colour` alone. An object with no track scores 0 in everything that is seen.
"""
import dataclasses

import numpy as np

from veojax.data import captions, world
from veojax.evaluation import sound_parser, world_motion, world_parser
from veojax.types import Clip

FIELDS = ('colour', 'shape', 'size', 'count', 'motion', 'direction', 'impacts', 'rests', 'edges', 'occlusion',
          'collisions', 'order', 'material', 'silence', 'hits', 'side')
AUDIBLE = .01  # rms over 3 ms below which a track is silence


@dataclasses.dataclass(frozen=True)
class Observation:
  """A parsed clip. tracks: the persistent ones, largest first. radii: of these, by colour, such as `world.RADII` has
  them, seen by a camera without zoom. onsets: None without a sound track. materials: for each onset, the loudest first,
  its level and what it sounds like. place: of the sound, from 0 (left) to 1 (right)."""
  parse: world_parser.Parse | None
  tracks: list
  radii: dict[str, float]
  impacts: list
  onsets: np.ndarray | None
  loudness: float
  materials: list
  place: float


def observe(clip: Clip) -> Observation:
  """Parses a clip once, for any number of captions."""
  parse, tracks, radii, impacts = None, [], {}, []
  if clip.video is not None:
    parse = world_parser.parse(clip.video, clip.fps, world_parser.LOOSE)
    least = max(1, .15 * parse.num_frames)
    tracks = sorted((t for t in parse.tracks.values() if t.present.sum() >= least), key=lambda t: -t.areas.sum())
    radii = {t.colour: t.radius / world.shrinking(parse.aspect) for t in tracks}
    impacts = world_motion.reversals(tracks, parse)
  if clip.audio is None:
    return Observation(parse, tracks, radii, impacts, None, 0., [], .5)
  audio, rate = np.nan_to_num(clip.audio), clip.sample_rate
  loudness = sound_parser.loudness(audio, rate)
  onsets, materials = np.zeros(0), []
  if loudness > AUDIBLE:
    onsets = sound_parser.onsets(audio, rate)
    energy = np.array([np.sqrt(np.mean(sound_parser.stretch(audio, rate, t, .05)**2)) for t in onsets])
    # A decoder's hiss has onsets too; they are far below the impacts.
    loud = energy > .1 * energy.max(initial=0)
    onsets, energy = onsets[loud], energy[loud]
    materials = [(float(energy[k]), sound_parser.materials(audio, rate, onsets[k])) for k in np.argsort(-energy)[:6]]
  return Observation(parse, tracks, radii, impacts, onsets, loudness, materials, sound_parser.place(audio, rate))


def caption_score(clip: Clip | Observation, text: str | dict) -> dict[str, float]:
  """Scores in [0, 1] of the FIELDS that the text states and the clip can show; 'overall': their mean, NaN if none.
  `text` may be what `captions.read` has read in it."""
  seen = clip if isinstance(clip, Observation) else observe(clip)
  stated = captions.read(text) if isinstance(text, str) else text
  scores = {}
  if seen.parse is not None and stated['objects']:
    scores |= _object_scores(seen, stated)
  if seen.parse is not None and seen.parse.num_frames > 2:
    scores |= _clip_scores(seen, stated)
  if seen.onsets is not None:
    scores |= _sound_scores(seen, stated)
  scores = {name: float(scores[name]) for name in FIELDS if name in scores}
  return scores | {'overall': float(np.mean(list(scores.values()))) if scores else float('nan')}


def compare(clips: list[Clip], texts: list[str], *, num_bootstrap: int = 1000, seed: int = 0) -> dict:
  """Do clips follow their own captions better than those of others?

  Scores every clip i against every text j. Returns own (mean overall score for j = i), shuffled (mean over all i ≠ j
  whose texts differ), difference with its 95 % interval (low, high) by bootstrap over clips with their texts, wins
  (share of pairs i ≠ j in which the own caption scores higher, ties half), fields {name: (own, shuffled)}, and
  num_clips.
  """
  if len(clips) != len(texts):
    raise ValueError(f'{len(clips)} clips and {len(texts)} texts; give one text a clip')
  if len(set(texts)) < 2:
    raise ValueError(f'{len(set(texts))} distinct texts; give at least 2, so that they can be exchanged')
  observations = [observe(clip) for clip in clips]
  scores = [[caption_score(o, text) for text in texts] for o in observations]
  overall = np.array([[s['overall'] for s in row] for row in scores])
  other = np.array([[a != b for b in texts] for a in texts])
  own, shuffled = _own_and_shuffled(overall, other, np.arange(len(clips)))
  rng = np.random.default_rng(seed)
  draws = [_own_and_shuffled(overall, other, rng.integers(len(clips), size=len(clips))) for _ in range(num_bootstrap)]
  differences = [a - b for a, b in draws if np.isfinite(a - b)]
  if not differences:
    raise ValueError('no text states anything that its clip can be scored by; give captions of the world')
  low, high = np.percentile(differences, (2.5, 97.5))
  margin = np.diag(overall)[:, None] - overall
  wins = np.where(margin > 0, 1., np.where(margin == 0, .5, 0.))[other & np.isfinite(margin)]
  fields = {}
  for name in FIELDS:
    table = np.array([[s.get(name, np.nan) for s in row] for row in scores])
    pair = _own_and_shuffled(table, other, np.arange(len(clips)))
    if np.isfinite(pair).all():
      fields[name] = pair
  return {
    'own': own, 'shuffled': shuffled, 'difference': own - shuffled, 'low': float(low), 'high': float(high),
    'wins': float(wins.mean()) if wins.size else float('nan'), 'num_clips': len(clips), 'fields': fields,
  }


def _own_and_shuffled(table: np.ndarray, other: np.ndarray, which: np.ndarray) -> tuple[float, float]:
  """Means of the defined entries: the diagonal's, and those with another's text, over the given clips."""
  mean = lambda values: float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float('nan')
  grid = np.ix_(which, which)
  return mean(np.diag(table)[which]), mean(table[grid][other[grid]])


def _assign(tracks: list, objects: list[dict]) -> list:
  """A track or None for each captioned object: by colour first, then what is left by area."""
  by_colour = {t.colour: t for t in tracks}
  chosen = [by_colour.pop(o.get('colour'), None) for o in objects]
  left = [t for t in tracks if t.colour in by_colour]
  return [track or (left.pop(0) if left else None) for track in chosen]


def _count_score(found: int, stated) -> float:
  """1 when equal, falling linearly with the relative difference; 'some' means at least one."""
  if stated == 'some':
    return float(found > 0)
  return 1. if found == stated else max(0., 1 - abs(found - stated) / max(found, stated))


def _object_scores(seen: Observation, stated: dict) -> dict[str, float]:
  """colour, shape, size, count; and with more than two frames motion, direction, impacts, rests and edges."""
  objects = stated['objects']
  tracks = _assign(seen.tracks, objects)
  scores = {'count': _count_score(len(seen.tracks), stated['count'])}
  named = [o['colour'] for o in objects if 'colour' in o]
  if named:
    mass = {t.colour: t.areas.sum() for t in seen.tracks}
    presence = [min(1., 2 * t.present.mean()) if t is not None and t.colour == o['colour'] else 0.
                for o, t in zip(objects, tracks) if 'colour' in o]
    # Uncaptioned colours count against it, unless some captioned objects have no colour.
    pure = sum(mass.get(c, 0) for c in named) / sum(mass.values()) if mass and len(named) == len(objects) else 1.
    scores['colour'] = np.mean(presence) * pure
  values = {}
  for o, track in zip(objects, tracks):
    for name, value in _one_object(o, track, seen).items():
      values.setdefault(name, []).append(value)
  return scores | {name: np.mean(v) for name, v in values.items()}


def _one_object(o: dict, track, seen: Observation) -> dict[str, float]:
  moving = seen.parse.num_frames > 2
  keys = {'shape': ['shape'], 'size': ['size']}
  if moving:
    keys |= {'motion': ['motion'], 'direction': ['direction'], 'rests': ['rests'], 'edges': ['enter', 'exit'],
             'impacts': ['floor', 'ceiling', 'left', 'right'], 'occlusion': ['behind']}
  asked = [name for name, parts in keys.items() if any(p in o for p in parts)]
  if track is None:
    return dict.fromkeys(asked, 0.)
  scores = {}
  if 'shape' in asked:
    best = track.likeness[track.whole].argmax(1)
    scores['shape'] = np.mean(best == world_parser.SHAPES.index(o['shape']))
  if 'size' in asked:
    small, large = world.RADII['small'], world.RADII['large']
    share = np.clip((seen.radii[track.colour] - small) / (large - small), 0, 1)
    scores['size'] = share if o['size'] == 'large' else 1 - share
  if 'motion' in asked:
    scores['motion'] = world_motion.likeness(track, o['motion'], seen.parse.fps)
  if 'direction' in asked:
    scores['direction'] = np.mean([world_motion.heads(track, d, seen.parse.fps) for d in o['direction']])
  if 'rests' in asked:
    scores['rests'] = np.clip(1 - world_motion.final_speed(track, seen.parse.fps) / .3, 0, 1)
  if 'edges' in asked:
    scores['edges'] = np.mean([world_motion.crosses(track, o[k], k, seen.parse) for k in ('enter', 'exit') if k in o])
  if 'impacts' in asked:
    found = [i.kind for i in seen.impacts if track.colour in i.actors]
    scores['impacts'] = np.mean([_count_score(found.count(k), o[k]) for k in keys['impacts'] if k in o])
  if 'occlusion' in asked:
    scores['occlusion'] = world_motion.hidden(track) if seen.parse.pillar else 0.
  return scores


def _clip_scores(seen: Observation, stated: dict) -> dict[str, float]:
  """occlusion (where no object's hiding is stated), collisions and order."""
  scores = {}
  if stated.get('occluder') and not any(o.get('behind') for o in stated['objects']):
    scores['occlusion'] = float(seen.parse.pillar is not None)
  if stated.get('collisions'):
    scores['collisions'] = _count_score(sum(i.kind == 'pair' for i in seen.impacts), stated['collisions'])
  if stated.get('order'):
    found = seen.impacts[:2] + [None, None]
    right = [(i.kind == e['kind'], set(i.actors) == set(e['actors'])) if i else (False, False)
             for i, e in zip(found, stated['order'])]
    scores['order'] = np.mean(right)
  return scores


def _sound_scores(seen: Observation, stated: dict) -> dict[str, float]:
  """silence, hits, side, and material: the share of the impacts' energy that sounds like a stated material."""
  scores, sound = {}, stated.get('sound')
  kinds = {o['material'] for o in stated['objects'] if 'material' in o}
  if sound:
    quiet = float(np.clip((.05 - seen.loudness) / .04, 0, 1))
    scores['silence'] = quiet if sound['silent'] else 1 - quiet
    kinds = set(sound['timbres']) or kinds
    if not sound['silent'] and sound['hits']:
      scores['hits'] = _count_score(len(seen.onsets), sound['hits'])
    if sound['side']:
      towards = seen.place if sound['side'] == 'right' else 1 - seen.place
      scores['side'] = np.clip((towards - .35) / .3, 0, 1)
  if kinds and seen.materials and not (sound and sound['silent']):
    total = sum(e for e, _ in seen.materials)
    scores['material'] = sum(e * sum(m[k] for k in kinds) for e, m in seen.materials) / total
  return scores
