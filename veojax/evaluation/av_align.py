"""AV-Align (Yariv et al. 2024, TempoTokens), for comparison with published numbers only.

It compares onsets of the sound with local maxima of the mean optical flow. It does not tell a sound in time from one
that is not: on the world's clips it gives in-sync and shifted tracks, and those of other clips, nearly the same value.
The world's own measures of impacts do tell. The onsets are those of librosa's defaults (spectral flux over 128 mel
bands at 22 050 Hz), written out here, the flow Farnebäck's.
"""
import numpy as np

from veojax.data import media
from veojax.evaluation import flow
from veojax.types import Clip

SAMPLE_RATE, FFT, HOP, BANDS = 22050, 2048, 512, 128
BEFORE, AROUND, DELTA, WAIT = 1, 4, .07, 1  # of peak picking, in hops: 0.03 s, 0.1 s


def av_align(clip: Clip, seen: np.ndarray | None = None) -> float:
  """Intersection over union of the two lists of peaks; NaN where both are empty or the clip has no sound or no motion.
  seen: `turns` of the picture, where they are known."""
  if clip.video is None or clip.audio is None or len(clip.video) < 3:
    return float('nan')
  seen = turns(clip.video, clip.fps) if seen is None else seen
  return overlap(onsets(clip.audio, clip.sample_rate), seen, clip.fps)


def turns(video_THWC: np.ndarray, fps: float) -> np.ndarray:
  """Times in seconds at which the mean flow has a maximum; the first frame's flow is taken to be the second's."""
  frames = flow.grey(video_THWC)
  moving = [float(np.linalg.norm(flow.flow(a, b), axis=-1).mean()) for a, b in zip(frames, frames[1:])]
  return peaks(moving[:1] + moving) / fps


def overlap(heard: np.ndarray, seen: np.ndarray, fps: float) -> float:
  """Of two lists of times in seconds; a heard one is met by any seen one less than a frame away."""
  met = sum(bool((np.abs(seen - time) < 1 / fps).any()) for time in heard)
  every = len(heard) + len(seen) - met
  return met / every if every else float('nan')


def peaks(curve) -> np.ndarray:
  """Places of the strict local maxima."""
  curve = np.asarray(curve)
  return np.flatnonzero((curve[1:-1] > curve[:-2]) & (curve[1:-1] > curve[2:])) + 1


def onsets(audio_RC: np.ndarray, sample_rate: int) -> np.ndarray:
  """Times in seconds."""
  sound = media.resample(audio_RC.mean(1, keepdims=True), sample_rate, SAMPLE_RATE)[:, 0].astype(np.float64)
  curve = strength(sound)
  curve = curve - curve.min()
  if not curve.max():
    return np.zeros(0)
  curve /= curve.max()
  found, last = [], -np.inf
  for n, value in enumerate(curve):
    near = curve[max(0, n - BEFORE):n + 1].max()
    mean = curve[max(0, n - AROUND):n + AROUND + 1].mean()
    if value == near and value >= mean + DELTA and n - last > WAIT:
      found.append(n)
      last = n
  return np.array(found) * (HOP / SAMPLE_RATE)


def strength(sound_R: np.ndarray) -> np.ndarray:
  """float[1 + R // HOP]: mean rise in dB over the mel bands, from a hop to the next, at the middle of the window."""
  frames = np.lib.stride_tricks.sliding_window_view(np.pad(sound_R, FFT // 2), FFT)[::HOP]
  hann = .5 - .5 * np.cos(2 * np.pi / FFT * np.arange(FFT))
  power = np.abs(np.fft.rfft(frames * hann)) ** 2 @ mel_matrix()
  decibels = 10 * np.log10(np.maximum(power, 1e-10))
  decibels = np.maximum(decibels, decibels.max() - 80)
  rise = np.maximum(0, np.diff(decibels, axis=0)).mean(1)
  return np.pad(rise, (1 + FFT // (2 * HOP), 0))[:len(frames)]


def mel_matrix() -> np.ndarray:
  """float64[FFT / 2 + 1, BANDS]: Slaney's triangles of equal area; mel is linear below 1 kHz, logarithmic above."""
  step, log_step = 200 / 3, np.log(6.4) / 27
  mel = 15 + np.log(SAMPLE_RATE / 2 / 1000) / log_step
  at = np.linspace(0, mel, BANDS + 2)
  edges = np.where(at < 15, at * step, 1000 * np.exp(log_step * (at - 15)))
  low, centre, high = edges[:-2], edges[1:-1], edges[2:]
  hertz = np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)[:, None]
  triangles = np.maximum(0, np.minimum((hertz - low) / (centre - low), (high - hertz) / (high - centre)))
  return triangles * 2 / (high - low)
