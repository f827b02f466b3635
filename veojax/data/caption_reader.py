"""`read`: English → the facts it states. Reads every wording of caption_grammar.py, and the usual prompts of people.

Method: the longest phrase of the lexicon that matches at each word becomes a symbol, unknown words are skipped, and one
pass over the symbols of each sentence assigns verbs to subjects. A new noun after a verb opens a new clause; "the"
and a colour (or shape) already mentioned refer back. So any text is read without error; what is not understood is
absent.
"""
import re

from veojax.data import caption_grammar as grammar

SYNONYMS = {
  'shape': {'circle': ('sphere', 'orb', 'dot', 'disk'), 'square': ('cube', 'block'), 'triangle': ('pyramid',)},
  'colour': {'magenta': ('pink', 'purple', 'violet'), 'cyan': ('turquoise', 'teal'), 'red': ('crimson',)},
  'size': {'large': ('giant',)},
  'material': {'metal': ('metallic', 'iron'), 'rubber': ('rubbery',), 'wood': ('wood',)},
  'motion': {
    'falls': ('falling', 'dropping'), 'bounces': ('bouncing', 'jumps', 'jump'), 'rolls': ('rolling',),
    'slides': ('sliding',), 'drifts': ('drifting', 'floating'), 'moves': ('moving', 'flies', 'fly', 'flying'),
    'still': ('stays where it is', 'stands still', 'motionless', 'do nothing', 'does nothing'),
  },
  'direction': {'left': ('left',), 'right': ('right',), 'up': ('up',), 'down': ('down',)},
  'impact': {
    'floor': ('hits the ground', 'hit the floor', 'hit the ground', 'touches the ground'),
    'ceiling': ('hit the ceiling',),
    'left': ('hit the left wall', 'bounce off the left wall'),
    'right': ('hit the right wall', 'bounce off the right wall'),
  },
  'camera': {
    'zoom in': ('zooms in', 'zoom in', 'zooming in'), 'zoom out': ('zooms out', 'zoom out', 'zooming out'),
    **{f'pan {d}': (f'pans {d}', f'pan {d}', f'panning {d}', f'the camera pans to the {d}',
                    f'the camera moves to the {d}') for d in ('left', 'right')},
    **{f'pan {d}': (f'pans {d}', f'pan {d}', f'panning {d}') for d in ('up', 'down')},
  },
  'silence': {True: ('silent', 'silently', 'without sound')},
  'rests': {True: ('rests', 'comes to a stop', 'stops')},
}


def _lexicon() -> dict[tuple[str, ...], tuple[str, object]]:
  """Words of a phrase → (symbol, value)."""
  flat = lambda bank: {value: [form for pair in pairs for form in pair] for value, pairs in bank.items()}
  banks = {
    'shape': grammar.SHAPES, 'size': grammar.SIZES, 'colour': grammar.COLOURS, 'material': grammar.MATERIALS,
    'motion': flat(grammar.MOTIONS), 'direction': grammar.DIRECTIONS, 'impact': grammar.IMPACTS,
    'enter': grammar.ENTERS, 'exit': grammar.EXITS, 'camera': grammar.CAMERAS, 'timbre': flat(grammar.TIMBRES),
    'rests': {True: grammar.RESTS}, 'behind': {True: grammar.BEHIND}, 'pillar': {True: grammar.PILLAR + ('pillar',)},
    'collide': {True: ('collide', 'collides', 'bump into each other', 'bumps into')},
    'with': {True: grammar.COLLIDES_WITH + ('hit', 'collide with', 'bump into', 'is hit by')},
    'silence': {True: grammar.SILENCE}, 'rumble': {True: grammar.RUMBLE},
    'side': {side: (f'on the {side}',) for side in ('left', 'right')},
    'times': {n: (t, f'{n} times') for n, t in enumerate(grammar.TIMES)} | {'some': ('several times', 'many times')},
    'number': {n: (w, str(n)) for n, w in enumerate(grammar.NUMBERS)},
    'things': {True: ('objects', 'shapes', 'things')}, 'impacts': {True: ('impact', 'impacts', 'hits', 'sounds')},
    'heard': {True: ('heard', 'hear')}, 'made of': {True: ('made of',)}, 'first': {True: ('first',)},
    'them': {True: ('they', 'them', 'both', 'the objects')}, 'it': {True: ('it',)},
  }
  lexicon = {}
  for symbol, bank in banks.items():
    for value, phrases in bank.items():
      for phrase in (*phrases, *SYNONYMS.get(symbol, {}).get(value, ())):
        # "hits" is a verb except in a sentence about sound; the earlier bank wins.
        lexicon.setdefault(tuple(phrase.split()), (symbol, value))
  for shape, words in grammar.SHAPES.items():
    for word in (*words, *SYNONYMS['shape'][shape]):
      lexicon[(word + ('es' if word.endswith('x') else 's'),)] = ('shapes', shape)
  return lexicon


LEXICON = _lexicon()
LONGEST = max(map(len, LEXICON))


def read(text: str) -> dict:
  """The stated part of the fields of captions.py; always with 'count' and 'objects' (sorted by colour).

  An object of which the text names no colour has no 'colour'. An impact without a number is 'some' (at least one).
  """
  reader = _Reader()
  for sentence in re.split(r'[.;!?\n]+', text.lower()):
    symbols = _symbols(re.findall(r'[a-z]+|\d+', sentence))
    names = {name for name, _ in symbols}
    if names & {'timbre', 'silence', 'rumble', 'heard'}:
      symbols = reader.sound(symbols, names)
    reader.sentence(symbols)
  return reader.result()


