"""The world's motion against the equations it claims to solve."""
import dataclasses
import itertools
import math

import numpy as np
import pytest

from veojax.data.world import GRAVITY, Camera, Object, Scene, WorldConfig
from veojax.data.world_physics import FLYING, RESTING, ROLLING, SLOW, simulate
from veojax.data.world_scene import sample

LEVELS = ('L1', 'L2', 'L3', 'L4', 'L5', 'L6')
SEEDS = range(8)


def scene_of(*objects, duration=4., gravity=GRAVITY, walls=True, rest_speed=.08):
  still = Camera('static', ((0., .5, .5, 1.), (1., .5, .5, 1.)))
  return Scene(
      0, 'train', 'L3', 'L3', 64, 64, round(duration * 16), 16., 16000, gravity, rest_speed, walls, gravity == 0,
      objects, (), still)


def ball(x, y, vx=0., vy=0., material='rubber', radius=.1):
  return Object('circle', 'red', 'small', material, radius, (x, y), (vx, vy))


@pytest.fixture(scope='module')
def records():
  return [simulate(sample(seed, WorldConfig(levels=(level,), num_frames=40))) for level in LEVELS for seed in SEEDS]


def before(record, i, time):
  """Position and velocity of object i at `time`, by the motion that led up to it."""
  segment = record.segments[i][np.searchsorted(record.segments[i][:, 0], time) - 1]
  dt = time - segment[0]
  return segment[1:3] + segment[3:5] * dt + .5 * segment[5:7] * dt**2, segment[3:5] + segment[5:7] * dt


def energy(record, times):
  scene = record.scene
  positions, velocities = record.states(times)
  mass = np.array([thing.mass for thing in scene.objects])
  floor = scene.aspect - np.array([thing.radius for thing in scene.objects])
  return (mass * (.5 * (velocities**2).sum(-1) + scene.gravity * (floor - positions[..., 1]))).sum(-1)


def test_energy_never_rises(records):
  for record in records:
    contacts = [event.time for event in record.events]
    times = np.unique(np.concatenate([np.linspace(0, record.scene.duration, 1001), contacts]))
    rise = np.diff(energy(record, times))
    assert rise.max() < 1e-9, (record.scene.level, record.scene.seed)


def test_energy_lost_at_the_floor_is_the_closed_form():
  scene = scene_of(ball(.5, .3, material='wood'))
  record = simulate(scene)
  first = record.events[0]
  lost = energy(record, [first.time - 1e-9, first.time])
  v = math.sqrt(2 * GRAVITY * .6)
  assert lost[0] - lost[1] == pytest.approx(.5 * scene.objects[0].mass * (1 - .6**2) * v**2, rel=1e-6)
  assert first.impulse == pytest.approx(scene.objects[0].mass * 1.6 * v, rel=1e-12)


def test_pairs_conserve_momentum_and_follow_the_restitution(records):
  seen = 0
  for record in records:
    times = [event.time for event in record.events]
    for event in record.events:
      if event.kind != 'pair' or event.speed < SLOW or times.count(event.time) > 1:
        continue
      things = [record.scene.objects[i] for i in event.instances]
      old = [before(record, i, event.time)[1] for i in event.instances]
      new = record.states([event.time])[1][0][list(event.instances)]
      momentum_old, momentum_new = (sum(t.mass * v for t, v in zip(things, vs)) for vs in (old, new))
      np.testing.assert_allclose(momentum_old, momentum_new, atol=1e-12)
      normal = np.array(event.normal)
      e = min(t.restitution for t in things)
      assert (new[0] - new[1]) @ normal == pytest.approx(-e * ((old[0] - old[1]) @ normal), abs=1e-9)
      assert things[0].mass * (new[0] - old[0]) @ normal == pytest.approx(event.impulse, abs=1e-9)
      seen += 1
  assert seen > 10


def test_contact_times_satisfy_the_contact_equation(records):
  kinds = set()
  for record in records:
    scene = record.scene
    for event in record.events:
      one = scene.objects[event.instances[0]]
      (x, y), _ = before(record, event.instances[0], event.time)
      if event.kind == 'floor':
        error = y + one.radius - scene.aspect
      elif event.kind == 'ceiling':
        error = y - one.radius
      elif event.kind == 'wall':
        error = x - one.half_width if event.side == 'left' else x + one.half_width - 1
      else:
        other = scene.objects[event.instances[1]]
        error = math.dist((x, y), before(record, event.instances[1], event.time)[0]) - one.radius - other.radius
      assert abs(error) < 1e-9, (scene.level, scene.seed, event)
      kinds.add(event.kind)
  assert kinds == {'floor', 'wall', 'ceiling', 'pair'}


def test_nothing_overlaps_between_events(records):
  for record in records:
    scene, times = record.scene, np.linspace(0, record.scene.duration, 1500)
    positions, _ = record.states(times)
    for i, thing in enumerate(scene.objects):
      assert positions[:, i, 1].max() <= scene.aspect - thing.radius + 1e-9
      if scene.walls:
        assert positions[:, i, 0].min() >= thing.half_width - 1e-9
        assert positions[:, i, 0].max() <= 1 - thing.half_width + 1e-9
    for i, j in itertools.combinations(range(len(scene.objects)), 2):
      reach = scene.objects[i].radius + scene.objects[j].radius
      assert np.linalg.norm(positions[:, i] - positions[:, j], axis=-1).min() > reach - 1e-8, (scene.level, scene.seed)


