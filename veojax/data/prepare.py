"""From the built-in world or a folder of media to a data set that trains: `veojax prepare`.

Every file (or run of world scenes) is one piece of work, done by one of many processes and kept under OUTPUT/pieces as
soon as it is done; a run that was stopped, however, goes on from there. When all pieces are there, they are gathered in
the order of the source, so the result does not depend on the number of processes nor on interruptions, and
prepare.json, written last, marks the output as finished. A file that cannot be used costs that file, and is named.
"""
import contextlib
import dataclasses
import os
import pathlib
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from veojax.data import output as outputs
from veojax.data import pieces, sources
from veojax.data import workers as processes
from veojax.data.tokenizer import SMALLEST_VOCABULARY, Tokenizer
from veojax.data.world import WorldConfig
from veojax.files import on_disk

SCENES_PER_PIECE = 32
SEED_STRIDE = 10**9  # scenes of two seeds never meet
VOCABULARY, WORLD_VOCABULARY = 4096, 600  # the world's captions have few words, and its models as many rows


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
  """How a data set is prepared. None keeps what the file has.

  store: 'decoded' holds pixels and samples, fast to read; 'compressed' holds media files: the file itself where nothing
    of it was changed, H.264 and AAC otherwise; 'rendered', of the world only, holds no media: a clip is rendered anew
    whenever it is read, so a data set of any number of clips fits anywhere.
  only: 'picture' or 'sound' leaves the other out of every clip.
  fps, height, width, max_side, sample_rate, channels: as in `media.read`; of these, those of size and rate that are
    given also replace the world's.
  loudness: dB of full scale (root mean square) that every clip's sound is brought to, without clipping.
  scene_threshold: mean difference of pixels, in [0, 1], that is a cut; 0 looks for none.
  min_seconds, max_seconds: shorter clips are rejected, longer ones cut into equal parts.
  validation_fraction: of the files (or scenes) that have a clip; with 0 there is no validation split. Clips of one file
    are never in both.
  vocab_size: pieces of the captions' tokenizer, at most; None is WORLD_VOCABULARY for the world, else VOCABULARY.
  time_limit: seconds that a file may go without yielding anything.
  """
  store: str = 'decoded'
  only: str | None = None
  fps: float | int | None = None
  height: int | None = None
  width: int | None = None
  max_side: int | None = None
  sample_rate: int | None = None
  channels: int | None = None
  loudness: float | int | None = None
  min_seconds: float | int = 0.5
  max_seconds: float | int = 10.0
  scene_threshold: float | int = 0.1
  num_clips: int = 2000
  seed: int = 0
  world: WorldConfig = WorldConfig()
  validation_fraction: float | int = 0.05
  vocab_size: int | None = None
  tokenizer: str | None = None
  time_limit: float | int = 120.0

  def __post_init__(self):
    if self.store not in ('decoded', 'compressed', 'rendered'):
      raise ValueError(f'store={self.store!r}; give decoded, compressed or rendered')
    if self.only not in (None, 'picture', 'sound'):
      raise ValueError(f'only={self.only!r}; give picture or sound, or none to keep both')
    if self.max_side and (self.height or self.width):
      raise ValueError(f'max_side={self.max_side} beside height={self.height}, width={self.width}; give one of them')
    if not 0 <= self.validation_fraction < 1:
      raise ValueError(f'validation_fraction={self.validation_fraction}; give a number in [0, 1)')
    if not 0 <= self.min_seconds <= self.max_seconds or not self.max_seconds > 0:
      raise ValueError(f'min_seconds={self.min_seconds}, max_seconds={self.max_seconds}; give 0 <= min <= max')
    if not 0 <= self.scene_threshold <= 1:
      raise ValueError(f'scene_threshold={self.scene_threshold}; give a number in [0, 1], 0 to look for no cuts')
    if self.num_clips < 1 or self.seed < 0:
      raise ValueError(f'num_clips={self.num_clips}, seed={self.seed}; give at least one clip, and a seed of 0 or more')
    if not self.time_limit > 0:
      raise ValueError(f'time_limit={self.time_limit}; give seconds above 0')
    if self.tokenizer is None and self.vocab_size is not None and self.vocab_size < SMALLEST_VOCABULARY:
      raise ValueError(f'vocab_size={self.vocab_size}; give at least {SMALLEST_VOCABULARY}, for the bytes')
    if self.loudness is not None and not self.loudness <= 0:
      raise ValueError(f'loudness={self.loudness}; give decibels of full scale, 0 or less, such as -23')
    for name in ('fps', 'height', 'width', 'max_side', 'sample_rate', 'channels'):
      value = getattr(self, name)
      if value is not None and not value > 0:
        raise ValueError(f'{name}={value}; give a number above 0, or none to keep what the file has')