def _symbols(words: list[str]) -> list[tuple[str, object]]:
  symbols, k = [], 0
  while k < len(words):
    for length in range(min(LONGEST, len(words) - k), 0, -1):
      if entry := LEXICON.get(tuple(words[k:k + length])):
        symbols.append(entry)
        k += length
        break
    else:
      k += 1
  return symbols


class _Reader:
  """Facts so far, and who the subject is."""

  def __init__(self):
    self.objects, self.facts, self.subjects = [], {}, []

  def sound(self, symbols: list, names: set) -> list:
    """Reads the symbols that speak of sound and returns the others."""
    facts = {'silent': False, 'hits': 'some', 'timbres': [], 'side': None}
    if 'silence' in names:
      facts |= {'silent': True, 'hits': 0}
    elif 'timbre' not in names:
      facts['hits'] = 0
    rest = []
    for k, (name, value) in enumerate(symbols):
      if name == 'timbre':
        facts['timbres'] = sorted({*facts['timbres'], value})
      elif name == 'side':
        facts['side'] = value
      elif name == 'number' and k + 1 < len(symbols) and symbols[k + 1][0] in ('timbre', 'impacts', 'with'):
        facts['hits'] = value
      elif name not in ('silence', 'rumble', 'heard', 'impacts'):
        rest.append((name, value))
    self.facts['sound'] = facts
    return rest

  def sentence(self, symbols: list):
    self.attributes, self.number, self.closed, self.target = {}, None, True, False
    self.ordering, self.made_of, self.countable, self.template = False, False, None, {}
    for name, value in symbols:
      if name in ('size', 'colour', 'material'):
        if self.made_of and name == 'material':
          self.subjects[-1]['material'] = value
          self.made_of = False
        else:
          self.attributes[name] = value
      elif name in ('shape', 'shapes'):
        self.noun(value, plural=name == 'shapes')
      elif name == 'number':
        self.number = value
      elif name == 'things':
        if self.number is not None:
          self.facts['count'] = self.number
          # "two objects bounce: a ball and a square": what is said now holds for the nouns to come.
          self.template = {}
          self.subjects = [self.template]
        else:
          self.subjects = self.objects
        self.number, self.closed = None, True
      elif name == 'first':
        self.ordering = True
      elif name == 'made of':
        self.made_of = bool(self.subjects)
      elif name == 'them':
        self.subjects, self.closed = self.objects, True
      elif name == 'times':
        self.times(value)
      elif name == 'it':
        self.closed = True
      else:
        self.deed(name, value)
    if self.ordering and len(self.facts.get('order', ())) > 2:
      self.facts['order'] = self.facts['order'][:2]

  def noun(self, shape: str, plural: bool):
    attributes, self.attributes = self.attributes | {'shape': shape}, {}
    many = self.number if plural and self.number else 1
    self.number = None
    found = [self.find(attributes) or self.add(attributes)] + [self.add(attributes) for _ in range(many - 1)]
    if self.target:
      self.target = False
      if self.ordering:
        actors = self.facts['order'][-1]['actors']
        self.facts['order'][-1]['actors'] = sorted({*actors, *self.colours(found)})
      return
    self.subjects = found if self.closed else [*self.subjects, *found]
    self.closed = False

  def find(self, attributes: dict) -> dict | None:
    """The object already mentioned that these words mean."""
    for o in self.objects:
      agrees = all(o.get(key, value) == value for key, value in attributes.items())
      if agrees and o.get('colour') == attributes.get('colour'):
        o.update(attributes)
        return o
    same = [o for o in self.objects if o['shape'] == attributes['shape']]
    return same[0] if set(attributes) == {'shape'} and len(same) == 1 else None

  def add(self, attributes: dict) -> dict:
    self.objects.append(self.template | attributes)
    return self.objects[-1]

  @staticmethod
  def colours(objects: list[dict]) -> list[str]:
    return [o.get('colour', o['shape']) for o in objects]

  def deed(self, name: str, value):
    """A verb phrase, for all subjects."""
    if name == 'impact' and self.ordering:
      self.facts.setdefault('order', []).append({'kind': value, 'actors': self.colours(self.subjects)[:1]})
    elif name == 'with':
      self.target = True
      if self.ordering:
        self.facts.setdefault('order', []).append({'kind': 'pair', 'actors': self.colours(self.subjects)[:1]})
      else:
        self.facts['collisions'], self.countable = 'some', 'collisions'
    elif name == 'collide':
      self.facts['collisions'], self.countable = 'some', 'collisions'
    elif name in ('impact', 'motion'):
      key = value if name == 'impact' else 'motion'
      self.countable = 'floor' if value == 'bounces' else key
      for o in self.subjects:
        o[key] = 'some' if name == 'impact' else value
    elif name == 'direction':
      for o in self.subjects:
        o['direction'] = sorted({*o.get('direction', ()), value}, key=('left', 'right', 'up', 'down').index)
    elif name in ('enter', 'exit', 'rests', 'behind'):
      for o in self.subjects:
        o[name] = value
    if name in ('pillar', 'behind'):
      self.facts['occluder'] = True
    if name == 'camera':
      self.facts['camera'] = value
    self.closed = True

  def times(self, count):
    if self.countable == 'collisions':
      self.facts['collisions'] = count
    elif self.countable in ('floor', 'ceiling', 'left', 'right'):
      for o in self.subjects:
        o[self.countable] = count

  def result(self) -> dict:
    objects = sorted(self.objects, key=lambda o: (o.get('colour', '~'), o['shape']))
    return {'count': max(self.facts.pop('count', 0), len(objects)), 'objects': objects} | self.facts
