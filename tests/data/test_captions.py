"""Captions: what is written is read back exactly; only what is seen is stated; people's own wording is understood."""
import json

import numpy as np
import pytest

from veojax.data import caption_grammar, captions, world, world_clip


def random_fields(rng: np.random.Generator) -> dict:
  """Fields in every combination that the format allows, likely or not."""
  n = int(rng.integers(1, 4))
  image = rng.random() < .05
  colours = sorted(rng.choice(list(caption_grammar.COLOURS), n, replace=False).tolist())
  draw = lambda *values: values[rng.integers(len(values))]
  count = lambda: draw(0, 1, 2, 3, 'some')
  objects = []
  for colour in colours:
    o = {'colour': colour, 'shape': draw(*caption_grammar.SHAPES), 'size': draw('small', 'large'),
         'material': draw(*caption_grammar.MATERIALS), 'motion': draw(*caption_grammar.MOTIONS)}
    o['direction'] = [d for d in (draw(None, 'left', 'right'), draw(None, 'up', 'down')) if d]
    o |= {'floor': count(), 'ceiling': draw(0, 0, 2), 'left': count(), 'right': count(), 'rests': draw(True, False)}
    o |= {'enter': draw(None, 'left', 'top'), 'exit': draw(None, 'right', 'bottom'), 'behind': draw(True, False, False)}
    if image:
      o = {key: o[key] if key in ('colour', 'shape', 'size', 'material') else None for key in o}
    objects.append(o)

  def event():
    kind = draw('floor', 'left', 'right', 'ceiling', *(['pair'] if n > 1 else []))
    return {'kind': kind, 'actors': sorted(rng.choice(colours, 1 + (kind == 'pair'), replace=False).tolist())}

  hits = draw(1, 2, 5, 'some')
  timbres = sorted(rng.choice(list(caption_grammar.TIMBRES), rng.integers(1, 4), replace=False).tolist())
  sound = draw(
    {'silent': True, 'hits': 0, 'timbres': [], 'side': None}, {'silent': False, 'hits': 0, 'timbres': [], 'side': None},
    {'silent': False, 'hits': hits, 'timbres': timbres, 'side': draw(None, 'left', 'right')})
  return {
    'count': n, 'objects': objects, 'collisions': count() if n > 1 and not image else 0,
    'order': [event(), event()] if not image and rng.random() < .5 else [],
    'occluder': any(o['behind'] for o in objects) or draw(True, False, False),
    'camera': draw(*caption_grammar.CAMERAS), 'sound': None if image else sound,
  }


@pytest.mark.parametrize('family', ['train', 'test'])
@pytest.mark.parametrize('density', captions.DENSITIES)
def test_every_text_reads_back_as_what_it_states(density, family):
  rng = np.random.default_rng(0)
  for _ in range(300):
    stated = captions.select(random_fields(rng), rng, density)
    text = captions.render(stated, rng, family)
    assert captions.read(text) == stated, text


@pytest.mark.parametrize('level', world.LEVELS)
def test_the_world_s_captions_read_back(level):
  config = world.WorldConfig(levels=(level,), num_frames=17, fps=8, height=32, width=32, sample_rate=4000)
  for seed in range(8):
    info = world_clip.make(seed, config).info
    facts = captions.fields(info)
    assert json.loads(json.dumps(facts)) == facts
    for density in captions.DENSITIES:
      stated = captions.select(facts, np.random.default_rng(seed), density)
      assert captions.read(captions.render(stated, np.random.default_rng(seed))) == stated


def test_held_out_wordings_never_appear_in_training_texts():
  def words(bank):
    for value in bank.values() if isinstance(bank, dict) else [bank]:
      if len(value) > 1:
        last = value[-1]
        yield from (last if isinstance(last, tuple) else (last,))
  banks = [value for value in vars(caption_grammar).values() if isinstance(value, dict) and value]
  held_out = {w for bank in banks if all(isinstance(v, tuple) for v in bank.values()) for w in words(bank)}
  assert {'disc', 'tiny', 'hops', 'leftwards'} <= held_out
  rng = np.random.default_rng(1)
  texts = [captions.write(random_fields(rng), rng).lower() for _ in range(400)]
  texts = [' ' + text.replace('.', ' ').replace(',', ' ') + ' ' for text in texts]
  for phrase in held_out:
    assert not any(f' {phrase} ' in text for text in texts), phrase


