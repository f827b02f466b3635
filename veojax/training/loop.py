"""The one loop of all stages.

Its order: evaluate, draw samples, save the state with the data's row, next batch, step, log the step before. The host
runs ahead of the device by AHEAD steps: enough that the device never waits, few enough that a signal is answered at
once.
"""
import collections
import contextlib
import dataclasses
import pathlib
import signal
import time
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from veojax import sharding
from veojax.data import pipeline
from veojax.training import checkpoint, step as train_step
from veojax.training.journal import Journal


AHEAD = 2


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  num_steps: int = 1000
  batch_size: int = 8         # rows of a micro-batch, over all devices
  accumulate: int = 1         # micro-batches of one update
  ema_decays: tuple[float, ...] = (0.999,)  # averages of the weights; the first is drawn from and exported,
                                            # others beside it
  log_every: int = 20
  evaluate_every: int = 500
  sample_every: int = 1000
  save_every: int = 500
  keep: int = 2               # checkpoints
  num_threads: int = 4        # that read data
  num_workers: int = 0        # processes, for decoding compressed media

  def __post_init__(self):
    if not self.ema_decays or not all(0 <= decay < 1 for decay in self.ema_decays):
      raise ValueError(f'ema_decays={self.ema_decays}; give at least one number in [0, 1)')
    for name, value in vars(self).items():
      if name != 'ema_decays' and not value >= (name in ('num_steps', 'batch_size', 'accumulate', 'keep')):
        raise ValueError(f'{name}={value}; give a positive number')


@runtime_checkable
class Stage(Protocol):
  """What a stage tells the loop; its `config` has `seed`, `optimizer`, `loop` and `mesh`."""
  name: str
  config: Any
  source: pipeline.Source

  def make_model(self, key) -> Any: ...
  def make_optimizer(self) -> optax.GradientTransformation: ...
  def loss(self, model, batch, key, step) -> tuple[Any, dict]: ...
  def batch_spec(self, batch) -> Any: ...                          # tree of PartitionSpec, without the micro-batch axis
  def evaluate(self, ema) -> dict[str, float]: ...
  def draw(self, ema, step: int, folder: pathlib.Path) -> None: ...  # samples, as files
  def export(self, ema, workdir: pathlib.Path) -> None: ...          # the model, as `load` reads it


class Stopped(Exception):
  """Raised after a signal, when all is saved."""

  def __init__(self, signum: int, step: int, workdir):
    super().__init__(f'stopped by {signal.Signals(signum).name} at step {step}: all is saved in {workdir}; '
                     'the same command goes on from there')
    self.signum = signum


def fit(stage: Stage, workdir) -> dict[str, float]:
  """Trains until num_steps, from wherever `workdir` stands; the last metrics.

  Raises Stopped after SIGINT or SIGTERM, with everything saved, and ValueError for a checkpoint of another model.
  """
  config, workdir = stage.config.loop, pathlib.Path(workdir)
  mesh = sharding.make_mesh(stage.config.mesh)
  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(contextlib.closing(checkpoint.Checkpoints(workdir / 'checkpoints', config.keep)))
    state, row = initial(stage, checkpoints, mesh)
    journal = stack.enter_context(Journal(workdir, stage.name, config.num_steps, int(state.step)))
    received = stack.enter_context(signals())
    step_fn = train_step.make(stage.loss, stage.make_optimizer(), config.ema_decays)
    rows = config.batch_size * config.accumulate
    batches = stack.enter_context(pipeline.make_iterator(
        stage.source, row, rows, jax.process_index(), jax.process_count(), config.num_threads, config.num_workers))
    key, last, before, running = jax.random.key(stage.config.seed), {}, None, collections.deque()
    start = int(state.step)
    for step in range(start, config.num_steps):
      if step > start:
        interludes(stage, state, row, step, checkpoints, journal, workdir)
      if received:
        if before is not None:
          journal.log(*before)
        checkpoints.save(state, row)
        checkpoints.wait()
        export(stage, state, workdir)
        raise Stopped(received[0], step, workdir)
      waited = time.perf_counter()
      batch = next(batches)
      waited = time.perf_counter() - waited
      state, metrics = step_fn(state, key, put(batch, stage, config.accumulate))
      row += rows
      running.append(metrics['loss'])
      if len(running) > AHEAD:
        jax.block_until_ready(running.popleft())
      if before is not None:
        last = journal.log(*before)
      before = ((step + 1, metrics, waited)
                if (step + 1) % config.log_every == 0 or step + 1 == config.num_steps else None)
      journal.advance(step + 1)
    if before is not None:
      last = journal.log(*before)
    return finish(stage, state, row, checkpoints, journal, workdir, last)


