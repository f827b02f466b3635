"""The world as a benchmark: clips made from captions of scenes whose laws, sounds and objects are known exactly.

Case i is a scene drawn from the seed, so a benchmark is a few numbers and no files. The floor is the same clips held to
the captions of other scenes of their level, their pictures to the true sounds of those; of the laws, which know no
caption, it is the same clips with their frames in a random order.
"""
import dataclasses
from typing import Literal

import numpy as np

from veojax.data import world, world_clip
from veojax.evaluation import benchmark, clips, frechet, set_distance, world_judge, world_state
from veojax.evaluation.benchmark import Metric, Row, Score, Subject
from veojax.evaluation.world_judge import Seen
from veojax.generation import tasks
from veojax.generation.wanted import Wanted
from veojax.types import Clip

SIZES = {'num_frames': 33, 'height': 64, 'width': 64, 'fps': 16., 'sample_rate': 16000}  # where there is no model
SEEDS = 1_000_000  # world seeds apart from each other by benchmark seed
SPLITS = {  # of the world, and how many times as long
    'seen': ('test', 1),           # kinds of scenes that training has seen, in other draws
    'pairs': ('combination', 1),   # colours with shapes that they never had
    'range': ('rv_out', 1),        # faster and larger (and smaller) than ever
    'count': ('count', 1),         # one object more
    'length': ('test', 2),         # twice as long
}
FRAMES_GIVEN = 5  # of given='frames': two latent frames of a codec that compresses time by 4


