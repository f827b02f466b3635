"""Sound → onsets, the side they come from, and the material that rings, without a network.

Conventions: audio is float[R, channels]; sample n is at n / sample_rate; times in seconds; x runs from 0 (left)
to 1 (right).
"""
import functools

import numpy as np

from veojax.data import world

HOP, WINDOW = .001, .003   # seconds
FLOOR = 1e-3               # rms under which level differences do not count
RISE, START = .5, .2       # nepers above the least level of the last 8 ms that make an onset, and that begin it
BANDS_PER_OCTAVE, LOWEST, HIGHEST = 6, 80., 7000.
RING_SECONDS = .12         # of an impact that are compared with the materials' rings


def onsets(audio: np.ndarray, sample_rate: float) -> np.ndarray:
  """Times float[N] at which the sound sets in; onsets within 30 ms are one.

  level = log(rms over 3 ms + 1e-3), every 1 ms. A rise of more than RISE over the least level of the last 8 ms that
  is the largest within 25 ms is an onset; its time is found by walking back to where the rise began, at most 12 ms.
  """
  level = _level(audio, sample_rate)
  if len(level) < 2:
    return np.zeros(0)
  rise = level - np.min(np.lib.stride_tricks.sliding_window_view(np.pad(level, (8, 0), mode='edge'), 9), axis=1)
  around = np.max(np.lib.stride_tricks.sliding_window_view(np.pad(rise, 25, constant_values=-1), 51), axis=1)
  peaks = np.flatnonzero((rise > RISE) & (rise >= around))
  times = []
  for k in peaks:
    first = k
    while first > max(0, k - 12) and rise[first - 1] > START:
      first -= 1
    time = max(0., first - .5) * HOP
    if not times or time - times[-1] > .03:
      times.append(time)
  return np.array(times)


def stretch(audio: np.ndarray, sample_rate: float, start: float, seconds: float | None = None) -> np.ndarray:
  """The samples from `start` on, for `seconds` (None: to the end)."""
  first = max(0, round(start * sample_rate))
  return audio[first:None if seconds is None else first + round(seconds * sample_rate)]


def loudness(audio: np.ndarray, sample_rate: float) -> float:
  """The largest rms over 3 ms."""
  level = _level(audio, sample_rate)
  return float(np.exp(level.max()) - FLOOR) if level.size else 0.


def place(audio: np.ndarray, sample_rate: float, start: float = 0., seconds: float | None = None) -> float:
  """x of a stretch of sound by its constant-power pan, 2/π atan2(rms right, rms left); .5 for mono and for silence."""
  heard = stretch(audio, sample_rate, start, seconds)
  if audio.shape[1] < 2 or not heard.size:
    return .5
  left, right = np.sqrt(np.mean(np.square(heard[:, :2], dtype=np.float64), axis=0))
  return float(2 / np.pi * np.arctan2(right, left)) if max(left, right) > 1e-6 else .5


def materials(audio: np.ndarray, sample_rate: float, start: float) -> dict[str, float]:
  """How far the 120 ms from an onset on sound like each material: shares that sum to 1 (equal ones in silence)."""
  spectrum = _bands(stretch(audio, sample_rate, start, RING_SECONDS).mean(1), sample_rate)
  likeness = _rings(sample_rate) @ spectrum
  best = likeness.reshape(len(world.MATERIALS), -1).max(1)
  share = np.exp((best - best.max()) / .08)
  return dict(zip(world.MATERIALS, (share / share.sum()).tolist()))


def _level(audio: np.ndarray, sample_rate: float) -> np.ndarray:
  """float[N]: log(rms + FLOOR) of the window that ends at k HOP, over all channels; silence precedes the track."""
  power = np.mean(np.square(audio, dtype=np.float64), axis=1)
  total = np.concatenate([[0.], np.cumsum(power)])
  ends = np.arange(0, len(power) / sample_rate, HOP)
  index = np.clip(np.round(np.stack([ends - WINDOW, ends]) * sample_rate).astype(int), 0, len(power))
  width = max(1, round(WINDOW * sample_rate))
  return np.log(np.sqrt(np.maximum(0, total[index[1]] - total[index[0]]) / width) + FLOOR)


def _bands(wave: np.ndarray, sample_rate: float) -> np.ndarray:
  """Unit-norm amplitude in bands of a sixth of an octave; zeros for silence."""
  size = 4096 if sample_rate <= 24000 else 8192
  fade = np.cos(np.linspace(0, np.pi / 2, len(wave))) if len(wave) else wave
  power = np.abs(np.fft.rfft(wave * fade, size))**2
  frequency = np.fft.rfftfreq(size, 1 / sample_rate)
  number = int(np.log2(HIGHEST / LOWEST) * BANDS_PER_OCTAVE) + 1
  band = np.floor(np.log2(np.maximum(frequency, 1) / LOWEST) * BANDS_PER_OCTAVE).astype(int)
  inside = (band >= 0) & (band < number)
  amplitude = np.sqrt(np.bincount(band[inside], power[inside], number))
  # Neighbouring bands share, so a partial near a band's edge is no other partial.
  amplitude = np.convolve(amplitude, (.25, .5, .25), mode='same')
  return amplitude / max(np.linalg.norm(amplitude), 1e-9)


@functools.cache
def _rings(sample_rate: float) -> np.ndarray:
  """float[materials · radii, bands]: the spectra of every material's ring at several radii, material first."""
  t = np.arange(round(RING_SECONDS * sample_rate)) / sample_rate
  rings = []
  for material in world.MATERIALS.values():
    for radius in (.065, .085, .105, .125, .145):
      wave = np.zeros_like(t)
      for h, ratio in enumerate(material.partials):
        frequency = material.frequency * (.1 / radius) * ratio
        if frequency < sample_rate / 2:
          wave += np.exp(-t * (1 + .5 * h) / material.decay) * np.sin(2 * np.pi * frequency * t) / (1 + h)
      rings.append(_bands(wave, sample_rate))
  return np.array(rings)
