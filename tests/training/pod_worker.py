"""`veojax train`, as the tests of several processes start it.

TOY: trains a matrix on made-up rows instead of what the config says, which takes no time to compile.
FULL=STEP:INDEX: process INDEX can write no file of more than 64 kB while it saves the checkpoint of that step.
FAIL=STEP:INDEX: process INDEX has an error of its own before that step.
PAUSE=SECONDS: between steps, so that signals meet the run in them.
"""
import contextlib
import os
import resource
import signal
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

from veojax import cli, processes, sharding
from veojax.models import weights
from veojax.training import checkpoint, loop, run

HARD = resource.getrlimit(resource.RLIMIT_FSIZE)[1]


class Matrix(nnx.Module):
  """Its rows lie on all devices, so that each process has a part of it to save."""

  def __init__(self, key):
    self.w = nnx.Param(jax.random.normal(key, (64, 64), out_sharding=P('fsdp', None)))


class Rows:
  rows_per_epoch = 100

  def __getitem__(self, row):
    return {'x': np.random.default_rng(row).standard_normal(64).astype(np.float32)}

  def clips_of(self, row):
    return [row]


class Toy:
  """The matrix learns to be the identity, from noisy rows."""
  name, source, changes = 'toy', Rows(), ()

  def __init__(self, num_steps: int):
    self.config = types.SimpleNamespace(
        seed=0, mesh=sharding.MeshConfig(data=1, fsdp=-1),
        loop=loop.LoopConfig(num_steps=num_steps, batch_size=8, log_every=1, evaluate_every=0, sample_every=0,
                             save_every=2, num_threads=2, hang_seconds=20.0))

  def make_model(self, key):
    return Matrix(key)

  def begin(self, model):
    return model

  def make_optimizer(self):
    return optax.adam(1e-2)

  def batch_spec(self, batch):
    return {'x': sharding.B}

  def loss(self, model, batch, key, step):
    x = batch['x'] + jax.random.normal(key, batch['x'].shape, out_sharding=sharding.B)
    made = x @ jax.sharding.reshard(model.w[...], P())
    return jnp.mean(jnp.square(made - batch['x'])), {}

  def evaluate(self, ema):
    return {'trace': float(jnp.trace(jax.sharding.reshard(ema.w[...], P())))}

  def draw(self, ema, step, workdir):
    pass

  def export(self, ema, workdir):
    weights.save(workdir / 'weights.safetensors', ema, {})

  def clips(self, row):
    return [str(row)]


def fill_disk(step: int, index: int):
  original = checkpoint.Checkpoints.save

  def save(self, state, row):
    if int(state.step) != step or jax.process_index() != index:
      return original(self, state, row)
    self.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, HARD))
    try:
      original(self, state, row)
      with contextlib.suppress(Exception):
        self._pending.result()  # the limit stays until the write has met it; the failure is found by the next wait
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (HARD, HARD))
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  checkpoint.Checkpoints.save = save


def fail(step: int, index: int):
  original = loop.interludes

  def interludes(stage, state, row, at, *rest):
    original(stage, state, row, at, *rest)
    if at == step and jax.process_index() == index:
      raise ValueError('an error of one process alone')
  loop.interludes = interludes


def pause(seconds: float):
  original = loop.interludes

  def interludes(*arguments):
    original(*arguments)
    time.sleep(seconds)
  loop.interludes = interludes


def train_toy(config, workdir):
  from veojax import files
  workdir = files.path(workdir)
  processes.on_first(lambda: workdir.mkdir(parents=True, exist_ok=True))
  loop.fit(Toy(config.loop.num_steps), workdir)


if __name__ == '__main__':
  if full := os.environ.get('FULL'):
    fill_disk(*map(int, full.split(':')))
  if os.environ.get('TOY'):
    run.train = train_toy
  if failing := os.environ.get('FAIL'):
    fail(*map(int, failing.split(':')))
  pause(float(os.environ.get('PAUSE', 0)))
  sys.exit(cli.main(sys.argv[1:]))