@dataclasses.dataclass(frozen=True)
class World(benchmark.Benchmark):
  """levels: of the world, in equal parts; None for L1 to L4, without L2 where the split has four objects. density: of
  the captions; None as in training. given: what of the true clip the model is shown. Sizes: None for the model's
  own."""
  num_clips: int = 128
  seed: int = 0
  levels: tuple[str, ...] | None = None
  split: Literal['seen', 'pairs', 'range', 'count', 'length'] = 'seen'
  density: Literal['short', 'normal', 'dense'] | None = None
  given: Literal['nothing', 'first_frame', 'frames', 'first_and_last', 'sound', 'picture'] = 'nothing'
  num_frames: int | None = None
  height: int | None = None
  width: int | None = None
  fps: float | None = None
  sample_rate: int | None = None

  METRICS = world_judge.METRICS | {
      'fsd': Metric('lower', "Fréchet distance of the clips' states from the truth's, halves of each", 'distribution'),
      'mmd': Metric('lower', "squared mean discrepancy of the clips' states from the truth's, halves of each",
                    'distribution'),
  }
  KEY = ('all_right', 'told', 'permanence', 'count_constancy', 'gravity_error', 'f1', 'impact_has_sound', 'material',
         'fsd')
  WORST = 'told'
  MEANING = benchmark.MEANING | {
      'shuffled': 'the floor: held to captions and sounds of other clips, and for physics, given frames, reappearance '
                  'and identity_swaps to their own scenes with the frames in a random order'}
  NOTE = ("fsd and mmd are of halves of the clips, and the truth's are their floor: what a perfect model would get of "
          'as many clips; of fewer than four clips there are none. A set is the same in any order, so captions of '
          'other clips change nothing in it. Frames in a random order mostly leave no flight, bounce or roll, so laws '
          'that are told from these have no floor.')

  def __post_init__(self):
    if self.num_clips < 1:
      raise ValueError(f'num_clips={self.num_clips}; give at least 1')
    for level in self.used_levels:
      self._config(level)  # refuses what does not go together

  @property
  def used_levels(self) -> tuple[str, ...]:
    return self.levels or (('L1', 'L3', 'L4') if self.split == 'count' else ('L1', 'L2', 'L3', 'L4'))

  def fitted(self, subject: Subject) -> 'World':
    if not subject.makes_pictures:
      raise ValueError(f'{subject.name} makes no pictures to measure; give a model that does')
    return self.sized(subject)

  def sized(self, subject: Subject) -> 'World':
    """With the sizes of the subject's clips where none are asked for."""
    model, codec = subject.model, subject.codecs[1]
    own = {**SIZES, **(model.clip_sizes if model is not None else {}),
           **({'sample_rate': codec.sample_rate} if codec is not None else {})}
    return dataclasses.replace(self, **{name: value for name, value in own.items() if getattr(self, name) is None})

  def parts(self, subject: Subject) -> tuple[str, ...]:
    codec = ('codec',) if subject.codecs[0] is not None else ()
    return (('made',) if subject.model is not None else ()) + ('truth', *codec)

  def case(self, index: int) -> Clip:
    """The true clip, with its caption and record."""
    level = self.used_levels[index % len(self.used_levels)]
    # Only dense captions tell of the camera.
    density = self.density or ('dense' if level == 'L7' else None)
    return world_clip.make(self.seed * SEEDS + index, self._config(level), density)

  def wanted(self, indices) -> list[Wanted]:
    return self.wanted_for([self.case(i) for i in indices], indices)

  def wanted_for(self, truths: list[Clip], indices) -> list[Wanted]:
    """Clips of the captions and sizes of these true ones, of which the model is shown what `given` says."""
    num_frames, height, width, _ = truths[0].video.shape
    sizes = {'num_frames': num_frames, 'height': height, 'width': width, 'fps': truths[0].fps}
    return [Wanted(truth.text, self.seed, i, self._given(truth), sizes) for i, truth in zip(indices, truths)]

  def rows(self, subject: Subject, part: str, indices, keep=benchmark.keep_nothing) -> dict[str, list[Row]]:
    truths = [self.case(i) for i in indices]
    found = {'truth': lambda: truths, 'made': lambda: subject.make(self.wanted_for(truths, indices)),
             'codec': lambda: [clips.through(truth, subject) for truth in truths]}[part]()
    against_record = part != 'made' or self.given not in ('nothing', 'sound')  # a sound leaves open where things are
    rows = {part: []}
    for i, clip, truth in zip(indices, found, truths):
      keep(part, i, clip)
      seen = world_judge.see(clip)
      values = world_judge.judge(seen, truth, against_record=against_record)
      rows[part].append(Row(i, truth.text, truth.info['level'], values))
      rows[part][-1].kept['state'] = world_state.features(seen).round(5).tolist()
      if against_record:
        rows[part][-1].kept |= world_state.errors_by_frame(seen, truth)
      if part == ('truth' if subject.model is None else 'made') and self.num_clips > 1:
        rows.setdefault('shuffled', []).append(self._shuffled(i, seen, truth, against_record))
    return rows

  def scores(self, rows: dict[str, list[Row]]) -> dict[str, dict[str, Score]]:
    rows = {column: sorted(part, key=lambda row: row.index) for column, part in rows.items()}
    return benchmark.table(self.METRICS, rows) | self._distances(rows)

  def plots(self, rows: dict[str, list[Row]]) -> dict:
    return world_state.plots(rows)

  def _config(self, level: str) -> world.WorldConfig:
    sizes = {name: value if (value := getattr(self, name)) is not None else SIZES[name] for name in SIZES}
    split, times = SPLITS[self.split]
    sizes['num_frames'] = (sizes['num_frames'] - 1) * times + 1
    return world.WorldConfig(levels=(level,), split=split, **sizes)

  def _shuffled(self, index: int, seen: Seen, truth: Clip, against_record: bool) -> Row:
    """Held to another clip's caption and sound; and what frames say by their order, to its own scene, out of order."""
    clip, step = seen.clip, len(self.used_levels) if self.num_clips > len(self.used_levels) else 1
    other = self.case((index + step) % self.num_clips)
    order = np.random.default_rng([self.seed, index]).permutation(len(clip.video))
    foreign = {world_judge.ORDER: world_judge.see(dataclasses.replace(clip, video=clip.video[order], audio=None))}
    if clip.audio is not None:
      foreign[world_judge.SYNC] = dataclasses.replace(
          seen, clip=dataclasses.replace(clip, audio=other.audio, sample_rate=other.sample_rate))
    values = world_judge.judge(seen, other, against_record=False)
    for names, spoilt in foreign.items():
      found = world_judge.judge(spoilt, truth, against_record=against_record)
      values = {n: v for n, v in values.items() if n not in names} | {n: found[n] for n in names if n in found}
    return Row(index, other.text, other.info['level'], values)

  def _given(self, truth: Clip) -> tasks.Given:
    silent = dataclasses.replace(truth, audio=None)
    return {
        'nothing': lambda: tasks.Given(),
        'first_frame': lambda: tasks.Given(image=truth.video[0]),
        'frames': lambda: tasks.Given(video=dataclasses.replace(silent, video=truth.video[:FRAMES_GIVEN]),
                                      task='extend'),
        'first_and_last': lambda: tasks.Given(image=truth.video[0], last_image=truth.video[-1]),
        'sound': lambda: tasks.Given(audio=truth),
        'picture': lambda: tasks.Given(video=silent, task='soundtrack'),
    }[self.given]()

  def _distances(self, rows: dict[str, list[Row]]) -> dict[str, dict[str, Score]]:
    """Each column against the truth: a random half of the one against the other half of the other, so that the truth's
    own entry, the floor of any such distance, is told from as many clips."""
    num = len(rows.get('truth', ()))
    if num < set_distance.LEAST:
      return {}
    columns = {name: part for name, part in rows.items() if name != 'shuffled' and len(part) == num}
    states = {name: np.array([row.kept['state'] for row in part]) for name, part in columns.items()}
    centre, scale = states['truth'].mean(0), np.maximum(states['truth'].std(0), world_state.LEAST)
    states = {name: (x - centre) / scale for name, x in states.items()}
    metrics = {'fsd': lambda x, y: frechet.distance(frechet.Moments.of(x), frechet.Moments.of(y)),
               'mmd': lambda x, y: frechet.mmd(x, y, frechet.gaussian(np.sqrt(x.shape[1])))}
    return {metric: {name: Score(*benchmark.over_halves(lambda a, b: function(x[a], states['truth'][b]), num),
                                 num // 2, 1.) for name, x in states.items()} for metric, function in metrics.items()}
