"""What a run tells while it goes: a progress bar with time left, lines to read, metrics.jsonl, TensorBoard files.

Nothing here ever ends a run.
"""
import json
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np
from rich import console, progress


class Journal:

  def __init__(self, workdir: pathlib.Path, name: str, num_steps: int, step: int):
    self.workdir, self.name, self.num_steps, self.start = workdir, name, num_steps, step
    self.skipped, self.since = None, (step, time.perf_counter())
    self.writing = jax.process_index() == 0
    self.console = console.Console(quiet=not self.writing)
    self.bar = progress.Progress(
        progress.TextColumn('{task.description}'), progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(), progress.TextColumn('left'), progress.TimeRemainingColumn(),
        console=self.console, speed_estimate_period=300)

  def __enter__(self):
    if self.writing:
      self._keep_until(self.start)
      import tensorboardX
      self.board = tensorboardX.SummaryWriter(str(self.workdir / 'tensorboard'), write_to_disk=True)
    self.bar.start()
    self.task = self.bar.add_task(self.name, total=self.num_steps, completed=self.start)
    self.console.print(f'{self.name}: '
                       + (f'goes on at step {self.start}' if self.start else 'starts; the first step compiles')
                       + f', {self.num_steps} steps in all', highlight=False)
    return self

  def __exit__(self, *_):
    self.bar.stop()
    if self.writing:
      self.board.close()

  def advance(self, step: int):
    self.bar.update(self.task, completed=step)

  def log(self, step: int, metrics: dict, waited: float) -> dict[str, float]:
    """Fetches and writes the metrics of a step; gives them back as numbers."""
    values = {name: float(value) for name, value in metrics.items()}
    (step_before, before), now = self.since, time.perf_counter()
    self.since = (step, now)
    values.update(steps_per_second=(step - step_before) / (now - before), data_wait=waited)
    skipped = int(values['skipped'])
    if skipped > (self.skipped or 0):
      self.say(f'step {step}: a loss or gradient was not finite; {skipped} steps so far were not applied')
    self.skipped = skipped
    self.write(step, values)
    self.say(f'{step:>7}  ' + '  '.join(f'{k} {v:.4g}' for k, v in values.items() if k not in ('skipped', 'data_wait')))
    return values

  def evaluated(self, step: int, scores: dict[str, float]):
    self.write(step, {f'evaluation/{name}': value for name, value in scores.items()})
    self.say(f'{step:>7}  held out: ' + '  '.join(f'{k} {v:.4g}' for k, v in scores.items()))
    self.since = (step, time.perf_counter())

  def write(self, step: int, values: dict[str, float]):
    if not self.writing:
      return
    def both():
      with open(self.workdir / 'metrics.jsonl', 'a') as file:
        file.write(json.dumps({'step': step, **values}) + '\n')
      for name, value in values.items():
        if np.isfinite(value):
          self.board.add_scalar(name, value, step)
    self.attempt('writing metrics', both)

  def say(self, line: str):
    self.console.print(f'{self.name} {line}', highlight=False, soft_wrap=True)

  def attempt(self, what: str, do: Callable[[], None]):
    """Runs something that training does not depend on; a failure is told, and training goes on."""
    try:
      do()
    except Exception as error:
      self.say(f'{what} failed: {type(error).__name__}: {error}; training goes on')

  def _keep_until(self, step: int):
    """Drops the lines after the step that a run goes on from, so that no step stands twice."""
    path = self.workdir / 'metrics.jsonl'
    if path.exists():
      lines = [line for line in path.read_text().splitlines()
               if line.endswith('}') and json.loads(line)['step'] <= step]
      path.write_text(''.join(line + '\n' for line in lines))


def read(workdir) -> list[dict]:
  """The metrics of a run, a dict for each line that was logged."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