@dataclasses.dataclass
class Summary:
  """What came of a preparation. rejected and notes: reason → {'count', 'first': names of the first five}."""
  name: str
  output: str
  splits: dict = dataclasses.field(default_factory=dict)  # split → number of clips
  files: int = 0                                          # files (or scenes) looked at
  seconds: float = 0.0                                    # of the clips kept
  elapsed: float = 0.0                                    # of this run
  rejected: dict = dataclasses.field(default_factory=dict)
  notes: dict = dataclasses.field(default_factory=dict)
  already: bool = False                                   # it was finished before; nothing was done

  @property
  def kept(self) -> int:
    return sum(self.splits.values())

  def table(self) -> Table:
    """Kept, rejected, and why, with the first names of each."""
    title = f'{self.name}: {self.output}' + (' (already prepared)' if self.already else '')
    table = Table(title=title, title_justify='left')
    table.add_column('clips or files', justify='right')
    table.add_column('what')
    table.add_column('which', overflow='fold')
    splits = ', '.join(f'{count} {split}' for split, count in self.splits.items())
    table.add_row(str(self.kept), '[green]kept', f'{splits}; {self.seconds:.1f} s, from {self.files} '
                  + ('scenes' if self.name == 'world' else 'files'))
    for style, tallies in (('[red]rejected: ', self.rejected), ('', self.notes)):
      for reason, tally in tallies.items():
        more = tally['count'] - len(tally['first'])
        table.add_row(str(tally['count']), style + reason, '\n'.join(map(_plain, tally['first']))
                      + (f'\nand {more} more' if more else ''))
    if not self.rejected:
      table.add_row('0', 'rejected', '')
    return table


def _plain(name: str) -> str:
  return name.replace('[', r'\[')  # rich reads brackets as markup


