"""Tasks that fail, hang or kill their process cost themselves and nothing else. Most are standard library functions."""
import math
import os
import signal
import time

import pytest

from veojax.data import workers


def outcomes(function, tasks, **options):
  """Task number → (kind, value) of its one final event."""
  events = workers.run(function, tasks, **{'workers': 2, 'time_limit': 60.0} | options)
  events = [event for event in events if event.kind != 'progress']
  assert sorted(event.index for event in events) == list(range(len(tasks)))
  return {event.index: (event.kind, event.value) for event in events}


def test_every_task_is_done_once():
  found = outcomes(math.factorial, list(range(20)))
  assert found == {i: ('done', math.factorial(i)) for i in range(20)}


def test_no_task_starts_no_process():
  assert not list(workers.run(math.factorial, [], workers=2, time_limit=1.0))


def test_an_error_comes_back_as_it_was_raised():
  found = outcomes(math.sqrt, [4.0, -1.0, 9.0])
  assert found[0] == ('done', 2.0) and found[2] == ('done', 3.0)
  assert found[1][0] == 'error' and isinstance(found[1][1], ValueError)


def test_a_killed_process_costs_its_task_only():
  found = outcomes(signal.raise_signal, [signal.SIGKILL, signal.SIGWINCH, signal.SIGWINCH])
  assert found[0][0] == 'crash' and 'SIGKILL' in found[0][1]
  assert found[1][0] == found[2][0] == 'done'


def test_a_process_that_leaves_is_a_crash_with_its_exit_code():
  found = outcomes(os._exit, [3])
  assert found[0][0] == 'crash' and 'exit code 3' in found[0][1]


def test_a_hanging_task_is_ended_and_the_others_go_on():
  began = time.monotonic()
  found = outcomes(time.sleep, [3600.0, 0.0, 0.0, 0.0], time_limit=1.0)
  assert found[0] == ('timeout', 1.0)
  assert [found[i][0] for i in (1, 2, 3)] == ['done'] * 3
  assert time.monotonic() - began < 3600


def test_a_function_that_cannot_be_imported_is_said_at_once(tmp_path, monkeypatch):
  (tmp_path / 'only_here_once.py').write_text('def work(task): return task\n')
  monkeypatch.syspath_prepend(tmp_path)
  import only_here_once
  assert outcomes(only_here_once.work, [1]) == {0: ('done', 1)}
  (tmp_path / 'only_here_once.py').write_text('raise ImportError("no such codec")\n')
  with pytest.raises(RuntimeError, match='no such codec'):
    outcomes(only_here_once.work, [1])


def test_closing_the_iterator_ends_the_processes(tmp_path, monkeypatch):
  (tmp_path / 'slow_work.py').write_text(
      'import os, time\nfrom veojax.data import workers\n'
      'def work(task):\n  workers.report(os.getpid() / 2**40)\n  time.sleep(3600)\n')
  monkeypatch.syspath_prepend(tmp_path)
  import slow_work
  events = workers.run(slow_work.work, [0, 1], workers=2, time_limit=600.0)
  pids = [round(next(events).value * 2**40) for _ in range(2)]
  events.close()
  for pid in pids:
    with pytest.raises(ProcessLookupError):
      os.kill(pid, 0)
