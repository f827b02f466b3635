"""What a diffusion model was trained to predict, of which process: the part of a model that training and sampling
share."""
import dataclasses
from typing import Literal

from veojax.diffusion import predictions
from veojax.diffusion.process import EDM, VP, Process, RectifiedFlow

PROCESSES = {
    'flow': RectifiedFlow(),
    'vp_linear': VP('linear'),
    'vp_cosine': VP('cosine'),
    'vp_linear_zero_snr': VP('linear', zero_terminal_snr=True),
    'vp_cosine_zero_snr': VP('cosine', zero_terminal_snr=True),
    'edm': EDM(),
}


@dataclasses.dataclass(frozen=True)
class Objective:
  """prediction 'eps' with a variance-preserving process is DDPM, 'flow' with the flow is rectified flow."""
  process: Literal['flow', 'vp_linear', 'vp_cosine', 'vp_linear_zero_snr', 'vp_cosine_zero_snr', 'edm'] = 'flow'
  prediction: Literal['flow', 'eps', 'x0', 'v', 'edm'] = 'flow'

  def __post_init__(self):
    predictions.check_defined(self.prediction, self.make_process())

  def make_process(self) -> Process:
    return PROCESSES[self.process]
