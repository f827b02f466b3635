"""What Stable Video Diffusion is told of the first frames of a data set, made once and kept in the work directory.

Of every clip, in a folder of .npy files: `vector`, CLIP's of its first frame, and `first`, the frame's latents under
several noises of deviations `noise`, drawn beforehand, because the noise is on pixels and the autoencoder stays out of
the training step. A folder is whole or not there.
"""
import json
import pathlib
import shutil

import numpy as np

RECORD = 'record.json'
BATCH = 16  # pictures that CLIP sees at once


class Conditions:
  """Arrays by clip: vector [clip, E] float32, first [clip, K, h, w, C] float16, noise [clip, K] float32."""

  def __init__(self, path: pathlib.Path):
    self.vector, self.first, self.noise = (np.load(path / f'{name}.npy', mmap_mode='r')
                                           for name in ('vector', 'first', 'noise'))


def opened(path: pathlib.Path, dataset, clips: np.ndarray, pipeline, config) -> Conditions:
  """Those at `path`, made where they are not there. ValueError where it holds those of another model or other sizes.

  pipeline: of the converted run. config: has height, width, dtype, seed, num_noises, noise_mean and noise_std.
  """
  names = 'model', 'height', 'width', 'dtype', 'seed', 'num_noises', 'noise_mean', 'noise_std'
  record = {name: getattr(config, name) for name in names} | {'clips': len(dataset)}
  if (path / RECORD).exists():
    there = json.loads((path / RECORD).read_text())
    if there != record:
      changed = [f'{name}: {there.get(name)} there, {record[name]} now' for name in record
                 if there.get(name) != record[name]]
      raise ValueError(f'{path} holds first frames made with another config ({"; ".join(changed)}); give another '
                       '--workdir, or remove that folder')
    return Conditions(path)
  partial = path.with_name(f'{path.name}.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  _write(partial, dataset, clips, pipeline, config)
  (partial / RECORD).write_text(json.dumps(record, indent=2))
  shutil.rmtree(path, ignore_errors=True)
  partial.rename(path)
  return Conditions(path)


def _write(path, dataset, clips, pipeline, config):
  h, w, C = config.latent_shape[1:]
  N, K, E = len(dataset), config.num_noises, config.unet.each('cross_attention_dim')[0]
  make = lambda name, shape, dtype: np.lib.format.open_memmap(path / f'{name}.npy', 'w+', dtype, shape)
  vector, first = make('vector', (N, E), np.float32), make('first', (N, K, h, w, C), np.float16)
  noise = make('noise', (N, K), np.float32)
  for start in range(0, len(clips), BATCH):
    some = [int(clip) for clip in clips[start:start + BATCH]]
    frames = [_first_frame(dataset[clip].video, config.height, config.width) for clip in some]
    filled = frames + frames[-1:] * (BATCH - len(frames))  # one program
    vector[some] = pipeline.embed(filled, config.dtype)[:len(some)]
    for clip, frame in zip(some, frames):
      rng = np.random.default_rng((config.seed, clip))
      noise[clip] = np.exp(config.noise_mean + config.noise_std * rng.standard_normal(K))
      for k in range(K):
        normal = rng.standard_normal((1, *frame.shape), np.float32)
        first[clip, k] = pipeline.encode(frame, normal, float(noise[clip, k]))[0]
  for array in (vector, first, noise):
    array.flush()


def _first_frame(video_THWC: np.ndarray, height: int, width: int) -> np.ndarray:
  """The middle of it, as of the latents."""
  y, x = (video_THWC.shape[1] - height) // 2, (video_THWC.shape[2] - width) // 2
  return video_THWC[0, y:y + height, x:x + width]
