"""Loudness, clipping and silence of a sound, float[R, channels] in [-1, 1]."""
import numpy as np

from veojax.data import loudness

FULL = 1 - 2 ** -15  # what a 16-bit file holds at most
RUN = 3              # samples at full scale in a row: fewer may be a peak that just reaches it
QUIET = -60.         # dB of full scale, by root mean square
BLOCK = .02          # seconds


def level(audio_RC: np.ndarray) -> float:
  """Root mean square in dB of full scale; -120 for silence and below."""
  return float(max(loudness.level(audio_RC), -120.))


def clipped(audio_RC: np.ndarray) -> float:
  """The share of samples that stand at full scale, three or more in a row."""
  count = 0
  for channel in np.abs(audio_RC).T >= FULL:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], channel, [0]])))
    lengths = edges[1::2] - edges[::2]
    count += lengths[lengths >= RUN].sum()
  return float(count / max(1, audio_RC.size))


def silence(audio_RC: np.ndarray, sample_rate: int) -> float:
  """The share of blocks of 20 ms below -60 dB."""
  size = max(1, round(BLOCK * sample_rate))
  blocks = [audio_RC[i:i + size] for i in range(0, len(audio_RC), size)]
  return float(np.mean([loudness.level(block) < QUIET for block in blocks])) if blocks else float('nan')
