"""A clip that a model is asked for."""
import dataclasses

from veojax.generation import tasks


@dataclasses.dataclass(frozen=True)
class Wanted:
  """It is made under `prompt` with the key fold_in(seed, index). options: of `Model.generate`: sizes of the clip, and
  fields of `SamplingConfig`."""
  prompt: str
  seed: int = 0
  index: int = 0
  given: tasks.Given = tasks.Given()
  options: dict = dataclasses.field(default_factory=dict)
