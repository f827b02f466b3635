"""The clips that a stage is measured on: of the validation split, or of the training split where none was held back."""
from collections.abc import Iterator

import jax
import numpy as np

from veojax.data import datasets, pipeline
from veojax.training import loop
from veojax.types import Clip

BATCHES = 8


def split(data: str) -> datasets.Dataset:
  try:
    return datasets.open_dataset(data, 'validation')
  except ValueError:
    return datasets.open_dataset(data, 'train')


def clips(data: str, needs: str, count: int) -> Iterator[Clip]:
  """The first `count` clips whose index entry `needs` (num_frames or num_samples) is not 0."""
  dataset = split(data)
  for i in np.flatnonzero(dataset.index[needs])[:count]:
    yield dataset[int(i)]


def losses(ema, stage, loss) -> dict[str, float]:
  """Means of the loss and its parts over the first batches of `stage.held_out`, with noise that is the same at every
  evaluation. loss(model, batch, key): a stage's, compiled."""
  rows, batch = stage.held_out.rows_per_epoch, stage.config.loop.batch_size
  found, mine = [], loop.positions(batch)
  for i in range(max(1, min(BATCHES, rows // batch))):
    stacked = pipeline.stack([stage.held_out[(i * batch + j) % rows] for j in mine])
    stacked = jax.tree.map(lambda x: x[0], loop.put([stacked], stage))
    loss_, parts = loss(ema, stacked, jax.random.key(i))
    found.append({'loss': float(loss_), **{name: float(value) for name, value in parts.items()}})
  return {name: float(np.mean([each[name] for each in found])) for name in found[0]}
