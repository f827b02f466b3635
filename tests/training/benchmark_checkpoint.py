"""How much of a step's time checkpoints take: python tests/training/benchmark_checkpoint.py [FOLDER]

Trains the quickstart's transformer on made-up rows, without saving and with. The stall is what a save adds to the
steps after it, the writing in the background included; spread over the default interval it must stay under 5 % of a
step. On a CPU the threads that write take the cores of the step: an upper bound.
"""
import pathlib
import sys
import tempfile
import time

import jax
import numpy as np

from veojax import sharding
from veojax.data import packing
from veojax.training import checkpoint, loop, run, step as train_step
from veojax.training.transformer import TransformerStep

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAVES, APART = 6, 12  # saves, steps between them


class Rows(TransformerStep):
  """Rows of noise."""

  def begin(self, model):
    return model

  def batch(self):
    config = self.config
    row, rng = packing.empty_row(config.pack), np.random.default_rng(0)
    row = row._replace(latent=rng.standard_normal(row.latent.shape).astype(np.float32))
    return packing.Tokens(*(np.stack([x] * config.loop.batch_size) for x in row))


def main(folder: str):
  config = run.build(run.read_config(ROOT / 'configs' / 'quickstart.py'))
  mesh = sharding.make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    stage = Rows(config)
    saved = checkpoint.Checkpoints(folder, config.loop.keep)
    state, _ = loop.initial(stage, saved, mesh)
    step_fn = train_step.make(stage.loss, stage.make_optimizer(), config.loop.ema_decays, config.loop.explosion)
    batch, key = loop.put([stage.batch()], stage), jax.random.key(0)

    def steps(state, number, save):
      """Seconds of a save, and of each step from it on."""
      times, begun = [], time.perf_counter()
      if save:
        saved.save(state, 0)
      blocked = time.perf_counter() - begun
      for _ in range(number):
        begun = time.perf_counter()
        state, metrics = step_fn(state, key, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - begun)
      return state, blocked, times

    state, _, _ = steps(state, 3, False)
    plain, blocked, stalled = [], [], []
    for _ in range(SAVES):  # in turn, so that what else runs on the machine weighs on both alike
      state, _, times = steps(state, APART, False)
      plain.append(np.median(times))
      state, block, times = steps(state, APART, True)
      blocked.append(block)
      stalled.append(block + sum(times) - APART * np.median(times))
    saved.close()
  step, size = float(np.median(plain)), sum(x.nbytes for x in jax.tree.leaves(state))
  interval = loop.LoopConfig().save_every
  print(f'a step takes {step:.3f} s; a save of {size / 1e6:.0f} MB blocks the loop for {np.median(blocked):.3f} s, and '
        f'adds {np.median(stalled):.3f} s to the steps after it, that included (largest {max(stalled):.3f} s)')
  print(f'with save_every={interval}: {100 * np.median(stalled) / (interval * step):.3f} % of the time of a step, '
        f'{100 * np.median(stalled) / step:.0f} % of the one step it meets')


if __name__ == '__main__':
  if len(sys.argv) > 1:
    main(sys.argv[1])
  else:
    with tempfile.TemporaryDirectory() as folder:
      main(folder)
