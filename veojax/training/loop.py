"""The one loop of all stages.

Its order: evaluate, draw samples, save the state with the data's row, next batch, step, log the step before. The host
runs ahead of the device by AHEAD steps: enough that the device never waits, few enough that a signal is answered at
once. Of several processes all run this loop in step; each reads its rows, and what is not an array process 0 writes.
"""
import collections
import contextlib
import dataclasses
import time
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from veojax import files, processes, sharding
from veojax.data import pipeline
from veojax.models import run_checkpoint
from veojax.training import checkpoint, skipped, step as train_step, watch
from veojax.training.journal import Journal
from veojax.training.stopping import Notice, Stopped


AHEAD = 2


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  num_steps: int = 1000
  batch_size: int = 8         # rows of a micro-batch, over all devices
  accumulate: int = 1         # micro-batches of one update
  ema_decays: tuple[float, ...] = (0.999,)  # averages of the weights; the first is drawn from and exported,
                                            # others beside it
  log_every: int = 20         # and of the last step; 0: of that alone
  evaluate_every: int = 500
  sample_every: int = 1000
  save_every: int = 500
  keep: int = 2               # checkpoints: the newest ones
  keep_every: int = 0         # and those of steps that are multiples of this; 0: none
  save_patience: int = 1200   # seconds after which a checkpoint that is not written has failed
  explosion: float = 10.0     # a gradient of a norm over this many times its running level is not applied; 0: all are
  max_skipped: int = 50       # updates in a row that are not applied before the run ends; 0: any number
  hang_seconds: float = 600.0  # a process that long behind the others, or in encoding a clip, hangs and ends the run
                               # (`watch`); 0: none does
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
  changes: tuple[int, ...]  # steps at which the loss becomes another one, and its gradient's norm

  def make_model(self, key) -> Any: ...
  def begin(self, model) -> Any: ...                               # the weights to begin with, `model`'s or others
  def make_optimizer(self) -> optax.GradientTransformation: ...
  def loss(self, model, batch, key, step) -> tuple[Any, dict]: ...
  def batch_spec(self, batch) -> Any: ...                          # tree of PartitionSpec, without the micro-batch axis
  def evaluate(self, ema) -> dict[str, float]: ...
  def draw(self, ema, step: int, workdir) -> None: ...  # samples, as files (`samples`)
  def export(self, ema, workdir) -> None: ...          # the model, as `load` reads it
  def clips(self, row: int) -> list[str]: ...                        # names of the clips in a row of the data


def fit(stage: Stage, workdir) -> dict[str, float]:
  """Trains until num_steps, from wherever `workdir` stands; the last metrics.

  Raises Stopped after SIGINT or SIGTERM, with everything saved, ValueError for a checkpoint of another model, and
  FloatingPointError where max_skipped updates in a row were not applied.
  """
  config, workdir = stage.config.loop, files.path(workdir)
  with sharding.use(stage.config.mesh) as mesh, contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
        checkpoint.Checkpoints(workdir / run_checkpoint.FOLDER, config.keep, config.keep_every, config.save_patience))
    state, row = initial(stage, checkpoints, mesh)
    # Before the journal: Grain's import, which bends Python's own for a while, would break the bar's thread.
    batches = stack.enter_context(pipeline.make_iterator(
        stage.source, row, config.batch_size, positions(config.batch_size), config.num_threads, config.num_workers))
    stack.enter_context(watch.over(config.hang_seconds))
    journal = stack.enter_context(Journal(workdir, stage.name, config.num_steps, int(state.step)))
    notice = stack.enter_context(Notice())
    step_fn = train_step.make(stage.loss, stage.make_optimizer(), config.ema_decays, config.explosion, stage.changes)
    key, last, before, running = jax.random.key(stage.config.seed), {}, None, collections.deque()
    start = int(state.step)
    for step in range(start, config.num_steps):
      if step > start:
        interludes(stage, state, row, step, checkpoints, journal, workdir)
      if signum := notice.reached():
        if before is not None:
          journal.log(*before)
        stop(signum, stage, state, row, checkpoints, journal, workdir)
      waited = time.perf_counter()
      batch = [next(batches) for _ in range(config.accumulate)]
      waited = time.perf_counter() - waited
      batch = put(batch, stage)
      if step == start:
        step_fn = compiled(step_fn, state, key, batch)
      state, metrics = step_fn(state, key, batch)
      row += config.batch_size * config.accumulate
      running.append(metrics['skipped_in_a_row'])
      if len(running) > AHEAD:
        skipped.check(stage, workdir, int(running.popleft()), row - AHEAD * config.batch_size * config.accumulate)
      if before is not None:
        last = journal.log(*before)
      before = ((step + 1, metrics, waited)
                if due(config.log_every, step + 1) or step + 1 == config.num_steps else None)
      journal.advance(step + 1)
      watch.mark()
    if before is not None:
      last = journal.log(*before)
    return finish(stage, state, row, checkpoints, journal, workdir, last)


