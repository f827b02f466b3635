"""What the codecs keep of the world: every score of the world's truth beside that of the same clips through the codecs.

    python -m veojax.evaluation.round_trip VIDEO_CODEC AUDIO_CODEC DATA [--num_clips=200]

VIDEO_CODEC and AUDIO_CODEC are codecs' names ('world'), folders of their runs or files, or 'none', which leaves the half
as it is; DATA is a prepared world, whose held-out split is measured. Scores in [0, 1] are compared by their difference,
errors by their ratio; 95 % intervals by bootstrap over the clips.
"""
import dataclasses
import sys

import numpy as np
from rich import console, progress

from veojax.data import pipeline
from veojax.evaluation import sound_parser, world_laws, world_score
from veojax.generation import codecs
from veojax.models.audio_codec import AudioCodec
from veojax.models.picture_codec import PictureCodec
from veojax.training import distortion, heldout
from veojax.types import Clip

ERRORS = ('pos_err', 'vel_err', 'g_err')  # all else of `world_laws.measure` but delays lies in [0, 1]
NEAR = .05                                # seconds within which an onset of the truth is looked for again
SAME = .01                                # seconds within which an onset is that of a recorded impact


def through(clip: Clip, video_codec: PictureCodec | None, audio_codec: AudioCodec | None) -> Clip:
  """The clip through both codecs and back; a half that is absent, or without a codec, stays as it is."""
  video, audio = clip.video, clip.audio
  if video is not None and video_codec is not None:
    video = video_codec.reconstruct(video)
  if audio is not None and audio_codec is not None:
    audio = audio_codec.reconstruct(pipeline.mix(audio, audio_codec.channels))
  return dataclasses.replace(clip, video=video, audio=audio)


def pictures(clips: list[Clip], made: list[Clip]) -> list[tuple[np.ndarray, np.ndarray]]:
  return [(a.video, b.video) for a, b in zip(clips, made)]


def sounds(clips: list[Clip], made: list[Clip]) -> list[tuple[np.ndarray, np.ndarray]]:
  return [(a.audio, b.audio) for a, b in zip(clips, made) if a.audio is not None]


def scores(clip: Clip) -> dict[str, float]:
  """The laws of the clip's own record and the scores of its caption, by name; NaN where one is undefined."""
  laws = world_laws.measure(clip, clip.info)
  laws = {name: value for name, value in laws.items() if not name.endswith('_ms')}
  told = world_score.caption_score(clip, clip.text)
  return laws | {f'caption {name}': value for name, value in told.items()}


def sound_scores(truth: Clip, made: Clip) -> dict[str, list[float]]:
  """Of each impact that the parser hears in the truth: 'found', whether it is heard within NEAR; 'delay_ms', then,
  how far it has moved; 'material', whether what rings there is the same (of those whose material the parser hears
  rightly in the truth). Onsets that are no impact, in the noise of rolling, are left out.
  """
  result = {'found': [], 'delay_ms': [], 'material': []}
  heard = [sound_parser.onsets(clip.audio, clip.sample_rate) for clip in (truth, made)]
  for t in heard[0]:
    struck = {truth.info['objects'][s['instance']]['material']
              for s in truth.info['sounds'] if abs(s['time'] - t) < SAME}
    if not struck:
      continue
    off = np.abs(heard[1] - t).min(initial=np.inf)
    result['found'].append(float(off <= NEAR))
    if off <= NEAR:
      result['delay_ms'].append(1e3 * float(off))
    best = [max(m, key=m.get) for m in (sound_parser.materials(c.audio, c.sample_rate, t) for c in (truth, made))]
    if struck == {best[0]}:
      result['material'].append(float(best[1] == best[0]))
  return result


def interval(values: np.ndarray, num: int = 1000) -> tuple[float, float]:
  """95 % bootstrap interval of the mean."""
  rng = np.random.default_rng(0)
  draws = [np.mean(values[rng.integers(len(values), size=len(values))]) for _ in range(num)]
  return tuple(np.percentile(draws, (2.5, 97.5)).tolist())


def measure(clips: list[Clip], made: list[Clip]) -> dict:
  """psnr and sdr in dB; {name: (truth, round trip, low, high, number of clips)} as `scores`, the interval being that of
  the round trip; and {name: values} of every impact as `sound`."""
  pairs = [(scores(a), scores(b)) for a, b in zip(clips, made)]
  table = {}
  for name in dict.fromkeys(name for pair in pairs for name in pair[0]):
    both = np.array([[p.get(name, np.nan) for p in pair] for pair in pairs])
    both = both[np.isfinite(both).all(1)]
    if len(both):
      table[name] = (*both.mean(0).tolist(), *interval(both[:, 1]), len(both))
  sound = {}
  for a, b in zip(clips, made):
    if a.audio is not None:
      for name, values in sound_scores(a, b).items():
        sound.setdefault(name, []).extend(values)
  return {'psnr': distortion.psnr(pictures(clips, made)), 'sdr': distortion.sdr(sounds(clips, made)), 'scores': table,
          'sound': sound}


def main(video_codec: str, audio_codec: str, data: str, *options: str):
  from veojax import arguments, host
  host.enable_compilation_cache()
  names = dict(zip(codecs.KINDS, (video_codec, audio_codec)))
  both = [None if name == 'none' else codecs.load(name, kind) for kind, name in names.items()]
  dataset = heldout.split(data)
  num = min(len(dataset), int(arguments.parse(list(options)).get('num_clips', 200)))
  clips = [dataset[i] for i in range(num)]
  made = [through(clip, *both) for clip in progress.track(clips, 'through the codecs')]
  result = measure(clips, made)
  out = console.Console(width=100)
  out.print(f'PSNR {result["psnr"]:.2f} dB, SDR {result["sdr"]:.2f} dB over {num} clips of {clips[0].video.shape}',
            highlight=False)
  for name, (truth, trip, low, high, count) in result['scores'].items():
    change = f'ratio {trip / truth:.2f}' if name in ERRORS else f'difference {trip - truth:+.3f}'
    out.print(f'{name:22} truth {truth:.4f}  round trip {trip:.4f} [{low:.4f}, {high:.4f}]  {change}  ({count} clips)',
              highlight=False, soft_wrap=True)
  sound = {name: np.array(values) for name, values in result['sound'].items()}
  if len(sound.get('delay_ms', ())):
    delay = sound['delay_ms']
    out.print(f'impacts heard: {len(sound["found"])}, found again {sound["found"].mean():.3f}; '
              f'shift in ms: median {np.median(delay):.2f}, 95 % below {np.percentile(delay, 95):.2f}; '
              f'within 5 ms {np.mean(delay <= 5):.3f}; '
              f'same material {sound["material"].mean():.4f} of {len(sound["material"])}',
              highlight=False, soft_wrap=True)
  return result


if __name__ == '__main__':
  main(*sys.argv[1:])
