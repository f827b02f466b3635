"""A run in which no update is sound any more ends, and tells with which clips."""
import json

from veojax import files, processes

FILE = 'skipped.json'


def check(stage, workdir, in_a_row: int, row: int):
  """FloatingPointError where the last `in_a_row` updates, those before the data's `row`, are as many as must not be.

  Writes the clips of the first and of the last of these steps to skipped.json in `workdir`.
  """
  config = stage.config.loop
  if not config.max_skipped or in_a_row < config.max_skipped:
    return
  rows, path = config.batch_size * config.accumulate, workdir / FILE
  record = {'steps skipped in a row': in_a_row,
            **{name: {'rows': [start, start + rows], 'clips': [stage.clips(r) for r in range(start, start + rows)]}
               for name, start in (('first', row - in_a_row * rows), ('last', row - rows))}}
  processes.on_first(lambda: files.write(path, json.dumps(record, indent=1).encode()))
  raise FloatingPointError(
      f'{in_a_row} steps in a row were not applied: a loss or gradient was not finite, or far above its level. The '
      f'clips of the first and the last of them are named in {path}; look at them, or lower optimizer.learning_rate, '
      'or raise loop.explosion')
