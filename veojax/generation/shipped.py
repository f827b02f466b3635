"""A model as the package carries it: its weights and its codecs in half precision, no file above 8 MiB.

    python -m veojax.generation.shipped RUN [RUN...] FOLDER
"""
import dataclasses
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from veojax.generation import model as models
from veojax.generation.model import Model
from veojax.models import codec_file, weights

PART_BYTES = 2 ** 23 - 2 ** 16  # beside them a file holds the parameters' names


def write(runs: Sequence, folder):
  """The model of a run in `folder`, float16; of several, the last with the mean of their weights. Where one has begun
  with the other's and learned something else, the mean does both (Wortsman et al. 2022, "Robust fine-tuning of
  zero-shot models").

  Raises ValueError where the runs' weights, tokens or latents are not of one kind, or a weight does not fit float16.
  """
  loaded, folder = [models.load(run) for run in runs], pathlib.Path(folder)
  model = loaded[-1]
  for run, other in zip(runs, loaded):
    if kind(other) != kind(model):
      raise ValueError(f'{run} and {runs[-1]} differ in their codecs, their tokens or their objective; give runs of '
                       'which one has begun with the other')
  sets = [weights.names(weights.replace(model.dit, weights.names(other.dit))) for other in loaded]
  flat = {name: np.mean([one[name] for one in sets], 0) for name in sets[-1]}
  for name, array in flat.items():
    if not np.abs(array).max() < np.finfo(np.float16).max:
      raise ValueError(f'{name} of {runs[-1]} reaches {np.abs(array).max():g}, more than float16 holds; this model has '
                       'not trained soundly')
  folder.mkdir(parents=True, exist_ok=True)
  models.write_config(folder, model.config)
  model.tokenizer.save(folder / models.TOKENIZER)
  dit = weights.replace(model.dit, flat)
  weights.save(folder / models.WEIGHTS, dit, {'kind': 'transformer'}, np.float16, PART_BYTES)
  for part, codec in (('video', model.video_codec), ('audio', model.audio_codec)):
    if codec is not None:
      codec.save(codec_file.of(folder, part), np.float16)


def kind(model: Model) -> tuple:
  """Equal for models whose weights mean the same."""
  codecs = [codec and codec.hash() for codec in (model.video_codec, model.audio_codec)]
  network = dataclasses.replace(model.config.dit, remat='none', dtype='float32')
  return codecs, network, model.config.video_patch, model.config.objective, model.tokenizer.hash()


if __name__ == '__main__':
  write(sys.argv[1:-1], sys.argv[-1])
