"""What a run tells while it goes: a progress bar with time left, lines to read, metrics.jsonl, TensorBoard files (on a
disk).

Nothing here ever ends a run.
"""
import json
import time
from collections.abc import Callable

import numpy as np
from rich import console, progress

from veojax import files, processes

HIDDEN = ('skipped', 'skipped_in_a_row', 'data_wait')  # from the lines; they stand in metrics.jsonl


class Journal:

  def __init__(self, workdir, name: str, num_steps: int, step: int):
    self.workdir, self.name, self.num_steps, self.start = workdir, name, num_steps, step
    self.skipped, self.since = None, (step, time.perf_counter())
    self.writing, self.board = processes.is_first(), None
    self.console = console.Console(quiet=not self.writing)
    self.bar = progress.Progress(
        progress.TextColumn('{task.description}'), progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(), progress.TextColumn('left'), progress.TimeRemainingColumn(),
        console=self.console, speed_estimate_period=300)

  def __enter__(self):
    if self.writing:
      self.lines = Lines(self.workdir / 'metrics.jsonl', self.start)
      if not files.is_remote(self.workdir):
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
      self.attempt('writing metrics', self.lines.close)
      if self.board is not None:
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
      self.say(f'step {step}: a loss or gradient was not finite, or the gradient\'s norm far above its level; '
               f'{skipped} steps so far were not applied')
    self.skipped = skipped
    self.write(step, values)
    self.say(f'{step:>7}  ' + '  '.join(f'{k} {v:.4g}' for k, v in values.items() if k not in HIDDEN))
    return values

  def evaluated(self, step: int, scores: dict[str, float]):
    self.write(step, {f'evaluation/{name}': value for name, value in scores.items()})
    self.say(f'{step:>7}  held out: ' + '  '.join(f'{k} {v:.4g}' for k, v in scores.items()))
    self.since = (step, time.perf_counter())

  def write(self, step: int, values: dict[str, float]):
    if not self.writing:
      return
    def both():
      self.lines.write({'step': step, **values})
      for name, value in values.items():
        if self.board is not None and np.isfinite(value):
          self.board.add_scalar(name, value, step)
    self.attempt('writing metrics', both)

  def say(self, line: str):
    self.console.print(f'{self.name} {line}', highlight=False, soft_wrap=True)

  def attempt(self, what: str, do: Callable[[], None], then: str = 'training goes on'):
    """Runs something that nothing depends on; a failure is told, and what happens `then`."""
    try:
      do()
    except Exception as error:
      self.say(f'{what} failed: {type(error).__name__}: {error}; {then}')


class Lines:
  """metrics.jsonl from the step on that a run goes on from: later lines of an earlier start are dropped, so that no
  step stands twice. An object in a bucket cannot grow: there it is written anew, at most once in EVERY seconds."""
  EVERY = 60.0

  def __init__(self, path, step: int):
    self.path, self.remote, self.since = path, files.is_remote(path), 0.0
    lines = path.read_text().splitlines() if path.exists() else []
    self.kept = [line for line in lines if line.endswith('}') and json.loads(line)['step'] <= step]
    if lines:
      files.write(path, self._text().encode())

  def _text(self):
    return ''.join(line + '\n' for line in self.kept)

  def write(self, record: dict):
    line = json.dumps(record)
    if not self.remote:
      with open(self.path, 'a') as file:
        file.write(line + '\n')
      return
    self.kept.append(line)
    if time.monotonic() - self.since > self.EVERY:
      self.close()
      self.since = time.monotonic()

  def close(self):
    if self.remote:
      files.write(self.path, self._text().encode())


def read(workdir) -> list[dict]:
  """The metrics of a run, a dict for each line that was logged."""
  path = files.path(workdir) / 'metrics.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
