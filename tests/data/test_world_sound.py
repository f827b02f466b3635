"""The sound against the record: when, where, how loud, which material, and silence."""
import dataclasses
import math

import numpy as np
import pytest

from veojax.data import world_sound
from veojax.data.world import MATERIALS, Camera, Object, Scene, WorldConfig
from veojax.data.world_physics import simulate
from veojax.data.world_scene import sample
from veojax.data.world_sound import Impact, impacts, pan, sound, synthesize

RATE = 16000


def scene_of(*objects, gravity=2., duration=2., walls=True, camera=None, sample_rate=RATE):
  camera = camera or Camera('static', ((0., .5, .5, 1.), (1., .5, .5, 1.)))
  return Scene(
      0, 'train', 'L2', 'L2', 64, 64, round(duration * 16), 16., sample_rate, gravity, .1875, walls, False, objects, (),
      camera)


def thing(material='wood', x=.5, y=.4, vx=0., vy=0., radius=.085):
  return Object('circle', 'red', 'small', material, radius, (x, y), (vx, vy))


def ring(material='metal', time=.1003, impulse=2., x=.5, radius=.1):
  return Impact(time, 0, material, radius, impulse, x, tuple(pan(x)))


@pytest.mark.parametrize('material', list(MATERIALS))
def test_a_ring_is_the_formula_and_its_onset_is_not_rounded(material):
  one, m = ring(material), MATERIALS[material]
  wave = synthesize([one], RATE, RATE)[:, 0] / one.gains[0]
  t = np.arange(RATE) / RATE - one.time
  expected = 0
  for h, rho in enumerate(m.partials):
    expected += np.exp(-t * (1 + .5 * h) / m.decay) * np.sin(2 * math.pi * m.frequency * rho * t) / (1 + h)
  expected = np.where(t >= 0, .5 * .4**.6 * expected, 0)
  body = t < .5  # the fade begins there
  np.testing.assert_allclose(wave[body], expected[body], atol=1e-10)
  assert not wave[t < 0].any() and wave[math.ceil(one.time * RATE)] != 0
  assert not wave[t >= .6].any() and np.abs(wave[t > .59]).max() < .01 * np.abs(wave).max()  # no click at the end


def test_sample_rates_agree_at_common_times():
  record = simulate(sample(3, WorldConfig(levels=('L3',))))
  rings = impacts(record)
  coarse, fine = (synthesize(rings, rate, rate) for rate in (16000, 48000))
  np.testing.assert_allclose(coarse, fine[::3], atol=1e-10)


def test_partials_beyond_half_the_sample_rate_are_left_out():
  wave = synthesize([ring(radius=.085)], 8000, 8000)[:, 0]
  spectrum = np.abs(np.fft.rfft(wave))
  assert spectrum[3500:].max() < .05 * spectrum.max()  # the third partial, 5718 Hz, would fold to 2282
  assert spectrum[2232:2332].max() < .05 * spectrum.max()


@pytest.mark.parametrize('material', list(MATERIALS))
def test_the_first_partial_tells_material_and_size(material):
  for radius in (.085, .125):
    wave = synthesize([ring(material, time=0., radius=radius)], 2 * RATE, RATE)[:, 0]
    peak = np.abs(np.fft.rfft(wave)).argmax() / 2
    assert peak == pytest.approx(MATERIALS[material].frequency * .1 / radius, rel=.03)


def test_pan_has_constant_power_and_gives_the_place_back():
  for x in np.linspace(0, 1, 9):
    track = synthesize([ring(x=x)], RATE, RATE)
    left, right = np.sqrt((track**2).mean(0))
    assert 2 / math.pi * math.atan2(right, left) == pytest.approx(x, abs=1e-12)
  np.testing.assert_allclose((pan(np.linspace(-1, 2, 7))**2).sum(-1), 1)
  np.testing.assert_allclose(pan(np.array([-3., 4.])), [[1, 0], [0, 1]], atol=1e-15)


