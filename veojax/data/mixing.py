"""Several data sets as one, each with a weight: how often an epoch passes over it (see `epochs`).

All their clips are packed together: a row may hold clips of each, images and video alike, and a global row number
remains the whole state of the data.
"""
import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from veojax.data.epochs import LARGEST_BLOCK
from veojax.data.latent_clip import LatentClip
from veojax.data.pipeline import Lengths


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """A prepared data set among others. weight: passes over it in an epoch."""
  path: str
  weight: float = 1.0

  def __post_init__(self):
    if not self.weight >= 1 / LARGEST_BLOCK:
      raise ValueError(f'weight={self.weight} of {self.path}; give the passes over it in an epoch, at least '
                       f'{1 / LARGEST_BLOCK}')


def parts(data: str | tuple[DataConfig, ...]) -> tuple[DataConfig, ...]:
  """What a config's `data` names: the folder of one data set, or several with weights."""
  if isinstance(data, str):
    return (DataConfig(data),)
  if not data:
    raise ValueError('data names no data set; give the folder of one, or several as {path, weight}')
  return data


class JoinedLatents:
  """The clips of several `LatentSource`s one after another, as one."""

  def __init__(self, sources: Sequence):
    self.sources = list(sources)
    self.lengths = Lengths(*(np.concatenate(x) for x in zip(*(source.lengths for source in self.sources))))
    self.ends = np.cumsum([len(source) for source in self.sources]).tolist()

  def __len__(self) -> int:
    return self.ends[-1]

  def __getitem__(self, clip: int) -> LatentClip:
    source, clip = self.place(clip)
    return self.sources[source][clip]

  def text(self, clip: int) -> str:
    source, clip = self.place(clip)
    return self.sources[source].text(clip)

  def place(self, clip: int) -> tuple[int, int]:
    """(number of its source, number in it) of a clip."""
    if not 0 <= clip < len(self):
      raise IndexError(f'clip {clip} of {len(self)}')
    i = bisect.bisect_right(self.ends, clip)
    return i, clip - (self.ends[i - 1] if i else 0)
