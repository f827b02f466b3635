"""How far reconstructions are from what they reconstruct, in decibels, over many clips together."""
from collections.abc import Iterable

import numpy as np

LEAST = 1e-12  # of a mean square: what is exact stays finite


def psnr(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
  """Peak signal-to-noise ratio of pairs of uint8 pictures (true, made), by the mean of the pairs' mean squared errors."""
  errors = [np.mean(np.square(true.astype(np.float32) - made)) for true, made in pairs]
  return float(10 * np.log10(255 ** 2 / max(np.mean(errors), LEAST)))


def sdr(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
  """Signal-to-distortion ratio of pairs of sounds (true, made), by the energies of all together."""
  signal = noise = 0.0
  for true, made in pairs:
    signal, noise = signal + float(np.sum(np.square(true))), noise + float(np.sum(np.square(made - true)))
  return float(10 * np.log10(max(signal, LEAST) / max(noise, LEAST)))
