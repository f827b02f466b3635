"""What Make-A-Video learns from: frames of prepared clips, of several data sets by their weights.

Pictures are frames of clips with captions, one a row. Clips are frames at a drawn frame rate, without their captions,
and a frame of them whose embedding stands for the text. Frames are made as small as the network's by means over whole
pixels: the middle of the frame, as much of it as divides.
"""
import numpy as np

from veojax.data import pipeline
from veojax.data.epochs import Epochs
from veojax.generation import cascade

FRAMES = 7  # stream of random numbers; the pipeline has those before it
STEEPNESS = 4.0  # of the change from high to low frame rates


class ClipSource:
  """Rows {'video': uint8[T, H, W, 3], 'fps': float32, ...}; see `__getitem__`.

  shape: (T, H, W). skips: frames of the data to one of the row, which are drawn; over the `num_rows` of a training from
  few to many, so from little motion to much (section 3.4); evenly where that is 0. told: 'text', its ids in at most
  `max_text` tokens; 'picture', a frame; or nothing. dropout: of what is told.
  """

  def __init__(self, datasets: list, weights: list[float], shape: tuple[int, int, int], skips: tuple[int, ...],
               told: str, seed: int, dropout: float, num_rows: int, tokenizer=None, max_text: int = 0):
    self.datasets, self.shape, self.skips, self.told, self.seed = datasets, shape, skips, told, seed
    self.dropout, self.num_rows, self.tokenizer, self.max_text = dropout, num_rows, tokenizer, max_text
    T, H, W = shape
    needed = np.array([(T - 1) * min(skips) + 1, H, W])
    clips, weight = [], []
    for number, (dataset, share) in enumerate(zip(datasets, weights, strict=True)):
      sizes = np.stack([dataset.index[name] for name in ('num_frames', 'height', 'width')], -1)
      fit = [clip for clip in np.flatnonzero((sizes >= needed).all(-1)).tolist()
             if told != 'text' or dataset.text(clip).strip()]
      clips += [(number, clip) for clip in fit]
      weight += [share] * len(fit)
    if not clips:
      caption = ' and a caption' if told == 'text' else ''
      raise ValueError(f'no clip of {", ".join(dataset.path for dataset in datasets)} has {needed[0]} frames of {H}x{W}'
                       f'{caption}; prepare such clips, or set frame_skips and the sizes of the config to what the data '
                       'has')
    self.places = np.array(clips)
    ones = np.ones((len(clips), 2), np.int64)
    self.epochs = Epochs(ones, np.array(weight, np.float64), seed)
    self.rows_per_epoch = len(self.epochs.bound)

  def clips_of(self, row: int) -> list[int]:
    epoch, at = divmod(row, self.rows_per_epoch)
    return [int(self.epochs[epoch][pipeline.shuffled(self.seed, epoch, self.rows_per_epoch)[at]])]

  def name(self, clip: int) -> str:
    number, clip = self.places[clip].tolist()
    return f'{self.datasets[number].path}: {self.datasets[number].id(clip)}'

  def __getitem__(self, row: int) -> dict[str, np.ndarray]:
    """`kept` is 1, or 0 where what is told is to be left out."""
    number, clip = self.places[self.clips_of(row)[0]].tolist()
    rng = np.random.default_rng([self.seed, FRAMES, row])
    found, (T, H, W) = self.datasets[number][clip], self.shape
    skip = self.skip(len(found.video), row, rng)
    start = rng.integers(len(found.video) - (T - 1) * skip)
    window = fitted(found.video[start:start + (T - 1) * skip + 1:skip], H, W)
    out = {'video': window, 'fps': np.float32(found.fps / skip), 'kept': np.float32(rng.random() >= self.dropout)}
    if self.told == 'picture':
      out['picture'] = window[rng.integers(T)]
    if self.told == 'text':
      out['text'] = cascade.text_row(self.tokenizer, found.text, self.max_text)
    return out

  def skip(self, num_frames: int, row: int, rng) -> int:
    """One that the clip is long enough for."""
    skips = [skip for skip in sorted(self.skips) if (self.shape[0] - 1) * skip < num_frames]
    late = min(1.0, row / self.num_rows) if self.num_rows else 0.5
    share = rng.beta(1 + STEEPNESS * late, 1 + STEEPNESS * (1 - late)) if self.num_rows else rng.random()
    return skips[min(int(share * len(skips)), len(skips) - 1)]


def fitted(video_THWC: np.ndarray, height: int, width: int) -> np.ndarray:
  """uint8[T, height, width, 3]: means over squares of the middle of each frame."""
  T, H, W, _ = video_THWC.shape
  k = min(H // height, W // width)
  y, x = (H - k * height) // 2, (W - k * width) // 2
  squares = video_THWC[:, y:y + k * height, x:x + k * width].reshape(T, height, k, width, k, 3)
  return np.round(squares.mean((2, 4), dtype=np.float32)).astype(np.uint8)
