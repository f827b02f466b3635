"""Does a model trained on the mixture of shapes know shapes that it was not trained on? Its loss on new clips of the
mixture's shapes, and of other sizes, lengths and frame rates.

    python tests/training/benchmark_shapes.py [STEPS]

A small transformer on a small mixture, STEPS (120) steps. A set's loss is the mean over 8 rows of clips under 6 draws
of noise and levels, the same for all sets, as a share of that of the model before its training, which predicts zero.
"""
import dataclasses
import pathlib
import sys
import tempfile

import jax
import numpy as np
from flax import nnx
from rich import console, table

from veojax import host
from veojax.data import datasets, mixing, pipeline, prepare, world_mixture
from veojax.data.tokenizer import Tokenizer
from veojax.generation import codecs
from veojax.generation import model as models
from veojax.models.dit import DiT, DiTConfig
from veojax.training import latents, losses, run

CONFIG = run.build(run.read_config(pathlib.Path(__file__).resolve().parents[2] / 'configs' / 'mixture.py'))
SMALL = DiTConfig(video_channels=16, audio_channels=64, width=128, depth=4, num_heads=2, mlp_width=384,
                  text=CONFIG.dit.text, dtype='float32')
MIDDLE = {'height': 48, 'width': 48, 'num_frames': 17, 'fps': 12.0}
SETS = {'shapes of the mixture': {}, '48x48, 17 frames at 12 (of the mixture)': MIDDLE,
        '40x56': {**MIDDLE, 'height': 40, 'width': 56}, '72x32': {**MIDDLE, 'height': 72, 'width': 32},
        '80x80': {**MIDDLE, 'height': 80, 'width': 80}, '21 frames': {**MIDDLE, 'num_frames': 21},
        '41 frames': {**MIDDLE, 'num_frames': 41}, '16 frames a second': {**MIDDLE, 'fps': 16.0}}


def main(steps: str = '120'):
  host.keep_memory()
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    world_mixture.make(folder, 400, workers=1, progress=False)
    parts = tuple(dataclasses.replace(part, path=str(folder / pathlib.Path(part.path).name)) for part in CONFIG.data)
    config = dataclasses.replace(
        CONFIG, data=parts, dit=SMALL, prompts=(),
        optimizer=dataclasses.replace(CONFIG.optimizer, kind='muon', warmup_steps=20),
        loop=dataclasses.replace(CONFIG.loop, num_steps=int(steps), evaluate_every=0, save_every=0, log_every=50))
    run.train(config, folder / 'run')
    model = models.load(folder / 'run')
    out = table.Table(title=f'{steps} steps, loss as a share of that of nothing learned')
    for column in ('clips', 'picture', 'sound'):
      out.add_column(column)
    loss = jax.jit(lambda dit, tokens, key: losses.diffusion_loss(dit, tokens, key, config.loss, config.objective)[1])
    untrained = DiT(config.dit, rngs=nnx.Rngs(0))
    for number, (name, world) in enumerate(SETS.items()):
      tokens = rows(config, folder / f'set_{number}', world, parts[0].path)
      of = lambda dit, half: np.mean([loss(dit, tokens, jax.random.key(k))[f'{half}_loss'] for k in range(6)])
      out.add_row(name, *(f'{of(model.dit, half) / of(untrained, half):.3f}' for half in ('video', 'audio')))
    console.Console().print(out)


def rows(config, output, world: dict, mixture: str):
  """Packed rows of new clips of the world."""
  made = dataclasses.replace(world_mixture.KINDS['clips'][1], world=dataclasses.replace(world_mixture.WORLD, **world),
                             num_clips=24, seed=99, store='rendered', tokenizer=f'{mixture}/text.model',
                             validation_fraction=0)
  prepare.prepare('world', output, config=made, workers=1, progress=False)
  both = [run.codec_of(config, output, kind) for kind in codecs.KINDS]
  source = pipeline.RowSource(mixing.JoinedLatents([latents.EncodedSource(datasets.open_dataset(output), *both)]),
                              Tokenizer.load(f'{mixture}/text.model'), config.pack, caption_dropout=0.0)
  return pipeline.stack([source[row % source.rows_per_epoch] for row in range(8)])


if __name__ == '__main__':
  main(*sys.argv[1:])