def test_flight_has_second_difference_g_over_fps_squared(records):
  seen = 0
  for record in records:
    scene, times = record.scene, record.scene.frame_times
    positions, _ = record.states(times)
    for i in range(len(scene.objects)):
      run = np.searchsorted(record.segments[i][:, 0], times, side='right') - 1
      inside = (run[2:] == run[:-2]) & np.array([record.modes[i][k] == FLYING for k in run[2:]])
      second = positions[2:, i] - 2 * positions[1:-1, i] + positions[:-2, i]
      error = second[inside] - [0, scene.gravity / scene.fps**2]
      assert np.abs(error).max(initial=0) < 1e-13
      seen += inside.sum()
  assert seen > 100


def test_a_dropped_ball_bounces_when_the_closed_form_says():
  record = simulate(scene_of(ball(.5, .4), duration=3.))
  fall = math.sqrt(2 * .5 / GRAVITY)
  v = GRAVITY * fall * .85**np.arange(1, 3)
  expected = fall + np.concatenate([[0], np.cumsum(2 * v / GRAVITY)])
  np.testing.assert_allclose([event.time for event in record.events][:3], expected, rtol=1e-12)


def test_one_seed_at_two_frame_rates_is_one_motion():
  for level, seed in itertools.product((*LEVELS, 'L7'), SEEDS):
    slow = simulate(sample(seed, WorldConfig(levels=(level,), num_frames=16, fps=8)))
    finer = WorldConfig(levels=(level,), num_frames=48, fps=24, height=96, width=96, sample_rate=48000)
    fast = simulate(sample(seed, finer))
    assert slow.events == fast.events
    for a, b in zip(slow.states(slow.scene.frame_times), fast.states(fast.scene.frame_times)):
      np.testing.assert_array_equal(a, b[::3])


def test_equal_masses_meeting_head_on():
  scene = scene_of(ball(.3, .5, vx=.4), ball(.7, .5, vx=-.2), duration=.6, gravity=0.)
  event = simulate(scene).events[0]
  assert event.time == pytest.approx(.2 / .6, rel=1e-12)
  after = simulate(scene).states([event.time])[1][0][:, 0]
  np.testing.assert_allclose(after, [.1 - .85 * .3, .1 + .85 * .3], rtol=1e-12)


def test_a_faller_meets_a_rester_at_the_root_of_the_quartic():
  scene = scene_of(ball(.5, .2), ball(.5, .9), duration=1.)
  first = simulate(scene).events[0]
  assert first.kind == 'pair' and first.time == pytest.approx(math.sqrt(2 * .5 / GRAVITY), rel=1e-10)
  sideways = simulate(scene_of(ball(.2, .9, vx=.5), ball(.6, .9, material='metal'), duration=1.)).events[0]
  mu = .05  # the roller slows down on its way: .2 = .5 t - mu g t²/2
  assert sideways.time == pytest.approx((.5 - math.sqrt(.25 - 2 * mu * GRAVITY * .2)) / (mu * GRAVITY), rel=1e-10)


def test_a_roller_stops_after_v_over_mu_g():
  record = simulate(scene_of(ball(.3, .9, vx=.2, material='wood'), duration=4.))
  assert record.modes[0] == (ROLLING, RESTING) and not record.events
  assert record.segments[0][1, 0] == pytest.approx(.2 / (.08 * GRAVITY), rel=1e-12)
  positions, velocities = record.states([4.])
  assert positions[0, 0, 0] == pytest.approx(.3 + .2**2 / (2 * .08 * GRAVITY), rel=1e-12)
  assert not velocities.any()


def test_a_slow_rebound_rests_and_keeps_its_floor_contacts_apart():
  for seed in range(30):
    record = simulate(sample(seed, WorldConfig(levels=('L2',), fps=8, num_frames=32, fps_min=8)))
    floor = [event.time for event in record.events if event.kind == 'floor']
    assert all(b - a >= 3 / 8 - 1e-9 for a, b in itertools.pairwise(floor))


@pytest.mark.parametrize('offset', [0., 1e-9, 1e-3, .02])
def test_a_ball_settling_on_another_ends(offset):
  record = simulate(scene_of(ball(.5 + offset, .2), ball(.5, .9, material='wood', radius=.1), duration=6.))
  assert np.diff(energy(record, np.linspace(0, 6, 2001))).max() < 1e-9
  positions, _ = record.states(np.linspace(0, 6, 2001))
  assert np.linalg.norm(positions[:, 0] - positions[:, 1], axis=-1).min() > .2 - 1e-6


def test_a_triangle_meets_the_wall_with_its_base():
  thing = dataclasses.replace(ball(.5, .5, vx=.5), shape='triangle')
  event = simulate(scene_of(thing, gravity=0.)).events[0]
  assert event.side == 'right' and event.time == pytest.approx((.5 - .2 / math.sqrt(3)) / .5, rel=1e-12)
