"""Runs that end early, as by SIGTERM."""
import contextlib
import os
import signal
import time

import pytest

from veojax.training import loop, stopping


@contextlib.contextmanager
def told_at(step):
  """Within it a run is told to stop at a step."""
  original = loop.interludes

  def interludes(stage, state, row, at, *rest):
    original(stage, state, row, at, *rest)
    if at == step:
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(0.05)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'interludes', interludes)
    yield


@contextlib.contextmanager
def stopped_at(step):
  """Within it a run is told to stop at a step, and must say that it has; yields what pytest.raises does."""
  with told_at(step), pytest.raises(stopping.Stopped) as stopped:
    yield stopped