def test_pan_follows_the_screen_of_a_moving_camera():
  camera = Camera('pan right', ((0., .3, .5, 1.), (2., .7, .5, 1.)))
  record = simulate(scene_of(thing(x=.5), camera=camera))
  first = impacts(record)[0]
  assert first.x == pytest.approx(.5 - (.3 + .2 * first.time) + .5)


def test_off_screen_impacts_sound_at_half_gain():
  inside, outside = (impacts(simulate(scene_of(thing(x=x), walls=False)))[0] for x in (1., 1.2))
  np.testing.assert_allclose(outside.gains, np.multiply(inside.gains, .5), atol=1e-15)


def test_every_impact_sounds_and_both_bodies_of_a_pair():
  for seed in range(5):
    record = simulate(sample(seed, WorldConfig(levels=('L3',))))
    expected = [(event.time, i) for event in record.events for i in event.instances]
    assert [(one.time, one.instance) for one in impacts(record)] == expected
    assert all(one.impulse > 0 for one in impacts(record))


def test_the_track_is_zero_before_its_first_impact_and_changes_there():
  for seed in range(5):
    record = simulate(sample(seed, WorldConfig(levels=('L2',))))
    track, first = sound(record), record.events[0].time
    start = math.ceil(first * RATE)
    assert not track[:start].any() and track[start:start + 3].any()
    assert track.dtype == np.float32 and len(track) == round(record.scene.duration * RATE) and np.abs(track).max() <= 1


def test_nothing_happening_is_exact_silence():
  for seed in range(3):
    track = sound(simulate(sample(seed, WorldConfig(levels=('L0',)))))
    assert track.shape == (33000, 2) and not track.any()


def test_no_sound_where_none_is_wanted_or_possible():
  assert sound(simulate(scene_of(thing(), sample_rate=0))) is None
  assert sound(simulate(scene_of(thing(), duration=1 / 16))) is None


def test_harder_impacts_are_louder_up_to_j0():
  loudness = [np.abs(synthesize([ring(impulse=j)], RATE, RATE)).max() for j in (.1, .5, 2., 5., 9.)]
  assert loudness[0] < loudness[1] < loudness[2] < loudness[3] == loudness[4]


def test_rolling_fades_with_the_speed_and_ends_with_it():
  record = simulate(scene_of(thing('wood', x=.3, y=1 - .085, vx=.3), duration=3.))
  stop = record.segments[0][1, 0]
  track = sound(record)
  assert not track[math.ceil(stop * RATE):].any()
  rms = [np.sqrt((part**2).mean()) for part in np.array_split(track[:math.ceil(stop * RATE)], 4)]
  assert all(a > b > 0 for a, b in zip(rms, rms[1:]))
  assert np.abs(track).max() < .15


def test_the_low_pass_is_the_recursion():
  rng = np.random.default_rng(0)
  x, cutoff = rng.standard_normal(500), rng.uniform(0, 8000, 500)
  y, expected = 0., []
  for value, a in zip(x, 1 - np.exp(-2 * math.pi * cutoff / RATE)):
    y += a * (value - y)
    expected.append(y)
  np.testing.assert_allclose(world_sound._low_pass(x, cutoff, RATE), expected, atol=1e-10)


def test_a_counterfactual_track_differs_only_where_it_should():
  record = simulate(sample(1, WorldConfig(levels=('L2',))))
  rings = impacts(record)
  whole = synthesize(rings, 33000, RATE)
  missing = synthesize(rings[:1], 33000, RATE)
  cut = math.ceil(rings[1].time * RATE)
  np.testing.assert_array_equal(whole[:cut], missing[:cut])
  other = synthesize([dataclasses.replace(one, material='metal') for one in rings], 33000, RATE)
  assert (np.nonzero(other.any(1))[0][0]) == (np.nonzero(whole.any(1))[0][0])
