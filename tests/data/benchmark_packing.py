"""What packing saves on the shipped mixture of shapes: tokens of the rows used, and clips trained on in the same time.

    python -m veojax.data.world_mixture DATA
    python tests/data/benchmark_packing.py DATA [ROUNDS]

The same clips reach the same small transformer in three ways, in batches of about as many tokens: packed in the rows
of configs/mixture.py; each in a row as long as the longest clip; each in a row as long as the longest of its bucket, of
BUCKETS by length that hold as many clips each. Latents are random, of the real shapes. A way's time for a clip is the
mean over its programs; compiling is told beside it and not part of it. On a CPU time is the process's own, so that
other work on the machine does not count.
"""
import dataclasses
import pathlib
import sys
import time

import jax
import numpy as np

from veojax.data import datasets, mixing, packing, pipeline
from veojax.data.latent_clip import LatentClip
from veojax.data.tokenizer import Tokenizer
from veojax.generation import codecs
from veojax.models.dit import DiTConfig
from veojax.training import latents, run, step
from veojax.training.transformer import TransformerStage

BUCKETS = 8
BATCH_TOKENS = 4096
CONFIG = run.build(run.read_config(pathlib.Path(__file__).resolve().parents[2] / 'configs' / 'mixture.py'))


class Drawn(latents.EncodedSource):
  """Random latents, of the shapes and with the places that encoding would give."""

  def __getitem__(self, i):
    rng, shape, length = np.random.default_rng(i), self.lengths.video[i], self.lengths.audio[i]
    fps, height, width = (self.dataset.index[name][i].item() for name in ('fps', 'height', 'width'))
    return LatentClip(
        rng.normal(size=(*shape, 16)) if shape.all() else None, rng.normal(size=(length, 64)) if length else None,
        fps=fps, height=height, width=width, text=self.text(i), **self.compressions)


def rows_of(data: str) -> pipeline.RowSource:
  folder = pathlib.Path(data)
  parts = [dataclasses.replace(part, path=str(folder / pathlib.Path(part.path).name)) for part in CONFIG.data]
  both = [run.codec_of(CONFIG, pathlib.Path(), kind) for kind in codecs.KINDS]
  drawn = [Drawn(datasets.open_dataset(part.path), *both) for part in parts]
  weights = np.repeat([part.weight for part in parts], [len(source) for source in drawn])
  tokenizer = Tokenizer.load(pathlib.Path(parts[0].path, 'text.model'))
  return pipeline.RowSource(mixing.JoinedLatents(drawn), tokenizer, CONFIG.pack, weights=weights)


class Program:
  """The train step for rows of one length. batches() gives one of `clips_of_a_batch` clips on average."""

  def __init__(self, batches, row_tokens: int, clips_of_a_batch: float):
    stage = object.__new__(TransformerStage)
    stage.config = dataclasses.replace(CONFIG, dit=DiTConfig(
        video_channels=16, audio_channels=64, width=128, depth=2, num_heads=2, mlp_width=384, text=CONFIG.dit.text,
        dtype='float32'))
    tx = stage.make_optimizer()
    self.batches, self.row_tokens, self.clips, self.times = batches, row_tokens, clips_of_a_batch, []
    self.state = jax.jit(lambda key: step.init(stage.make_model, tx, key))(jax.random.key(0))
    self.step = step.make(stage.loss, tx, CONFIG.loop.ema_decays)
    self.compiling = self.timed()

  def timed(self) -> float:
    batch = jax.tree.map(lambda x: jax.numpy.asarray(x)[None], self.batches())
    clock = time.process_time if jax.default_backend() == 'cpu' else time.perf_counter
    began = clock()
    self.state, metrics = self.step(self.state, jax.random.key(0), batch)
    jax.block_until_ready(metrics)
    return clock() - began

  @property
  def seconds_of_a_clip(self) -> float:
    return float(np.median(self.times)) / self.clips


def packed(source) -> Program:
  rows, at = BATCH_TOKENS // CONFIG.pack.row_tokens, iter(range(source.rows_per_epoch))
  batches = lambda: pipeline.stack([source[next(at)] for _ in range(rows)])
  return Program(batches, CONFIG.pack.row_tokens, rows * len(source.epochs[0]) / source.rows_per_epoch)


def alone(source, clips) -> Program:
  """Each of `clips`, as numbers in source.clips, in a row of its own."""
  (length, text), rng = source.lengths[clips].max(0).tolist(), np.random.default_rng(0)
  config = dataclasses.replace(CONFIG.pack, row_tokens=length, max_clips=1, text_tokens=text, max_text=text)
  rows = max(1, BATCH_TOKENS // length)
  read = lambda clip: packing.pack([source._read(int(source.clips[clip]), 0)], config)
  return Program(lambda: pipeline.stack([read(clip) for clip in rng.choice(clips, rows)]), length, rows)


def main(data: str, rounds: str = '5'):
  source = rows_of(data)
  lengths = source.lengths[source.epochs[0], 0]
  used = np.mean([source[row].modality > 0 for row in range(min(200, source.rows_per_epoch))])
  shapes = {(*shape, length) for shape, length in zip(source.latents.lengths.video.tolist(),
                                                      source.latents.lengths.audio.tolist())}
  print(f'{len(source.clips)} clips of {len(shapes)} shapes, {lengths.min()} to {lengths.max()} tokens; '
        f'{source.report["left out"]} left out, {source.report["cut"]} cut; {source.rows_per_epoch} rows an epoch')
  order = source.epochs[0][np.argsort(lengths, kind='stable')]
  ways = {'packed': [packed(source)], 'padded to the longest': [alone(source, order)],
          'bucketed': [alone(source, bucket) for bucket in np.array_split(order, BUCKETS)]}
  for _ in range(int(rounds)):
    for programs in ways.values():
      for program in programs:
        program.times.append(program.timed())
  of_clip = {way: np.mean([program.seconds_of_a_clip for program in programs]) for way, programs in ways.items()}
  for way, programs in ways.items():
    room = np.mean([program.row_tokens for program in programs])
    share = used if way == 'packed' else lengths.mean() / room
    print(f'{way}: {share:.1%} of the tokens used, {1 / of_clip[way]:.1f} clips a second, '
          f'{of_clip["padded to the longest"] / of_clip[way]:.2f} times padded; {len(programs)} compiled, '
          f'{sum(program.compiling for program in programs):.0f} s')


if __name__ == '__main__':
  main(*sys.argv[1:])
