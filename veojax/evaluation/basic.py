"""What can be said of clips without any network and without a reference: steadiness, motion, levels of the sound.

Mostly these describe: a still, silent clip is steady and never clips. They are read beside the truth's own values.
"""
import dataclasses

from veojax.evaluation import av_align, benchmark, clips, motion, sound_level
from veojax.evaluation.benchmark import Metric, Row, Subject
from veojax.evaluation.world_benchmark import World
from veojax.generation.wanted import Wanted
from veojax.types import Clip


@dataclasses.dataclass(frozen=True)
class Basic(benchmark.Benchmark):
  """data: 'world', of `scenes`, or a prepared data set. data_hash: what was found there, as of `clips.fitted`."""
  num_clips: int = 128
  seed: int = 0
  data: str = clips.WORLD
  data_hash: str = ''
  scenes: World = World()

  METRICS = {
      'steadiness': Metric('', "1 less the mean change from frame to frame (VBench's temporal flickering)", 'picture'),
      'smoothness': Metric('', "1 less the error of linear interpolation (VBench's motion smoothness has a network)",
                           'picture'),
      'speed': Metric('', 'flow of the fastest 5 % of the pixels, at 256 pixels and 8 frames a second', 'picture',
                      'pixels'),
      'dynamic': Metric('', "share of clips that move (VBench's dynamic degree, by Farnebäck's flow)", 'picture'),
      'level': Metric('', 'root mean square of the sound', 'sound', 'dB'),
      'clipped': Metric('lower', 'share of samples in runs at full scale', 'sound'),
      'silence': Metric('', 'share of the time below -60 dB', 'sound'),
      'av_align': Metric('', 'for comparison with published numbers only: it does not tell whether sound is in time',
                         'sound and picture'),
  }
  KEY = ('steadiness', 'speed', 'level', 'clipped')
  WORST = 'clipped'
  MEANING = benchmark.MEANING | {'shuffled': 'the floor of av_align: with the sounds of other clips'}
  NOTE = "Only av_align has a floor: all else describes a picture or a sound alone, and is read beside the truth's."

  def fitted(self, subject: Subject) -> 'Basic':
    return clips.fitted(self, subject)

  def parts(self, subject: Subject) -> tuple[str, ...]:
    return clips.parts(subject)

  def wanted(self, indices) -> list[Wanted]:
    return clips.wanted(self, [clips.truth(self, i) for i in indices], indices)

  def rows(self, subject: Subject, part: str, indices, keep=benchmark.keep_nothing) -> dict[str, list[Row]]:
    truths = [clips.truth(self, i) for i in indices]
    rows = {part: []}
    for i, true, clip in zip(indices, truths, clips.of_part(self, part, truths, indices, subject)):
      keep(part, i, clip)
      seen = av_align.turns(clip.video, clip.fps) if clip.video is not None else None
      rows[part].append(Row(i, true.text, values=measure(clip, seen)))
      if part == ('truth' if subject.model is None else 'made') and self.num_clips > 1:
        other = clips.truth(self, (i + 1) % self.num_clips)
        foreign = dataclasses.replace(clip, audio=other.audio, sample_rate=other.sample_rate)
        values = clips.defined({'av_align': av_align.av_align(foreign, seen)})
        rows.setdefault('shuffled', []).append(Row(i, true.text, values=values))
    return rows


def measure(clip: Clip, seen=None) -> dict[str, float]:
  """seen: as of `av_align.av_align`."""
  values = {}
  if clip.video is not None:
    speeds = motion.speeds(clip.video, clip.fps)
    values |= {'steadiness': motion.steadiness(clip.video), 'smoothness': motion.smoothness(clip.video),
               'dynamic': motion.is_dynamic(speeds)}
    if len(speeds):
      values['speed'] = speeds.mean()
  if clip.audio is not None:
    values |= {'level': sound_level.level(clip.audio), 'clipped': sound_level.clipped(clip.audio),
               'silence': sound_level.silence(clip.audio, clip.sample_rate), 'av_align': av_align.av_align(clip, seen)}
  return clips.defined(values)
