"""What a model in training draws, as files in its work directory that say in their tags what made them."""
import dataclasses
from collections.abc import Sequence

from veojax import files, processes
from veojax.generation import export
from veojax.generation.export import Sample


def folder(workdir):
  """WORKDIR/samples, which is made where it is not there."""
  made = workdir / 'samples'
  made.mkdir(exist_ok=True)
  return made


def write(clips: Sequence[Sample], workdir, step: int):
  """STEP_0.mp4 and its contact sheet STEP_0.png, STEP_1.mp4, ... The first of several processes writes them."""
  if not processes.is_first():
    return
  for i, clip in enumerate(clips):
    sheet = dataclasses.replace(clip, video=export.contact_sheet(clip)[None], audio=None)
    for ending, sample in (('mp4', clip), ('png', sheet)):
      with files.writing(folder(workdir) / f'{step:07d}_{i}.{ending}') as draft:
        sample.save(draft)
