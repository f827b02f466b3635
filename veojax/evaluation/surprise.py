"""Surprise: whether a model finds what is impossible in its world harder to denoise than what is possible (violation of
expectation, after IntPhys; Riochet et al. 2022). Nothing is generated.

Case i is two possible clips and two impossible ones made of their parts (`data/impossible.py`). A clip's surprise is
its denoising loss without a caption, over noise levels drawn uniformly; the four clips of a case share levels and
noise. A case is won where the impossible side's is the larger. The floor is the same with the sides named by lot, which
wins half. The ceiling is 1 by construction; clips are judged as the codecs' latents of them, so there is no round trip.
"""
import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import numpy as np

from veojax import sharding
from veojax.data import impossible, packing, world
from veojax.evaluation import benchmark, clips
from veojax.evaluation.benchmark import Metric, Row, Subject
from veojax.generation.canvas import Canvas
from veojax.generation.model import Model
from veojax.generation.rows import ROW_STEP
from veojax.models import dit
from veojax.training import losses
from veojax.types import Clip, Tokens

KINDS = tuple(impossible.KINDS)
SEEDS = 1_000_000  # cases apart from each other by benchmark seed


@dataclasses.dataclass(frozen=True)
class Surprise(benchmark.Benchmark):
  """num_clips: cases, of all kinds in turn; a kind that clips of these sizes cannot show is left out. draws: of level
  and noise, of each clip. Sizes: None for the model's own."""
  num_clips: int = 120
  seed: int = 0
  draws: int = 16
  num_frames: int | None = None
  height: int | None = None
  width: int | None = None
  fps: float | None = None
  sample_rate: int | None = None

  METRICS = {
      'surprised': Metric('higher', 'share of cases whose impossible side is harder to denoise; chance is 0.5', 'all'),
      'margin': Metric('higher', 'by how much harder, as a share of the loss', 'all'),
      **{kind: Metric('higher', 'the same share among the cases of this kind', 'kinds') for kind in KINDS},
  }
  KEY = ('surprised', 'margin')
  WORST = 'margin'
  MEANING = benchmark.MEANING | {'shuffled': 'the floor: which side of a case is the impossible one drawn by lot'}
  NOTE = ('The ceiling of a share is 1 by construction: one side of every case cannot be, and the other can. Clips are '
          "judged as the codecs' latents of them, so no column tells what the codecs leave.")

  def __post_init__(self):
    if self.draws < 1:
      raise ValueError(f'draws={self.draws}; give at least 1')

  def fitted(self, subject: Subject) -> 'Surprise':
    if not isinstance(subject.model, Model):
      raise ValueError(f'{subject.name} is no model that something could surprise here; give a run of the transformer')
    codec = subject.model.audio_codec
    own = subject.model.clip_sizes | {'sample_rate': codec.sample_rate if codec is not None else 0}
    return dataclasses.replace(self, **{name: value for name, value in own.items() if getattr(self, name) is None})

  def parts(self, subject: Subject) -> tuple[str, ...]:
    return ('made',) if subject.model is not None else ()

  def rows(self, subject: Subject, part: str, indices, keep=benchmark.keep_nothing) -> dict[str, list[Row]]:
    rows = {part: [], 'shuffled': []}
    for i in indices:
      kind, losses = KINDS[i % len(KINDS)], []
      try:
        case = self.case(i)
        text = f'{kind}, at frame {case.frame}' if case.frame else kind
        keep(part, i, case.impossible[0])
        if kind != 'sound' or self.sample_rate:
          losses = [sum(loss(subject.model, clip, self.draws, (self.seed, i)) for clip in side)
                    for side in (case.possible, case.impossible)]
      except impossible.NoSceneError as error:
        text = str(error)
      rows[part].append(Row(i, text, kind, compared(kind, losses)))
      by_lot = np.random.default_rng([self.seed, i]).permutation(losses)
      rows['shuffled'].append(Row(i, text, kind, compared(kind, by_lot)))
    return rows

  def case(self, index: int) -> impossible.Case:
    """Of a benchmark that is fitted."""
    config = world.WorldConfig(num_frames=self.num_frames, height=self.height, width=self.width, fps=self.fps,
                               sample_rate=self.sample_rate, split='test')
    return impossible.make(KINDS[index % len(KINDS)], self.seed * SEEDS + index // len(KINDS), config)


def compared(kind: str, losses: Sequence[float]) -> dict[str, float]:
  """The values of a case whose possible and impossible side have these losses; none without them."""
  if not len(losses):
    return {}
  possible, strange = losses
  won = float(strange > possible) if strange != possible else .5
  return {'surprised': won, 'margin': float(strange / possible - 1), kind: won}


def loss(model, clip: Clip, draws: int, keys: tuple[int, ...]) -> float:
  """The denoising loss of a clip, the mean over draws of level and noise, which `keys` determine."""
  key = functools.reduce(jax.random.fold_in, keys, jax.random.key(0))
  with sharding.default_mesh():
    mesh = jax.sharding.get_mesh()
    tokens = Tokens(*(jax.device_put(x, sharding.named(mesh, spec))
                      for x, spec in zip(rows(model, clip, draws), dit.TOKEN_SPECS)))
    value, _ = _loss(model.laid_out(), tokens, key, model.config.objective)
    return float(value)


@functools.partial(jax.jit, static_argnames='objective')
def _loss(network, tokens, key, objective):
  return losses.diffusion_loss(network, tokens, key, losses.LossConfig(timesteps='uniform'), objective)


def rows(model, clip: Clip, draws: int) -> Tokens:
  """The clip as `draws` equal rows, without a caption, nothing of it given; then empty rows, as many as the mesh in
  force needs to divide them."""
  clip = clips.adapted(clip, model.audio_codec)
  canvas = Canvas(clip.fps)
  if model.video_codec is not None:
    canvas.video, canvas.seen = clip.video, np.zeros(clip.video.shape[:3], bool)
  if model.audio_codec is not None and clip.audio is not None:
    canvas.audio, canvas.heard = clip.audio, np.zeros(len(clip.audio), bool)
  latent = canvas.latents(model.video_codec, model.audio_codec, keep_unknown=True)
  max_text, parts = model.config.max_text, sharding.size('context')
  whole = lambda length, step: math.ceil(length / step) * step
  latent = latent._replace(text_ids=model.tokenizer.encode('', max_text))
  pack = packing.PackConfig(row_tokens=whole(latent.num_tokens + max_text, math.lcm(ROW_STEP, parts)),
                            text_tokens=whole(max_text, parts), max_clips=1, max_text=max_text,
                            channels=model.config.dit.channels)
  every = [packing.pack([latent], pack)] * draws
  every += [packing.empty_row(pack)] * (-draws % sharding.num_row_parts())
  return Tokens(*(np.stack(x) for x in zip(*every)))
