"""A process that hangs is noticed and named by the others, and the run ends with the code that starts it again.

A process's mark counts how far it has come. One that stays behind the furthest for `patience` seconds hangs; so does
one from which nothing is heard. What all of them do together (evaluate, draw, save, wait for each other) may take
TOGETHER times as long: none is behind. Where each has work of its own (`alone`: encoding latents), which ends sooner in
one than in another, the work goes on within the patience, or the process hangs. Threads of each process tell its mark
through the coordination service; process 0, which serves it, judges all, the others judge process 0 and learn from it
what it found.
"""
import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import NamedTuple

import jax

from veojax import processes

STARTING = 10   # times the patience for what comes first, which compiles
TOGETHER = 12   # times the patience for what all do together
SILENCE = 60.0  # seconds; JAX itself ends everything, without a name, after 100


class Beat(NamedTuple):
  """What a process says of itself."""
  mark: int   # how far it has come
  count: int  # of its beats
  host: str
  own: int | None = None  # how far in work of its own, which no other waits for


class Judge:
  """Finds the processes that hang in what is heard of them; the clock is the judge's own."""

  def __init__(self, patience: float):
    self.patience, self.silence = patience, min(patience, SILENCE)
    self.beats, self.since = {}, {}

  def hanging(self, beats: dict[int, Beat], now: float) -> list[str]:
    """A line for each process that hangs."""
    furthest, found = max(beat.mark for beat in beats.values()), []
    nowhere = all(beat.own is None and self._still(process, beat) for process, beat in beats.items())
    together = self._lasting('together', -1, nowhere, now)
    for process, beat in sorted(beats.items()):
      before = self.beats.get(process)
      silent = self._lasting('silent', process, before is not None and beat.count == before.count, now)
      still = self._still(process, beat)
      behind = beat.own is None and beat.mark < furthest
      stuck = self._lasting('stuck', process, still and behind, now)
      idle = self._lasting('idle', process, still and beat.own is not None, now)
      if silent > self.silence:
        found.append(f'process {process} on {beat.host} has not been heard of for {silent:.0f} s')
      elif stuck > self.patience * (1 if beat.mark else STARTING):
        found.append(f'process {process} on {beat.host} has not gone on for {stuck:.0f} s, while others are '
                     f'{furthest - beat.mark} steps ahead')
      elif idle > self.patience * (1 if beat.own else STARTING):
        found.append(f'process {process} on {beat.host} has not gone on with its own work for {idle:.0f} s')
    if not found and together > self.patience * TOGETHER:
      found.append(f'none of the processes {", ".join(map(str, sorted(beats)))} has gone on for {together:.0f} s')
    self.beats = dict(beats)
    return found

  def _still(self, process: int, beat: Beat) -> bool:
    """Whether a process is where it was."""
    before = self.beats.get(process)
    return before is not None and (beat.mark, beat.own) == (before.mark, before.own)

  def _lasting(self, what: str, process: int, so: bool, now: float) -> float:
    """Seconds for which something has been so."""
    if not so:
      self.since.pop((what, process), None)
      return 0.0
    return now - self.since.setdefault((what, process), now)


class Watch:
  """Watches over the processes of a run while it is entered; `mark` says that this one has come a step further.

  patience 0 watches nothing.
  """
  _runs = 0
  in_force: 'Watch | None' = None

  def __init__(self, patience: float):
    Watch._runs += 1
    self.key = f'veojax/watch/{Watch._runs}/'
    self.marks, self.own, self.patience, self.judge = 0, None, patience, Judge(patience)
    self.interval = min(max(patience / 8, 0.25), 10.0)
    self.answered = time.monotonic()  # when the service last did
    self._stop = threading.Event()
    self._threads = [threading.Thread(target=run, daemon=True, name='watch') for run in (self._tell, self._listen)]

  def __enter__(self):
    Watch.in_force = self
    if self.patience and jax.process_count() > 1:
      self.answered = time.monotonic()
      for thread in self._threads:
        thread.start()
    return self

  def __exit__(self, *_):
    Watch.in_force = None
    self._stop.set()

  def mark(self):
    if self.own is None:
      self.marks += 1
    else:
      self.own += 1

  def _tell(self):
    """Tells this process's mark and learns of the others."""
    me, host, count = jax.process_index(), socket.gethostname(), 0
    while not self._stop.wait(self.interval):
      count += 1
      try:
        found = self._exchange(me, Beat(self.marks, count, host, self.own))
        self.answered = time.monotonic()
      except (RuntimeError, ValueError) as error:  # of the service's client; NOT_FOUND before the first beat
        if 'NOT_FOUND' in str(error):
          continue
        found = [f'process 0 does not answer ({" ".join(str(error).split())[:120]})']
      if found and not self._stop.is_set():
        self._end(me, found)

  def _listen(self):
    """Sees to it that a call that process 0 never answers is noticed."""
    while not self._stop.wait(self.interval):
      silent = time.monotonic() - self.answered
      if silent > self.judge.silence + 2 * self.interval and not self._stop.is_set():
        where = f' on {self.judge.beats[0].host}' if 0 in self.judge.beats else ''
        self._end(jax.process_index(), [f'process 0{where} has not been heard of for {silent:.0f} s'])

  def _exchange(self, me: int, mine: Beat) -> list[str]:
    client = processes.client()
    client.key_value_set(f'{self.key}beat/{me}', json.dumps(mine), allow_overwrite=True)
    if me == 0:
      told = client.key_value_dir_get(f'{self.key}beat/')
      beats = {int(key.rsplit('/', 1)[1]): Beat(*json.loads(value)) for key, value in told}
      found = self.judge.hanging(beats, time.monotonic())
      if found:
        client.key_value_set(f'{self.key}found', json.dumps(found), allow_overwrite=True)
      return found
    verdict = client.key_value_dir_get(f'{self.key}found')
    if verdict:
      return json.loads(verdict[0][1])
    first = Beat(*json.loads(client.key_value_try_get(f'{self.key}beat/0')))
    return self.judge.hanging({0: first, me: mine}, time.monotonic())

  def _end(self, me: int, found: list[str]):
    print(f'veojax: {"; ".join(found)}: process {me} ends with code {processes.RESTART}; start all of them again, they '
          'go on from the last checkpoint', file=sys.stderr, flush=True)
    if me == 0:
      time.sleep(3 * self.interval)  # for the others to read it: with process 0 the service ends
    os._exit(processes.RESTART)


def over(patience: float):
  """A context with a watch in force: the one that is, or a new one."""
  return contextlib.nullcontext(Watch.in_force) if Watch.in_force is not None else Watch(patience)


def mark():
  """Says to the watch in force, where there is one, that this process has come further."""
  if Watch.in_force is not None:
    Watch.in_force.mark()


@contextlib.contextmanager
def marked():
  """What all processes do together: a mark before it and one after it."""
  mark()
  yield
  mark()


@contextlib.contextmanager
def alone():
  """Work that each process does by itself and marks in its own count."""
  watch = Watch.in_force
  if watch is None:
    yield
    return
  watch.own = 0
  try:
    yield
  finally:
    watch.own = None
