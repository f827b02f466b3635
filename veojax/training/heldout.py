"""The clips that a stage is measured on: of the validation split, or of the training split where none was held back."""
from collections.abc import Iterator

import numpy as np

from veojax.data import datasets
from veojax.types import Clip


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
