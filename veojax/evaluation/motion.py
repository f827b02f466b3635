"""Steadiness and motion of a clip from its pixels alone. The names are VBench's (Huang et al. 2024), with what needs a
network there done without one, and said so.

Clips are uint8[T, H, W, 3]. NaN stands for what a clip is too short for.
"""
import numpy as np

from veojax.evaluation import flow

SHORT_SIDE, RATE = 256, 8    # at which flow is told: pixels of the shorter side, frames a second
TOP = .05                    # of the pixels, the fastest, that make a frame's motion
THRESHOLD, SHARE = 6., .25   # pixels; of the pairs of frames that must move as much for a clip to be dynamic


def steadiness(video_THWC: np.ndarray) -> float:
  """1 - mean |x_t - x_t-1| / 255: VBench's temporal flickering, meant for clips in which nothing moves."""
  if len(video_THWC) < 2:
    return float('nan')
  return float(1 - np.abs(np.diff(video_THWC.astype(np.float32), axis=0)).mean() / 255)


def smoothness(video_THWC: np.ndarray) -> float:
  """1 - mean |x_t - (x_t-1 + x_t+1)/2| / 255 over odd t: VBench's motion smoothness with linear interpolation in place
  of its network."""
  if len(video_THWC) < 3:
    return float('nan')
  x = video_THWC.astype(np.float32)
  last = (len(x) - 1) // 2 * 2
  return float(1 - np.abs(x[1:last:2] - (x[0:last:2] + x[2:last + 1:2]) / 2).mean() / 255)


def speeds(video_THWC: np.ndarray, fps: float) -> np.ndarray:
  """float[pairs]: mean flow of the fastest 5 % of the pixels of every pair of frames, about 1/8 s apart, in pixels of a
  frame whose shorter side is 256 and per 1/8 s. VBench takes RAFT's flow; this is Farnebäck's."""
  step = max(1, round(fps / RATE))
  frames = flow.grey(video_THWC[::step])
  scale = SHORT_SIDE / min(frames.shape[1:]) * fps / (step * RATE)
  found = []
  for before, after in zip(frames, frames[1:]):
    speed = np.sort(np.linalg.norm(flow.flow(before, after), axis=-1), axis=None)
    found.append(scale * speed[-max(1, round(TOP * speed.size)):].mean())
  return np.array(found)


def is_dynamic(speeds: np.ndarray) -> float:
  """1 where at least a quarter of the pairs of frames move by 6 pixels or more (VBench's dynamic degree), else 0."""
  return float(np.mean(speeds >= THRESHOLD) >= SHARE) if len(speeds) else float('nan')
