"""Processes that work through a list of tasks, whatever a task does to them.

A task that raises, hangs, or kills its process costs that task and nothing else: the process is replaced and the next
task goes on. Processes are fresh interpreters that import only the function's module, so the caller may be a notebook,
a script without a `__main__` guard, or a program that already holds threads and an accelerator.
"""
import dataclasses
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from typing import Any

START_LIMIT = 120.0  # seconds until a fresh process must have imported its function
ATTEMPTS = 2         # for a task whose process dies: the reason may have been the machine's (memory), not the task's

_report: Callable[[float], None] = lambda fraction: None


def report(fraction: float):
  """Called from inside a task: it is alive, and this fraction of it is done. Each call renews its time limit."""
  _report(fraction)


@dataclasses.dataclass(frozen=True)
class Event:
  """What became of task number `index`: 'progress' (value: the fraction done), 'done' (value: what it returned),
  'error' (value: the exception), 'crash' (value: how its process ended) or 'timeout' (value: the limit, in seconds)."""
  index: int
  kind: str
  value: Any


class _Process:
  """One worker process and our end of its pipe."""

  def __init__(self, function: Callable):
    self.pipe, theirs = multiprocessing.Pipe()
    self.stderr = tempfile.TemporaryFile()
    code = (f'import sys; sys.path[:] = {sys.path!r}\n'
            f'from veojax.data import workers; workers.serve({theirs.fileno()}, {os.getpid()})')
    environment = os.environ | dict(OMP_NUM_THREADS='1', OPENBLAS_NUM_THREADS='1')
    self.popen = subprocess.Popen(
        [sys.executable, '-c', code], pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=self.stderr)
    theirs.close()
    self.task = None
    self.ready = False
    self.deadline = time.monotonic() + START_LIMIT
    self.pipe.send_bytes(pickle.dumps(function))

  def give(self, index: int, task: Any, limit: float):
    self.task, self.limit = index, limit
    self.deadline = time.monotonic() + limit
    try:
      self.pipe.send(task)
    except OSError:
      pass  # it died between two tasks; the closed pipe says so to the next wait

  def complaint(self) -> str:
    """How the process ended, in words; only after stop()."""
    code = self.popen.returncode
    if code < 0:
      return f'killed by signal {-code} ({signal.Signals(-code).name})'
    self.stderr.seek(0)
    lines = self.stderr.read().decode(errors='replace').strip().splitlines()
    return f'ended with exit code {code}' + (f': {lines[-1]}' if lines else '')

  def stop(self, patience: float = 0.0):
    """Ends the process, by force unless it ends by itself within `patience` seconds."""
    self.pipe.close()
    try:
      self.popen.wait(patience)
    except subprocess.TimeoutExpired:
      self.popen.kill()
      self.popen.wait()

  def close(self):
    self.stop()
    self.stderr.close()


def run(function: Callable[[Any], Any], tasks: Sequence[Any], *, workers: int, time_limit: float) -> Iterator[Event]:
  """Yields Events as the tasks go on, in no fixed order; every task ends in exactly one that is not 'progress'.

  function: importable by name from its module; given one task, pickled. time_limit: seconds that a task may stay
  silent (see `report`). Closing the iterator kills the processes.
  """
  waiting = [(index, 1) for index in reversed(range(len(tasks)))]
  attempts = {}
  processes: list[_Process] = []
  try:
    while waiting or any(p.task is not None for p in processes):
      busy = sum(p.task is not None for p in processes)
      while len(processes) < min(workers, len(waiting) + busy):
        processes.append(_Process(function))
      for process in processes:
        if process.ready and process.task is None and waiting:
          index, attempts[index] = waiting.pop()
          process.give(index, tasks[index], time_limit)
      soonest = min(p.deadline for p in processes if p.task is not None or not p.ready)
      connection.wait([p.pipe for p in processes], max(0.0, soonest - time.monotonic()))
      for process in list(processes):
        for event in _events(process):
          if event.kind == 'crash' and attempts[event.index] < ATTEMPTS:
            waiting.append((event.index, attempts[event.index] + 1))
          else:
            yield event
        if process.popen.returncode is not None:
          processes.remove(process)
          process.close()
  finally:
    for process in processes:
      process.close()


def _events(process: _Process) -> Iterator[Event]:
  """What the process has said by now; stops it when it is dead or late, so that its returncode is set."""
  try:
    while process.pipe.poll():
      kind, value = process.pipe.recv()
      process.deadline = time.monotonic() + (process.limit if process.task is not None else 0.0)
      if kind == 'ready':
        process.ready = True
        continue
      event = Event(process.task, kind, value)
      if kind != 'progress':
        process.task = None
      yield event
  except (EOFError, OSError):
    process.stop(patience=5.0)
    if not process.ready:
      raise RuntimeError(f'a worker process could not start: {process.complaint()}') from None
    if process.task is not None:
      yield Event(process.task, 'crash', process.complaint())
    return
  if (process.task is not None or not process.ready) and time.monotonic() > process.deadline:
    process.stop()
    if not process.ready:
      raise RuntimeError(f'a worker process did not start within {START_LIMIT:g} s')
    yield Event(process.task, 'timeout', process.limit)


def serve(handle: int, parent: int):
  """The worker process: reads the function, then tasks, from the pipe with this file descriptor until it closes."""
  global _report
  pipe = connection.Connection(handle)
  # Ctrl-C reaches the whole foreground group; the parent decides what it means.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
  function = pickle.loads(pipe.recv_bytes())
  _report = lambda fraction: pipe.send(('progress', fraction))
  pipe.send(('ready', None))
  while True:
    try:
      task = pipe.recv()
    except EOFError:
      return
    try:
      answer = ('done', function(task))
    except Exception as error:
      answer = ('error', _sendable(error))
    pipe.send(answer)


def _leave_with(parent: int):
  """A parent killed outright closes nothing that a hanging task would look at."""
  while os.getppid() == parent:
    time.sleep(1.0)
  os._exit(1)


def _sendable(error: Exception) -> Exception:
  try:
    pickle.loads(pickle.dumps(error))
    return error
  except Exception:
    return RuntimeError(f'{type(error).__name__}: {error}')
