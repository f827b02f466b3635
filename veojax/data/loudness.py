"""Clips brought to one loudness, so that a faint recording teaches a model as much as a loud one."""
import numpy as np

MAX_GAIN = 30.0  # dB; what is fainter still is taken for silence, not for sound to be amplified


def level(audio_RC: np.ndarray) -> float:
  """Root mean square over all channels in dB, 0 being full scale; -inf for silence."""
  power = float(np.mean(np.square(audio_RC, dtype=np.float64))) if audio_RC.size else 0.0
  return 10 * np.log10(power) if power else -np.inf


def normalised(audio_RC: np.ndarray, target: float) -> np.ndarray:
  """The sound at `target` dB; short of it where more than MAX_GAIN would be needed or a peak would pass full scale."""
  loudness, peak = level(audio_RC), float(np.abs(audio_RC).max(initial=0.0))
  if not peak:
    return audio_RC
  gain = min(target - loudness, MAX_GAIN, max(0.0, -20 * np.log10(peak)))
  return audio_RC * np.float32(10 ** (gain / 20))
