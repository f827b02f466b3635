"""A model as the package carries it: its weights and its codecs in half precision, no file above 8 MiB.

    python -m veojax.generation.shipped RUN FOLDER
"""
import pathlib
import sys

import numpy as np

from veojax.generation import model as models
from veojax.models import codec_file, weights

PART_BYTES = 2 ** 23 - 2 ** 16  # beside them a file holds the parameters' names


def write(run, folder):
  """The model of `run` in `folder`, float16. Raises ValueError where a weight does not fit float16."""
  model, folder = models.load(run), pathlib.Path(folder)
  for name, array in weights.names(model.dit).items():
    if not np.abs(array).max() < np.finfo(np.float16).max:
      raise ValueError(f'{name} of {run} reaches {np.abs(array).max():g}, more than float16 holds; this model has not '
                       'trained soundly')
  folder.mkdir(parents=True, exist_ok=True)
  models.write_config(folder, model.config)
  model.tokenizer.save(folder / models.TOKENIZER)
  weights.save(folder / models.WEIGHTS, model.dit, {'kind': 'transformer'}, np.float16, PART_BYTES)
  for kind, codec in (('video', model.video_codec), ('audio', model.audio_codec)):
    if codec is not None:
      codec.save(codec_file.of(folder, kind), np.float16)


if __name__ == '__main__':
  write(*sys.argv[1:])
