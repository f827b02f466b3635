"""Has a model learned its clips? A clip generated from a caption should be nearest to a real clip of that caption.

    python -m veojax.evaluation.retrieval RUN DATA

Distances: pixels, root mean square of RGB in [0, 1] over frames of 24 x 32 pixels; sound, mean absolute difference of
log-mel spectra in nepers; both over the time that both clips have, since a folder's clips differ in length. The distance
to a caption is that to the nearest of its clips. A caption counts as learned when its own is nearest in pixels, and in
sound where its clips have sound.
"""
import sys

import jax.numpy as jnp
import numpy as np
from rich import console, progress

from veojax.data import datasets, pipeline
from veojax.generation import model as models
from veojax.training import audio_losses
from veojax.types import Clip

HEIGHT, WIDTH = 24, 32
SOUND_SECONDS = 2.0


def picture_features(video: np.ndarray) -> np.ndarray:
  """uint8[T, H, W, 3] → float32[T, HEIGHT, WIDTH, 3] by area means."""
  frames = video.astype(np.float32) / 255
  for dim, size in ((1, HEIGHT), (2, WIDTH)):
    edges = np.linspace(0, frames.shape[dim], size + 1)
    starts = np.minimum(edges[:-1].astype(int), frames.shape[dim] - 1)
    counts = np.maximum(1, np.diff(np.append(starts, frames.shape[dim])))
    shape = [1] * 4
    shape[dim] = size
    frames = np.add.reduceat(frames, starts, dim) / counts.reshape(shape)
  return frames


def frames_at(clip: Clip, fps: float) -> np.ndarray:
  """Numbers of the clip's frames at the times of another rate."""
  times = np.arange(max(1, round(len(clip.video) * fps / clip.fps))) / fps
  return np.minimum(np.round(times * clip.fps).astype(int), len(clip.video) - 1)


def picture_distance(a: np.ndarray, b: np.ndarray) -> float:
  length = min(len(a), len(b))
  return float(np.sqrt(np.mean(np.square(a[:length] - b[:length]))))


def sound_features(audio: np.ndarray, sample_rate: int) -> np.ndarray:
  """float32[R, channels] → log-mel float32[t, m] of the mean of the channels, its first SOUND_SECONDS."""
  mono = pipeline.mix(audio, 1)[:round(SOUND_SECONDS * sample_rate), 0]
  return np.asarray(audio_losses.log_mel(
      jnp.asarray(np.pad(mono, (0, max(0, 1024 - len(mono)))))[None], sample_rate))[0]


def sound_distance(a: np.ndarray, b: np.ndarray) -> float:
  length = min(len(a), len(b))
  return float(np.abs(a[:length] - b[:length]).mean())


def distances(clips: list[Clip], captions: list[str], real: list[Clip]) -> tuple[np.ndarray, np.ndarray]:
  """(pixels, sound), each float[n, n]: from clip i, made from captions[i], to the nearest real clip of captions[j].

  Infinite where caption j has no such clip; a row of the sound is NaN where caption i's own clips have none.
  """
  pixels = np.full((len(clips), len(captions)), np.inf)
  sound = np.full_like(pixels, np.inf)
  made = [(picture_features(c.video), None if c.audio is None else sound_features(c.audio, c.sample_rate))
          for c in clips]
  for clip in real:
    j = captions.index(clip.text)
    seen = picture_features(clip.video[frames_at(clip, clips[0].fps)])
    heard = None if clip.audio is None else sound_features(clip.audio, clip.sample_rate)
    for i, (picture, mel) in enumerate(made):
      pixels[i, j] = min(pixels[i, j], picture_distance(picture, seen))
      if heard is not None and mel is not None:
        sound[i, j] = min(sound[i, j], sound_distance(mel, heard))
  sound[np.isinf(np.diag(sound))] = np.nan
  return pixels, sound


def learned(pixels: np.ndarray, sound: np.ndarray) -> np.ndarray:
  """bool[n]: captions whose clip is nearest to their own, in pixels and, where there is sound, in sound."""
  own = np.arange(len(pixels))
  silent = np.isnan(sound[:, 0])
  return (pixels.argmin(1) == own) & (silent | (np.where(silent[:, None], 0.0, sound).argmin(1) == own))


def main(run: str, data: str, *options: str):
  from veojax import arguments, host
  host.enable_compilation_cache()
  model, dataset = models.load(run), datasets.open_dataset(data)
  real = [dataset[i] for i in range(len(dataset))]
  real = [clip for clip in real if clip.video is not None]
  captions = sorted({clip.text for clip in real})
  clips = []
  for start in progress.track(range(0, len(captions), 4), 'generating'):
    clips += model.generate(captions[start:start + 4], **arguments.parse(list(options)))
  pixels, sound = distances(clips, captions, real)
  out = console.Console(width=8 + 6 * len(captions))
  for name, matrix in (('pixels', pixels), ('sound', sound)):
    out.print(f'{name}: rows are generated, columns real', highlight=False)
    for i, row in enumerate(matrix):
      out.print(f'{i:>3} ' + ' '.join(f'{d:5.3f}' for d in row), highlight=False)
  for i, (caption, right) in enumerate(zip(captions, learned(pixels, sound))):
    out.print(f'{i:>3} {"learned" if right else "not yet"}  {caption}', highlight=False, soft_wrap=True)
  out.print(f'{learned(pixels, sound).sum()} of {len(captions)} captions are learned', highlight=False)
  return clips


if __name__ == '__main__':
  main(*sys.argv[1:])