def initial(stage, checkpoints, mesh) -> tuple[train_step.State, int]:
  """The state that `checkpoints` hold, or a new one, and the row that comes next."""
  init = jax.jit(lambda key: train_step.init(
      stage.make_model, stage.make_optimizer(), key, len(stage.config.loop.ema_decays)))
  key = jax.random.key(stage.config.seed)
  if checkpoints.latest is None:
    return begun(stage, init(key)), 0
  # The abstract state names an abstract mesh, or none where nothing is said; Orbax wants the devices themselves.
  spec = lambda s: P() if s.sharding is None else s.sharding.spec
  abstract = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding.named(mesh, spec(s))),
                          jax.eval_shape(init, key))
  return checkpoints.restore(abstract)


def compiled(step_fn, *arguments):
  """The step, compiled in all processes before any runs it: on CPUs a first collective waits only half a minute for a
  process that still compiles."""
  if jax.process_count() == 1:
    return step_fn
  program = step_fn.lower(*arguments).compile()
  processes.wait()
  return program


def begun(stage, state: train_step.State) -> train_step.State:
  """The first state, with the weights that the stage begins with."""
  model = stage.begin(state.model)
  if model is state.model:
    return state
  return dataclasses.replace(state, model=model, ema=tuple(jax.tree.map(jnp.copy, model) for _ in state.ema))


def positions(batch_size: int) -> list[int]:
  """The rows of a batch that this process's devices hold, under the mesh in force."""
  mesh = jax.sharding.get_mesh()
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  if batch_size % parts:
    raise ValueError(f'loop.batch_size={batch_size} does not divide over the {parts} parts that the mesh splits a '
                     f'batch into; make it a multiple of {parts}')
  held = sharding.named(mesh, sharding.B).addressable_devices_indices_map((batch_size,)).values()
  return sorted({position for index in held for position in range(*index[0].indices(batch_size))})


def put(batches: list, stage):
  """Numpy micro-batches, each of this process's `positions`, on the devices of the mesh in force, as
  [len(batches), batch_size, ...]."""
  mesh, size = jax.sharding.get_mesh(), stage.config.loop.batch_size
  at = {position: i for i, position in enumerate(positions(size))}

  def one(spec, *micro):
    def part(index):
      rows = slice(at[index[1].start or 0], at[(index[1].stop or size) - 1] + 1)
      return np.stack([x[(rows, *index[2:])] for x in micro[index[0]]])
    return jax.make_array_from_callback((len(micro), size, *micro[0].shape[1:]),
                                        sharding.named(mesh, sharding.stacked(spec)), part)
  spec = stage.batch_spec(batches[0])
  return jax.tree.map(one, spec, *batches, is_leaf=lambda x: isinstance(x, P))


def due(every: int, step: int) -> bool:
  """Whether what happens every so many steps happens at this one; every 0 is never."""
  return every > 0 and step % every == 0


def interludes(stage, state, row, step, checkpoints, journal, workdir):
  """What happens between steps, each at its own interval."""
  config = stage.config.loop
  if due(config.evaluate_every, step):
    with watch.marked():
      journal.evaluated(step, evaluate(stage, state))
  if due(config.sample_every, step):
    with watch.marked():
      journal.attempt('drawing samples', lambda: stage.draw(state.ema[0], step, workdir))
  if due(config.save_every, step):
    with watch.marked():
      journal.attempt('saving a checkpoint', lambda: checkpoints.save(state, row))


def evaluate(stage, state) -> dict[str, float]:
  """Held-out scores of every average of the weights; the names of all but the first begin with their decay."""
  scores = {}
  for i, (decay, ema) in enumerate(zip(stage.config.loop.ema_decays, state.ema)):
    scores |= {f'ema_{decay:g}/{name}' if i else name: value for name, value in stage.evaluate(ema).items()}
    watch.mark()
  return scores


def export(stage, state, workdir):
  """The model of the first average in `workdir`, and of each other in a folder ema_<decay> of it."""
  for i, (decay, ema) in enumerate(zip(stage.config.loop.ema_decays, state.ema)):
    folder = workdir / f'ema_{decay:g}' if i else workdir
    folder.mkdir(exist_ok=True)
    stage.export(ema, folder)
  processes.wait()


def is_done(config: LoopConfig, workdir) -> bool:
  """Whether the run in `workdir` has taken all its steps and was exported."""
  path = files.path(workdir) / 'done'
  return path.exists() and int(path.read_text()) >= config.num_steps


def stop(signum, stage, state, row, checkpoints, journal, workdir):
  """Raises Stopped, when all that can be saved is: a machine that is taken away asks for no more."""
  def save():
    checkpoints.save(state, row)
    checkpoints.wait()
  then = 'the run stops'
  journal.attempt('saving the checkpoint before', checkpoints.wait, then)
  journal.attempt('saving a checkpoint', save, then)
  journal.attempt('writing the model', lambda: export(stage, state, workdir), then)
  raise Stopped(signum, int(state.step), checkpoints.latest, workdir)


def finish(stage, state, row, checkpoints, journal, workdir, last) -> dict[str, float]:
  step = int(state.step)
  with watch.marked():
    journal.attempt('saving the checkpoint before', checkpoints.wait, 'the last one is saved now')
    checkpoints.save(state, row)
    export(stage, state, workdir)
  scores = evaluate(stage, state)
  journal.evaluated(step, scores)
  if stage.config.loop.sample_every:
    with watch.marked():
      journal.attempt('drawing samples', lambda: stage.draw(state.ema[0], step, workdir))
  checkpoints.wait()
  processes.on_first(lambda: (workdir / 'done').write_text(f'{step}\n'))
  return {**last, **scores}
