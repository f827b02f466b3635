"""The wordings of captions, and `render`: stated facts → English.

Conventions: every bank lists wordings of one fact. The last wording of each bank of two or more is held out: texts of
the family 'train' never use it, texts of the family 'test' use nothing else, so obedience to unseen phrasing can be
measured. The same banks are the reader's lexicon (caption_reader.py), so whatever is written can be read.
"""
import numpy as np

SHAPES = {'circle': ('ball', 'circle', 'disc'), 'square': ('square', 'box'), 'triangle': ('triangle', 'wedge')}
SIZES = {'small': ('small', 'little', 'tiny'), 'large': ('large', 'big', 'huge')}
COLOURS = {c: (c,) for c in ('red', 'green', 'blue', 'yellow', 'magenta', 'cyan', 'white')}
MATERIALS = {'rubber': ('rubber',), 'wood': ('wooden', 'timber'), 'metal': ('metal', 'steel')}
# (one subject, several subjects)
MOTIONS = {
  'falls': (('falls', 'fall'), ('drops', 'drop'), ('tumbles', 'tumble')),
  'bounces': (('bounces', 'bounce'), ('keeps bouncing', 'keep bouncing'), ('hops', 'hop')),
  'rolls': (('rolls', 'roll'), ('rolls along', 'roll along'), ('trundles', 'trundle')),
  'slides': (('slides', 'slide'), ('slides along', 'slide along'), ('skids', 'skid')),
  'drifts': (('drifts', 'drift'), ('floats', 'float'), ('glides', 'glide')),
  'still': (('stays still', 'stay still'), ('does not move', 'do not move'), ('is motionless', 'are motionless')),
  'moves': (('moves', 'move'), ('travels', 'travel')),
}
DIRECTIONS = {
  'left': ('to the left', 'leftwards'), 'right': ('to the right', 'rightwards'),
  'up': ('upwards', 'towards the top'), 'down': ('downwards', 'towards the bottom'),
}
IMPACTS = {
  'floor': ('hits the floor', 'touches the floor', 'strikes the ground'),
  'ceiling': ('hits the ceiling', 'touches the ceiling', 'strikes the ceiling'),
  'left': ('hits the left wall', 'bounces off the left wall', 'strikes the left wall'),
  'right': ('hits the right wall', 'bounces off the right wall', 'strikes the right wall'),
}
RESTS = ('comes to rest', 'then rests', 'settles')
ENTERS = {
  side: (f'comes in from the {side}', f'enters from the {side}', f'arrives from the {side}')
  for side in ('left', 'right', 'top', 'bottom')
}
EXITS = {
  side: (f'leaves on the {side}', f'goes out on the {side}', f'departs on the {side}')
  for side in ('left', 'right', 'top', 'bottom')
}
BEHIND = ('passes behind', 'goes behind', 'disappears behind')
PILLAR = ('brown pillar', 'brown column')
COLLIDE = ('they collide', 'the objects collide', 'the objects bump into each other')
COLLIDES_WITH = ('collides with', 'hits', 'runs into')
CAMERAS = {
  'static': ('the camera is still', 'the camera does not move', 'the view is fixed'),
  **{f'pan {d}': (f'the camera pans {d}', f'the camera moves {d}', f'the view shifts {d}')
     for d in ('left', 'right', 'up', 'down')},
  'zoom in': ('the camera zooms in', 'the camera moves closer', 'the view gets closer'),
  'zoom out': ('the camera zooms out', 'the camera moves away', 'the view gets wider'),
}
# (one, several)
TIMBRES = {
  'rubber': (('dull thud', 'dull thuds'), ('soft thump', 'soft thumps')),
  'wood': (('wooden knock', 'wooden knocks'), ('wooden clack', 'wooden clacks')),
  'metal': (('metallic ring', 'metallic rings'), ('metal clang', 'metal clangs')),
}
SILENCE = ('no sound', 'silence', 'nothing is heard')
RUMBLE = ('low rumble', 'faint rumble')
NUMBERS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten')
TIMES = ('zero times', 'once', 'twice') + tuple(f'{n} times' for n in NUMBERS[3:])


def render(stated: dict, rng: np.random.Generator, family: str = 'train') -> str:
  """English for stated facts, in one of the wordings of the family 'train' or 'test'."""
  if family not in ('train', 'test'):
    raise ValueError(f"family {family!r} is neither 'train' nor 'test'")
  return _Writer(rng, family).text(stated)


def number(n: int) -> str:
  return NUMBERS[n] if n < len(NUMBERS) else str(n)


def times(n: int) -> str:
  return TIMES[n] if n < len(TIMES) else f'{n} times'


def _list(parts: list[str]) -> str:
  return parts[0] if len(parts) == 1 else ', '.join(parts[:-1]) + ' and ' + parts[-1]