def test_wording_varies_and_is_a_function_of_the_generator():
  facts = random_fields(np.random.default_rng(3))
  texts = {captions.write(facts, np.random.default_rng(s)) for s in range(40)}
  assert len(texts) > 25
  assert captions.write(facts, np.random.default_rng(7)) == captions.write(facts, np.random.default_rng(7))


def record(**changes) -> dict:
  """A red ball that crosses the picture to the right on a parabola and bounces once; 17 frames at 16 fps."""
  t = np.arange(17) / 16
  y = np.where(t < .5, .375 + 2 * t**2, .875 - 1.2 * (t - .5) + (t - .5)**2)
  positions = np.stack([.2 + .5 * t, y], 1)
  velocities = np.gradient(positions, axis=0) * 16
  ball = {'shape': 'circle', 'colour': 'red', 'size': 'large', 'material': 'rubber', 'radius': .125,
          'positions': positions.tolist(), 'velocities': velocities.tolist(), 'visibility': [1.] * 17}
  hit = {'time': .5, 'kind': 'floor', 'instances': [0], 'impulse': 3., 'position': [.45, 1.], 'side': ''}
  return {'fps': 16., 'num_frames': 17, 'height': 64, 'width': 64, 'sample_rate': 16000, 'gravity': 2.,
          'objects': [ball], 'events': [hit], 'occluders': [], 'camera': {'move': 'static'}} | changes


def test_fields_of_a_hand_made_record():
  facts = captions.fields(record())
  red, = facts['objects']
  assert (red['motion'], red['direction'], red['floor'], red['left']) == ('bounces', ['right'], 1, 0)
  assert facts['sound'] == {'silent': False, 'hits': 1, 'timbres': ['rubber'], 'side': None}
  assert captions.fields(record(sample_rate=0))['sound'] is None
  assert captions.fields(record(events=[]))['sound']['silent']


def test_impacts_that_frames_cannot_separate_get_no_number():
  events = record()['events']
  close = events + [events[0] | {'time': .6, 'kind': 'wall', 'side': 'right'}]
  red, = captions.fields(record(events=close))['objects']
  assert red['floor'] == 'some' and red['right'] == 'some'
  beyond = events + [events[0] | {'time': 1.05}]
  assert captions.fields(record(events=beyond))['objects'][0]['floor'] == 1


def test_hidden_impacts_are_not_stated():
  info = record(occluders=[{'x0': .4, 'x1': .6}])
  info['objects'][0]['visibility'][7:10] = [0., 0., 0.]
  red, = captions.fields(info)['objects']
  assert red['floor'] == 0 and red['behind']


def test_a_camera_that_reverses_a_direction_leaves_it_unsaid():
  values = np.stack([.5 + np.arange(17) / 16, np.full(17, .5), np.ones(17)], 1)
  red, = captions.fields(record(camera={'move': 'pan right', 'values': values.tolist()}))['objects']
  assert red['direction'] == []


@pytest.mark.parametrize('text, expected', [
  ('a red ball bounces twice',
   {'count': 1, 'objects': [{'colour': 'red', 'shape': 'circle', 'motion': 'bounces', 'floor': 2}]}),
  ('Two cubes are falling', {'count': 2, 'objects': [{'shape': 'square', 'motion': 'falls'}] * 2}),
  ('a tiny purple pyramid, without sound', None),
  ('', {'count': 0, 'objects': []}),
  ('猫がピアノを弾く', {'count': 0, 'objects': []}),
])
def test_people_s_own_prompts(text, expected):
  read = captions.read(text)
  if expected is None:
    assert read['objects'] == [{'size': 'small', 'colour': 'magenta', 'shape': 'triangle'}] and read['sound']['silent']
  else:
    assert read == expected


def test_unknown_density_and_family_are_refused():
  facts, rng = captions.fields(record()), np.random.default_rng(0)
  with pytest.raises(ValueError, match='long'):
    captions.write(facts, rng, 'long')
  with pytest.raises(ValueError, match='held'):
    captions.write(facts, rng, family='held')
