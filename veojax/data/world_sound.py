"""The sound of a record: a ring of damped partials at every impact, filtered noise while something rolls.

An impact of impulse J at t_k, of a body of radius r whose material has frequency f0, decay tau and partials rho:
  s(t) = 1/2 min(1, J/J0)^BETA Σ_h w_h exp(-(t - t_k)/tau_h) sin(2π f_h (t - t_k)),   t_k <= t < t_k + RING
  f_h = f0 (.1/r) rho_h,  tau_h = tau/(1 + h/2),  w_h = 1/(1 + h);  partials at or above sample_rate/2 are left out.
It is evaluated at t = n / sample_rate, so t_k is never rounded to a sample. Over its last FADE seconds a raised cosine
takes it to zero: metal still rings then, and a cut would be a click without a cause. Floor and walls are silent bodies;
in a pair both bodies sound. Stereo by constant power: left cos(π x/2), right sin(π x/2), x the body's place on the
screen at t_k, clipped to [0, 1]; an impact outside the frame has half the gain. Loudness is never normalised; where
nothing happens the track is all zeros.
"""
import dataclasses
import math

import numpy as np

from veojax.data import world_view
from veojax.data.world import MATERIALS, Scene
from veojax.data.world_physics import ROLLING, Record

J0, BETA = 5., .6
RING, FADE = .6, .1        # seconds
ROLL_GAIN, ROLL_SPEED, ROLL_RAMP = .08, .6, .02  # amplitude at full speed; that speed, widths/s; seconds of fade-in
BLOCK = 128                # samples of a ring computed as one row of a product


@dataclasses.dataclass(frozen=True)
class Impact:
  """One body's ring: time in s, its material, radius and impulse, its place x on the screen, gains (left, right)."""
  time: float
  instance: int
  material: str
  radius: float
  impulse: float
  x: float
  gains: tuple[float, float]


def impacts(record: Record) -> list[Impact]:
  """Every ring of the record in order of time. Change or drop some, and `synthesize` gives the counterfactual track."""
  scene, found = record.scene, []
  centres, _ = world_view.screen(record, [event.time for event in record.events])
  pans = pan(centres[..., 0])
  for event, centre, panned in zip(record.events, centres, pans):
    for i in event.instances:
      thing, (x, y) = scene.objects[i], centre[i]
      heard = 1. if 0 <= x <= 1 and 0 <= y <= scene.aspect else .5
      gains = tuple(heard * float(g) for g in panned[i])
      found.append(Impact(event.time, i, thing.material, thing.radius, event.impulse, float(x), gains))
  return found


def sound(record: Record) -> np.ndarray | None:
  """float32[R, 2] in [-1, 1], R = round(duration · sample_rate); None for a still image or where no sound is wanted."""
  scene = record.scene
  if scene.sample_rate == 0 or scene.num_frames == 1:
    return None
  track = synthesize(impacts(record), round(scene.duration * scene.sample_rate), scene.sample_rate)
  for i in range(len(scene.objects)):
    _add_rolling(track, record, i)
  return np.clip(track, -1., 1.).astype(np.float32)


def pan(x) -> np.ndarray:
  """Gains float[..., 2] (left, right) of a source at screen position x, whose squares sum to one."""
  angle = np.clip(x, 0., 1.) * (math.pi / 2)
  return np.stack([np.cos(angle), np.sin(angle)], -1)


def synthesize(rings: list[Impact], num_samples: int, sample_rate: int) -> np.ndarray:
  """float64[num_samples, 2]: the sum of the rings, not clipped."""
  track = np.zeros((num_samples, 2))
  for one in rings:
    start = math.ceil(one.time * sample_rate)
    stop = min(num_samples, math.ceil((one.time + RING) * sample_rate))
    if stop <= start:
      continue
    wave = _ring(one, start / sample_rate - one.time, stop - start, sample_rate)
    track[start:stop] += wave[:, None] * np.array(one.gains)
  return track