class _Writer:
  """Draws wordings; one instance writes one text."""

  def __init__(self, rng: np.random.Generator, family: str):
    self.rng, self.family = rng, family

  def pick(self, bank: tuple):
    if len(bank) > 1:
      bank = bank[-1:] if self.family == 'test' else bank[:-1]
    return bank[self.rng.integers(len(bank))]

  def coin(self) -> bool:
    return bool(self.rng.random() < .5)

  def text(self, stated: dict) -> str:
    objects = [stated['objects'][i] for i in self.rng.permutation(len(stated['objects']))]
    self.nouns = {o['colour']: self.pick(SHAPES[o['shape']]) for o in objects}
    self.single = len(objects) == 1
    sentences = self.objects(objects)
    if stated.get('collisions'):
      sentences.append(self.pick(COLLIDE) + self.how_often(stated['collisions']))
    if stated.get('order'):
      sentences.append(self.order(stated['order']))
    if stated.get('occluder') and not any(o.get('behind') for o in objects):
      sentences.append(f'there is a {self.pick(PILLAR)}')
    extra = [self.sound(stated['sound'])] if stated.get('sound') else []
    if stated.get('camera'):
      extra.append(self.pick(CAMERAS[stated['camera']]))
    sentences += extra[::-1] if self.coin() else extra
    if len(sentences) == 1:
      return sentences[0]  # a bare phrase, as people type prompts
    return ' '.join(s[0].upper() + s[1:] + '.' for s in sentences)

  def noun_phrase(self, o: dict) -> str:
    size = self.pick(SIZES[o['size']]) + ' ' if 'size' in o else ''
    colour, noun = self.pick(COLOURS[o['colour']]), self.nouns[o['colour']]
    if 'material' not in o:
      return f'a {size}{colour} {noun}'
    if self.rng.random() < .25:
      return f'a {size}{colour} {noun} made of {o["material"]}'
    return f'a {size}{colour} {self.pick(MATERIALS[o["material"]])} {noun}'

  def name(self, colour: str) -> str:
    return f'the {colour} {self.nouns[colour]}'

  def how_often(self, count) -> str:
    return '' if count == 'some' else ' ' + times(count)

  def predicates(self, o: dict) -> list[str]:
    """Verb phrases of one object; the first is its motion where that is stated."""
    parts = []
    if 'motion' in o:
      parts.append(self.motion(o, plural=False))
    if 'enter' in o:
      parts.insert(self.rng.integers(len(parts) + 1), self.pick(ENTERS[o['enter']]))
    for key in ('floor', 'ceiling', 'left', 'right'):
      if key in o:
        parts.append(self.pick(IMPACTS[key]) + self.how_often(o[key]))
    if 'behind' in o:
      parts.append(f'{self.pick(BEHIND)} a {self.pick(PILLAR)}')
    if 'rests' in o:
      parts.append(self.pick(RESTS))
    if 'exit' in o:
      parts.append(self.pick(EXITS[o['exit']]))
    return parts

  def motion(self, o: dict, plural: bool) -> str:
    directions = [self.pick(DIRECTIONS[d]) for d in o.get('direction', ())]
    return ' '.join([self.pick(MOTIONS[o['motion']])[plural]] + ([_list(directions)] if directions else []))

  def objects(self, objects: list[dict]) -> list[str]:
    """Sentences that introduce the objects and say what each does."""
    doings = [{k: v for k, v in o.items() if k not in ('colour', 'shape', 'size', 'material')} for o in objects]
    phrases = [self.noun_phrase(o) for o in objects]
    if not any(doings):
      return [('a picture of ' if self.coin() else '') + _list(phrases)]
    joint = not self.single and all(d == doings[0] for d in doings) and set(doings[0]) <= {'motion', 'direction'}
    introduce = self.rng.random() < .2
    if joint and introduce and self.coin():
      return [f'{number(len(objects))} objects {self.motion(objects[0], plural=True)}: {_list(phrases)}']
    if joint:
      return [f'{_list(phrases)} {self.motion(objects[0], plural=True)}']
    predicates = [self.predicates(o) for o in objects]
    if introduce:
      first = f'there {"is" if self.single else "are"} {_list(phrases)}'
      return [first] + [f'{self.again(o)} {_list(p)}' for o, p in zip(objects, predicates) if p]
    # Long lists of deeds become a second sentence.
    heads = [p[:2] if len(p) < 3 or self.coin() else p[:1] for p in predicates]
    clauses = [' '.join([np_, _list(head)]) if head else np_ for np_, head in zip(phrases, heads)]
    joiner = ' while ' if len(clauses) == 2 and self.coin() else ', and '
    sentences = [joiner.join(clauses)]
    rests = [(o, p[len(head):]) for o, p, head in zip(objects, predicates, heads)]
    return sentences + [f'{self.again(o)} {_list(rest)}' for o, rest in rests if rest]

  def again(self, o: dict) -> str:
    return 'it' if self.single and self.coin() else self.name(o['colour'])

  def order(self, order: list[dict]) -> str:
    return 'first ' + ', then '.join(self.event(e) for e in order)

  def event(self, event: dict) -> str:
    names = [self.name(c) for c in event['actors']]
    if event['kind'] != 'pair':
      return f'{names[0]} {self.pick(IMPACTS[event["kind"]])}'
    if self.coin():
      names = names[::-1]
    return f'{names[0]} {self.pick(COLLIDES_WITH)} {names[1]}'

  def sound(self, sound: dict) -> str:
    if sound['silent']:
      return self.pick(('there is no sound', 'there is silence', 'nothing is heard'))
    if not sound['timbres']:
      return f'a {self.pick(RUMBLE)} is heard'
    hits, side = sound['hits'], f' on the {sound["side"]}' if sound['side'] else ''
    kinds = [self.pick(TIMBRES[t]) for t in sound['timbres']]
    if hits == 'some':
      return f'{_list([k[1] for k in kinds])} are heard{side}'
    verb = 'is' if hits == 1 else 'are'
    if len(kinds) == 1:
      return f'{number(hits)} {kinds[0][hits != 1]} {verb} heard{side}'
    return f'{number(hits)} impact{"s" if hits != 1 else ""} {verb} heard{side}: {_list([k[1] for k in kinds])}'
