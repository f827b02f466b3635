"""Stopping on a signal, at the same step in all processes, with everything saved."""
import itertools
import os
import signal

import jax
from jax.experimental import multihost_utils

from veojax import processes

_calls = itertools.count(1)  # of `Notice.reached`, the same in all processes


class Stopped(Exception):
  """Raised after a signal, when what can be saved is. saved: the step of the newest checkpoint, None where there is
  none."""

  def __init__(self, signum: int, step: int, saved: int | None, workdir):
    what = ('all is saved' if saved == step else 'nothing could be saved' if saved is None else
            f'this step could not be saved, step {saved} is')
    super().__init__(f'stopped by {signal.Signals(signum).name} at step {step}: {what} in {workdir}; '
                     f'the same command {"begins anew" if saved is None else "goes on from there"}')
    self.exit_code = 130 if signum == signal.SIGINT else processes.RESTART


class Notice:
  """SIGINT and SIGTERM, noted instead of ending the process; a second Ctrl-C ends it at once.

  Of several processes any may get the signal: the coordination service tells the others in the background, and all
  agree on a step that none has passed. JAX itself listens for SIGTERM there.
  """

  def __init__(self):
    self.signum = None
    self.alone = jax.process_count() == 1

  def __enter__(self):
    watched = (signal.SIGINT, signal.SIGTERM) if self.alone else (signal.SIGINT,)
    try:
      self.before = {s: signal.signal(s, self._handle) for s in watched}
    except ValueError:  # not in the main thread, as in some notebooks: signals then do what they did
      self.before = {}
    return self

  def __exit__(self, *_):
    for signum, handler in self.before.items():
      signal.signal(signum, handler)

  def _handle(self, signum, frame):
    if self.signum and signum == signal.SIGINT:
      raise KeyboardInterrupt
    self.signum = signum
    if not self.alone:
      os.kill(os.getpid(), signal.SIGTERM)

  def reached(self) -> int | None:
    """The signal to stop for now; to be asked once a step."""
    if self.alone:
      return self.signum
    return self.signum or signal.SIGTERM if multihost_utils.reached_preemption_sync_point(next(_calls)) else None