def _ring(one: Impact, delay, num_samples, sample_rate):
  """float64[num_samples]: the ring from `delay` seconds after the impact on.

  exp(s (delay + (j BLOCK + k)/sample_rate)) is a factor in j times one in k, so the whole is one matrix product.
  """
  material = MATERIALS[one.material]
  h = np.arange(len(material.partials))
  frequency = material.frequency * (.1 / one.radius) * np.array(material.partials)
  s = 2j * math.pi * frequency - (1 + .5 * h) / material.decay
  weight = np.where(frequency < sample_rate / 2, .5 * min(1., one.impulse / J0)**BETA / (1 + h), 0.)
  coarse = delay + np.arange(-(-num_samples // BLOCK)) * (BLOCK / sample_rate)
  rows = weight * np.exp(coarse[:, None] * s)
  wave = (rows @ np.exp(s[:, None] * (np.arange(BLOCK) / sample_rate))).imag.ravel()[:num_samples]
  first = max(0, math.ceil((RING - FADE - delay) * sample_rate))
  if first < num_samples:
    age = delay + np.arange(first, num_samples) / sample_rate
    wave[first:] *= .5 + .5 * np.cos(math.pi * np.clip((age - RING + FADE) / FADE, 0., 1.))
  return wave


def _add_rolling(track, record, i):
  """Adds object i's rolling: white noise through a one-pole low-pass that closes, as it fades, with the speed."""
  scene = record.scene
  segments, modes, rate = record.segments[i], record.modes[i], scene.sample_rate
  ends = [*segments[1:, 0], scene.duration]
  noise = None
  for segment, mode, end, before in zip(segments, modes, ends, ('', *modes)):
    start, stop = math.ceil(segment[0] * rate), min(len(track), math.ceil(end * rate))
    if mode != ROLLING or stop <= start:
      continue
    if noise is None:  # one stream an object, addressed by the sample: an earlier run does not shift a later one
      noise = np.random.default_rng([scene.seed, i]).standard_normal(len(track))
    times = np.arange(start, stop) / rate
    speed = np.clip(np.abs(segment[3] + segment[5] * (times - segment[0])) / ROLL_SPEED, 0., 1.)
    thing = scene.objects[i]
    cutoff = 4 * MATERIALS[thing.material].frequency * (.1 / thing.radius) * speed
    gain = ROLL_GAIN * speed
    if before != ROLLING:  # a bounce off a wall goes on rolling; everything else fades in
      gain = gain * np.clip((times - segment[0]) / ROLL_RAMP, 0., 1.)
    wave = gain * _low_pass(noise[start:stop], np.minimum(cutoff, rate / 2), rate)
    track[start:stop] += wave[:, None] * pan(_screen_x(scene, segment, times))


def _screen_x(scene: Scene, segment, times):
  dt = times - segment[0]
  x = segment[1] + segment[3] * dt + .5 * segment[5] * dt * dt
  path = scene.camera.path(times)
  return (x - path[:, 0]) * path[:, 2] + .5


def _low_pass(x, cutoff, sample_rate, block=64):
  """y[n] = y[n-1] + a[n] (x[n] - y[n-1]), a = 1 - exp(-2π cutoff/sample_rate), blockwise: y = P (y_before + Σ a x / P).

  P, the running product of 1 - a, stays above exp(-64 π) within a block.
  """
  num = len(x)
  pad = -num % block
  keep = np.exp(-2 * math.pi * np.pad(cutoff, (0, pad)) / sample_rate).reshape(-1, block)
  product = np.cumprod(keep, 1)
  y = product * np.cumsum((1 - keep) * np.pad(x, (0, pad)).reshape(-1, block) / product, 1)
  carry, last = 0., y[:, -1].copy()
  for j in range(len(y)):
    y[j] += product[j] * carry
    carry = last[j] + product[j, -1] * carry
  return y.ravel()[:num]
