"""Caption scores: right clips score near 1, each kind of wrong clip loses on its own field, and shuffling is seen."""
import dataclasses

import numpy as np
import pytest

from veojax.data import captions, world, world_clip
from veojax.evaluation import sound_parser, world_score
from veojax.types import Clip

CONFIG = world.WorldConfig(levels=('L2', 'L3'), num_frames=17, fps=8, height=64, width=64)


@pytest.fixture(scope='module')
def clips() -> list[Clip]:
  return [world_clip.make(seed, CONFIG) for seed in range(12)]


def blur(clip: Clip) -> Clip:
  """As a weak decoder would: soft, dim, noisy."""
  x = np.arange(64)
  kernel = np.exp(-(x[:, None] - x)**2 / (2 * 1.6**2))
  kernel /= kernel.sum(0)
  video = np.einsum('thwc,hi,wj->tijc', clip.video.astype(float), kernel, kernel, optimize=True)
  video = 18 + .8 * (video - 18) + np.random.default_rng(0).normal(0, 6, video.shape)
  return dataclasses.replace(clip, video=np.clip(video, 0, 255).astype(np.uint8))


def test_right_clips_score_near_one(clips):
  for clip in clips:
    scores = world_score.caption_score(clip, clip.text)
    assert all(0 <= value <= 1 for value in scores.values())
    assert scores['overall'] > .85, (clip.text, scores)


@pytest.mark.parametrize('worsen', [lambda clip: clip, blur])
def test_own_captions_beat_shuffled_ones(clips, worsen):
  result = world_score.compare([worsen(c) for c in clips], [c.text for c in clips], num_bootstrap=200)
  assert result['difference'] == pytest.approx(result['own'] - result['shuffled'])
  assert .2 < result['low'] <= result['difference'] <= result['high'] < 1
  assert result['wins'] > .9 and result['own'] > .85
  assert result['fields']['colour'][0] > result['fields']['colour'][1] + .5


def test_clips_that_show_nothing_are_no_better_with_their_own_captions(clips):
  rng = np.random.default_rng(0)
  for video in (np.zeros_like(clips[0].video), rng.integers(0, 256, clips[0].video.shape, dtype=np.uint8)):
    blank = [Clip(video=video, fps=8.) for _ in clips]
    result = world_score.compare(blank, [c.text for c in clips], num_bootstrap=100)
    assert abs(result['difference']) < .1 and result['own'] < .3


def test_each_wrong_fact_costs_its_own_field(clips):
  config = dataclasses.replace(CONFIG, levels=('L2',))
  clip = next(c for c in (world_clip.make(s, config) for s in range(50))
              if c.info['fields']['objects'][0]['direction'] and c.info['fields']['objects'][0]['floor'] == 1)
  facts = clip.info['fields']
  stated = captions.select(facts, np.random.default_rng(0), 'dense')
  o = stated['objects'][0]
  other = lambda value, values: next(v for v in values if v != value)
  score = lambda fields: world_score.caption_score(clip, captions.render(fields, np.random.default_rng(0)))
  right = score(stated)
  for key, field, wrong in (
    ('colour', 'colour', other(o['colour'], world.COLOURS)), ('shape', 'shape', other(o['shape'], world.SHAPES)),
    ('size', 'size', other(o['size'], world.RADII)), ('floor', 'impacts', 5),
    ('direction', 'direction', [other(o['direction'][0], ('left', 'right'))]),
  ):
    lied = score(stated | {'objects': [o | {key: wrong}], 'order': []})
    assert lied[field] < right[field] - .3, (key, lied, right)
    untouched = {'colour', 'shape', 'size', 'direction', 'count'} - {field}
    assert all(lied[name] == right[name] for name in untouched)
  wrong_material = other(o['material'], world.MATERIALS)
  lied = score({k: v for k, v in stated.items() if k != 'sound'} | {'objects': [o | {'material': wrong_material}]})
  assert lied['material'] < .3 < .8 < right['material']


def test_a_silent_track_obeys_only_captions_of_silence(clips):
  silent = dataclasses.replace(clips[0], audio=np.zeros_like(clips[0].audio))
  assert world_score.caption_score(silent, 'A red ball falls. There is no sound.')['silence'] == 1
  assert world_score.caption_score(silent, 'A red ball falls. Two dull thuds are heard.')['silence'] == 0
  assert world_score.caption_score(clips[0], 'A red ball falls. There is no sound.')['silence'] == 0


def test_what_cannot_be_shown_is_undefined(clips):
  still = Clip(video=clips[0].video[:1], fps=8.)
  scores = world_score.caption_score(still, 'A small red rubber ball bounces to the left. Two dull thuds are heard.')
  assert {'colour', 'shape', 'size', 'count', 'overall'} == set(scores)
  assert np.isnan(world_score.caption_score(clips[0], 'nothing that is known')['overall'])
  sound_only = Clip(audio=clips[0].audio, sample_rate=16000)
  assert set(world_score.caption_score(sound_only, 'a red rubber ball falls')) == {'material', 'overall'}


def test_comparing_needs_two_texts(clips):
  with pytest.raises(ValueError, match='distinct'):
    world_score.compare(clips[:2], ['a', 'a'])
  with pytest.raises(ValueError, match='one text a clip'):
    world_score.compare(clips[:2], ['a'])
  with pytest.raises(ValueError, match='captions of the world'):
    world_score.compare(clips[:2], ['un chat', 'ein Hund'])


def test_onsets_are_found_where_the_impacts_are(clips):
  errors = []
  for clip in clips:
    times = np.array([e['time'] for e in clip.info['events']])
    isolated = [t for t in times if (np.abs(times - t) < .15).sum() == 1 and t < clip.duration - .1]
    found = sound_parser.onsets(clip.audio, clip.sample_rate)
    errors += [np.abs(found - t).min() for t in isolated]
  # Soft impacts in the ring of a loud one may be missed.
  assert np.mean(np.array(errors) < .006) > .8 and np.median(errors) < .001
  assert len(sound_parser.onsets(np.zeros((16000, 2), np.float32), 16000)) == 0


@pytest.mark.parametrize('sample_rate', [16000, 44100])
def test_materials_and_sides_are_heard(sample_rate):
  t = np.arange(sample_rate) / sample_rate - .2
  for name, material in world.MATERIALS.items():
    ring = np.zeros_like(t)
    for h, rho in enumerate(material.partials):
      wave = np.sin(2 * np.pi * material.frequency / .9 * rho * t)
      ring += (t > 0) * np.exp(-t * (1 + h / 2) / material.decay) * wave / (1 + h)
    audio = (ring[:, None] * [np.cos(.4 * np.pi), np.sin(.4 * np.pi)] * .3).astype(np.float32)
    onset, = sound_parser.onsets(audio, sample_rate)
    assert abs(onset - .2) < .005
    shares = sound_parser.materials(audio, sample_rate, onset)
    assert max(shares, key=shares.get) == name and sum(shares.values()) == pytest.approx(1)
    assert sound_parser.place(audio, sample_rate) == pytest.approx(.8, abs=.01)