def prepare(source, output, *, config: PrepareConfig = PrepareConfig(), workers: int | None = None,
            progress: bool = True, overwrite: bool = False) -> Summary:
  """Prepares `source`, the word 'world' or a folder of media with captions, into the folder `output`.

  workers: processes; None is one per core. progress: show the bar and the table. overwrite: discard what an earlier
  preparation left in `output`. Raises ValueError, in one line with the remedy, where nothing can be done.
  """
  began = time.monotonic()
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
  workers = cores if workers is None else workers
  if workers < 1:
    raise ValueError(f'workers={workers}; give 1 or more')
  if config.tokenizer:
    Tokenizer.load(config.tokenizer)  # a wrong path is said now and not after the work
  output, world = on_disk(output, 'a data set'), str(source) == 'world'
  if config.store == 'rendered' and not world:
    raise ValueError(f"store='rendered' is for the world, whose clips can be made again; give decoded or compressed for "
                     f'{source}')
  if config.vocab_size is None:
    config = dataclasses.replace(config, vocab_size=WORLD_VOCABULARY if world else VOCABULARY)
  listing = None if world else sources.list_folder(source, exclude=output)
  stamp = outputs.Stamp('world' if world else 'folder', config, None if world else listing.hash)
  with outputs.claimed(output, stamp, overwrite) as finished:
    if finished:
      summary = Summary(**finished | {'output': str(output), 'already': True})
    else:
      tasks = _world_tasks(config, output) if world else _file_tasks(listing, config, output, max(1, cores // workers))
      found = outputs.Found([] if world else list(listing.rejected), [] if world else list(listing.notes))
      with _bar(progress) as bar:
        made = _work(tasks, found, config, workers, bar)
        gathered = _gather(output, stamp, tasks, made, found, bar)
      files = config.num_clips if world else len(listing.entries) + len(listing.rejected)
      elapsed = time.monotonic() - began
      summary = Summary(stamp.name, str(output), files=files, elapsed=elapsed, **gathered)
      outputs.finish(output, stamp, dataclasses.asdict(summary))
  if progress:
    Console().print(summary.table())
  return summary


def _file_tasks(listing: sources.Listing, config: PrepareConfig, output: pathlib.Path, threads: int) -> list:
  return [pieces.FileTask(entry, config, outputs.piece_path(output, entry.key), threads) for entry in listing.entries]


def _world_tasks(config: PrepareConfig, output: pathlib.Path) -> list[pieces.WorldTask]:
  """Scenes are numbered through both splits; those of the world's 'train' split are held back in its 'test' split."""
  sizes = {key: getattr(config, key) for key in ('fps', 'height', 'width', 'sample_rate')}
  world = dataclasses.replace(config.world, **{key: value for key, value in sizes.items() if value is not None})
  if config.only == 'sound' and not world.sample_rate:
    raise ValueError("only='sound' of a world with sample_rate=0; give its sample rate")
  held = dataclasses.replace(world, split='test') if world.split == 'train' else world
  num_held = outputs.num_validation(config.num_clips, config.validation_fraction)
  num_train = config.num_clips - num_held
  bounds = [(0, num_train, world, 'train'), (num_train, config.num_clips, held, 'validation')]
  tasks = []
  for first, last, of, split in bounds:
    for start in range(first, last, SCENES_PER_PIECE):
      stop = min(start + SCENES_PER_PIECE, last)
      path = outputs.piece_path(output, f'{split}-{start:08d}-{stop:08d}')
      tasks.append(pieces.WorldTask(start, stop, config.seed * SEED_STRIDE, of, split, config.store, config.only, path))
  return tasks


def _bar(progress: bool) -> Progress:
  return Progress(
      TextColumn('{task.description}'), BarColumn(), TaskProgressColumn(), TextColumn('{task.fields[clips]} clips'),
      TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True, quiet=not progress))


def _gather(output, stamp, tasks: list, made: dict[int, dict], found: outputs.Found, bar: Progress) -> dict:
  clips = [clip for summary in made.values() for clip in summary['clips']]
  line = bar.add_task('writing', total=len(clips), clips=len(clips))
  return outputs.gather(output, stamp, tasks, made, found, advance=lambda: bar.advance(line))


def _work(tasks: list, found: outputs.Found, config: PrepareConfig, workers: int, bar: Progress) -> dict[int, dict]:
  """Makes the pieces that are not there yet. Returns task number → summary of its piece; failures go to `found`."""
  made = {i: summary for i, task in enumerate(tasks) if (summary := pieces.load(task.path)) is not None}
  # The longest first, so that no process is left alone with one at the end.
  left = sorted((i for i in range(len(tasks)) if i not in made), key=lambda i: -tasks[i].weight)
  clips = sum(len(summary['clips']) for summary in made.values())
  line = bar.add_task('preparing', total=sum(task.weight for task in tasks), clips=clips)
  done = {i: task.weight if i in made else 0.0 for i, task in enumerate(tasks)}
  bar.update(line, completed=sum(done.values()))
  with contextlib.closing(processes.run(
      pieces.prepare, [tasks[i] for i in left], workers=workers, time_limit=config.time_limit)) as events:
    for event in events:
      i = left[event.index]
      fraction = event.value if event.kind == 'progress' else 1.0
      bar.advance(line, fraction * tasks[i].weight - done[i])
      done[i] = fraction * tasks[i].weight
      if event.kind == 'done':
        made[i] = event.value
        clips += len(event.value['clips'])
        bar.update(line, clips=clips)
      elif event.kind != 'progress':
        found.rejected.append(_failure(tasks[i], event))
  return made


def _failure(task, event: processes.Event) -> tuple[str, str]:
  """(reason, name) of a task that gave no piece. An output that cannot be written is no fault of the file."""
  if event.kind == 'timeout':
    return f'gave nothing for {event.value:g} s', task.name
  if event.kind == 'crash':
    return 'crashed its process', f'{task.name} ({event.value})'
  if isinstance(event.value, pieces.OutputError):
    raise event.value
  return 'failed', f'{task.name} ({type(event.value).__name__}: {event.value})'