def initial(stage, checkpoints, mesh) -> tuple[train_step.State, int]:
  """The state that `checkpoints` hold, or a new one, and the row that comes next."""
  init = jax.jit(lambda key: train_step.init(
      stage.make_model, stage.make_optimizer(), key, len(stage.config.loop.ema_decays)))
  key = jax.random.key(stage.config.seed)
  if checkpoints.latest is None:
    return init(key), 0
  # The abstract state names an abstract mesh, or none where nothing is said; Orbax wants the devices themselves.
  spec = lambda s: P() if s.sharding is None else s.sharding.spec
  abstract = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding.named(mesh, spec(s))),
                          jax.eval_shape(init, key))
  return checkpoints.restore(abstract)


def put(batch, stage, accumulate: int = 1):
  """A numpy batch on the devices of the mesh in force, as [accumulate, batch_size, ...]."""
  mesh = jax.sharding.get_mesh()

  def one(x, spec):
    x = x.reshape(accumulate, -1, *x.shape[1:])
    return jax.make_array_from_process_local_data(sharding.named(mesh, P(None, *spec)), x)
  return jax.tree.map(one, batch, stage.batch_spec(batch))


def interludes(stage, state, row, step, checkpoints, journal, workdir):
  """What happens between steps, each at its own interval; an interval of 0 is never."""
  config = stage.config.loop
  due = lambda every: every and step % every == 0
  if due(config.evaluate_every):
    journal.evaluated(step, evaluate(stage, state))
  if due(config.sample_every):
    journal.attempt('drawing samples', lambda: stage.draw(state.ema[0], step, workdir / 'samples'))
  if due(config.save_every):
    checkpoints.save(state, row)


def evaluate(stage, state) -> dict[str, float]:
  """Held-out scores of every average of the weights; the names of all but the first begin with their decay."""
  scores = {}
  for i, (decay, ema) in enumerate(zip(stage.config.loop.ema_decays, state.ema)):
    scores |= {f'ema_{decay:g}/{name}' if i else name: value for name, value in stage.evaluate(ema).items()}
  return scores


def export(stage, state, workdir):
  """The model of the first average in `workdir`, and of each other in a folder ema_<decay> of it."""
  for i, (decay, ema) in enumerate(zip(stage.config.loop.ema_decays, state.ema)):
    folder = workdir / f'ema_{decay:g}' if i else workdir
    folder.mkdir(exist_ok=True)
    stage.export(ema, folder)


def is_done(config: LoopConfig, workdir) -> bool:
  """Whether the run in `workdir` has taken all its steps and was exported."""
  path = pathlib.Path(workdir) / 'done'
  return path.exists() and int(path.read_text()) >= config.num_steps


def finish(stage, state, row, checkpoints, journal, workdir, last) -> dict[str, float]:
  step = int(state.step)
  checkpoints.save(state, row)
  export(stage, state, workdir)
  scores = evaluate(stage, state)
  journal.evaluated(step, scores)
  if stage.config.loop.sample_every:
    journal.attempt('drawing samples', lambda: stage.draw(state.ema[0], step, workdir / 'samples'))
  checkpoints.wait()
  (workdir / 'done').write_text(f'{step}\n')
  return {**last, **scores}


@contextlib.contextmanager
def signals():
  """A list that SIGINT and SIGTERM append to instead of ending the process; a second Ctrl-C ends it at once."""
  received = []

  def handle(signum, frame):
    if received and signum == signal.SIGINT:
      raise KeyboardInterrupt
    received.append(signum)
  try:
    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
  except ValueError:  # not in the main thread, as in some notebooks: signals then do what they did
    before = {}
  try:
    yield received
  finally:
    for signum, handler in before.items():
      signal.signal(signum, handler)
