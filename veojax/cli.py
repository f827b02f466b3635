"""`veojax <command>`: short doors to functions that can be imported.

Every error a person can cause ends in one line with its remedy and exit code 2; a run that a signal stopped, with all
saved, ends with 130 after Ctrl-C and 75 (try again) after SIGTERM.
"""
import argparse
import ast
import pathlib
import signal
import sys

from veojax import config as door


def main(argv: list[str] | None = None) -> int:
  argv = list(sys.argv[1:] if argv is None else argv)
  try:
    return _run(argv)
  except (ValueError, FloatingPointError, OSError) as error:
    print(f'veojax: {_line(error)}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('veojax: stopped; nothing that was saved is lost', file=sys.stderr)
    return 130


def _line(error: BaseException) -> str:
  return ' '.join(str(error).split()) or type(error).__name__


def _run(argv) -> int:
  if not argv or argv[0] in ('-h', '--help'):
    print(__doc__.split('\n')[0] + '\n\n' + '\n'.join(f'  {name:<10}{command.__doc__.splitlines()[0]}'
                                                     for name, command in COMMANDS.items())
          + '\n\nveojax <command> --help tells the rest.')
    return 0 if argv else 2
  name, *rest = argv
  if name not in COMMANDS:
    raise ValueError(f'no command {name!r}; {door.nearest(name, COMMANDS)}')
  return COMMANDS[name](rest)


def options(rest: list[str]) -> dict:
  """['--a.b=1', '--c', 'x'] → {'a': {'b': 1}, 'c': 'x'}; values are Python literals where they can be read as such."""
  tree, words = {}, iter(rest)
  for word in words:
    if not word.startswith('--'):
      raise ValueError(f'unexpected {word!r}; options are --name=value')
    name, given, value = word[2:].partition('=')
    if not given:
      value = next(words, None)
      if value is None:
        raise ValueError(f'--{name} needs a value: --{name}=...')
    set_key(tree, name.replace('-', '_'), literal(value))
  return tree


def literal(text: str):
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def set_key(tree, path: str, value):
  """tree['a']['b'] = value for the path 'a.b'."""
  *outer, last = path.split('.')
  for name in outer:
    if name not in tree:
      tree[name] = {}
    tree = tree[name]
    if not hasattr(tree, 'keys'):
      raise ValueError(f'{path}: {name} is {tree!r}, which has no keys')
  tree[last] = value


def _parser(name, **kwargs) -> argparse.ArgumentParser:
  return argparse.ArgumentParser(prog=f'veojax {name}', description=COMMANDS[name].__doc__, allow_abbrev=False,
                                 formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)


def prepare(argv) -> int:
  """The built-in world, or a folder of media with captions, into a data set.

  Any field of data.prepare.PrepareConfig is an option: --num_clips=500 --height=64 --width=64 --fps=16
  --sample_rate=16000 --store=compressed --world.levels="('L2','L3')" --validation_fraction=0 ...
  """
  parser = _parser('prepare')
  parser.add_argument('--source', required=True, help='world, or a folder of media')
  parser.add_argument('--output', required=True, help='folder of the data set')
  parser.add_argument('--workers', type=int, help='processes; one per core by default')
  parser.add_argument('--overwrite', action='store_true', help='discard what an earlier preparation left in the output')
  known, rest = parser.parse_known_args(argv)
  from veojax.data import prepare as preparation
  config = door.build(preparation.PrepareConfig, options(rest), 'prepare')
  preparation.prepare(known.source, known.output, config=config, workers=known.workers, overwrite=known.overwrite)
  return 0


def train(argv) -> int:
  """Trains the model of a config file in a work directory, or goes on with what the directory holds.

  Any key of the config can be set: --config.loop.num_steps=100 --config.data=DATA ...
  """
  parser = _parser('train')
  parser.add_argument('--config', required=True, help='config file, such as configs/quickstart.py')
  parser.add_argument('--workdir', required=True, help='folder of the run')
  known, rest = parser.parse_known_args(argv)
  keep_memory()
  from veojax.training import loop, run
  config = _config(known.config, rest)
  enable_compilation_cache()
  try:
    run.train(config, known.workdir)
  except loop.Stopped as stopped:
    print(f'veojax: {stopped}', file=sys.stderr)
    return 130 if stopped.signum == signal.SIGINT else 75
  return 0


def _config(path, rest):
  """The run of a config file, with the keys that are set on the command line."""
  from veojax.training import run
  tree = run.read_config(path)
  if hasattr(tree, 'unlock'):
    tree.unlock()
  given = options(rest)
  for name in given:
    if name != 'config':
      raise ValueError(f'unknown option --{name}; keys of the config are set as --config.{name}=...')
  _merge(tree, given.get('config', {}))
  return run.build(tree)


def _merge(tree, given: dict):
  for name, value in given.items():
    if isinstance(value, dict) and name in tree and hasattr(tree[name], 'keys'):
      _merge(tree[name], value)
    else:
      tree[name] = value


def generate(argv) -> int:
  """A clip with sound for a prompt.

  The file's tags say that it is AI-generated, with the model's name, the seed and the prompt.
  Besides those below: --negative_prompt --num_frames --height --width --fps --seed --num_inference_steps
  --guidance_scale --audio_guidance_scale --guidance_rescale --guidance_interval --sampler --video_shift ...
  What of the clip is given: --image --last_image --keyframes="{0.5: 'middle.png'}" --references="['face.png']"
  --video --audio --mask --strength, and --task where it does not follow from these: image, sound, extend,
  extend_backward, inpaint, outpaint, soundtrack, picture, edit
  """
  parser = _parser('generate')
  parser.add_argument('--model', required=True, help='folder of a run')
  parser.add_argument('--prompt', action='append', help='may be given several times')
  parser.add_argument('--prompt_file', '--prompt-file', help='a text file, one prompt a line; # begins a comment')
  parser.add_argument('--output', required=True,
                      help='.mp4 .webm .gif .wav .png; of several prompts the number is added')
  parser.add_argument('--no_prompt_in_file', '--no-prompt-in-file', action='store_true',
                      help='the tags of the file then name the model and the seed, not the prompt')
  parser.add_argument('--paste', action='store_true',
                      help='put the given pixels and samples themselves over what the codecs make of them')
  known, rest = parser.parse_known_args(argv)
  prompts = list(known.prompt or []) + (read_prompts(known.prompt_file) if known.prompt_file else [])
  if not prompts:
    raise ValueError('there is no prompt; give --prompt "..." or --prompt_file FILE')
  given = options(rest)
  output = pathlib.Path(known.output)
  from veojax.data import media_write
  media_write.check_path(output)
  from veojax.generation import model
  enable_compilation_cache()
  for name in ('prompt', 'output', 'model'):
    given.pop(name, None)
  loaded = model.load(known.model)
  if 'negative_prompt' in given:
    given['negative_prompt'] = str(given['negative_prompt'])
  clips = loaded.generate(prompts, paste=known.paste, **given)
  for i, clip in enumerate(clips):
    path = output if len(clips) == 1 else output.with_stem(f'{output.stem}_{i}')
    clip.save(path, with_prompt=not known.no_prompt_in_file)
    print(path)
  return 0


def read_prompts(path) -> list[str]:
  """Prompts of a text file, one a line. Raises ValueError where there is no file, no text in it, or no prompt."""
  try:
    text = pathlib.Path(path).read_text(encoding='utf-8')
  except FileNotFoundError:
    raise ValueError(f'{path} does not exist; give a text file with one prompt a line') from None
  except UnicodeDecodeError:
    raise ValueError(f'{path} is no UTF-8 text; give a text file with one prompt a line') from None
  lines = [line.strip() for line in text.splitlines()]
  prompts = [line for line in lines if line and not line.startswith('#')]
  if not prompts:
    raise ValueError(f'{path} holds no prompt; write one a line (lines that begin with # are comments)')
  return prompts


def info(argv) -> int:
  """What a model is: sizes, shapes, codecs, defaults."""
  parser = _parser('info')
  parser.add_argument('--model', required=True, help='folder of a run')
  known = parser.parse_args(argv)
  from rich import console, table
  from veojax.generation import model
  rows = table.Table(title=known.model, title_justify='left', show_header=False)
  for name, value in model.load(known.model).info().items():
    text = '\n'.join(f'{k}: {v}' for k, v in value.items()) if isinstance(value, dict) else str(value)
    rows.add_row(name, text)
  console.Console().print(rows)
  return 0


def compile_ahead(argv) -> int:
  """What a step needs on a named TPU topology, by the TPU's own compiler, without a TPU.

  Any key of the config can be set: --config.mesh.fsdp=8 --config.dit.remat=full ... Ends with 1 where it does not fit.
  """
  parser = _parser('compile')
  parser.add_argument('--config', required=True, help='config file, such as configs/t2va_2b.py')
  parser.add_argument('--topology', required=True, help='kind of TPU and its torus, such as v5p:4x4x4')
  parser.add_argument('--stage', default='train', choices=('train', 'generate', 'encode', 'decode'))
  parser.add_argument('--json', action='store_true', help='the figures as JSON, in bytes, FLOPs and seconds')
  known, rest = parser.parse_known_args(argv)
  import dataclasses
  import json
  import jax
  from rich import console
  from veojax.compiling import report, table
  jax.config.update('jax_platforms', 'cpu')  # a TPU that is here is not what is compiled for
  found = report.compile_stage(_config(known.config, rest), known.topology, known.stage)
  if known.json:
    print(json.dumps(dataclasses.asdict(found)))
  else:
    console.Console().print(table.table(found))
  return 0 if found.fits else 1


def enable_compilation_cache():
  """Compiled programs are kept between starts, in the user's cache folder, unless JAX is told otherwise."""
  import os
  import jax
  if not jax.config.jax_compilation_cache_dir and 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update('jax_compilation_cache_dir', str(pathlib.Path(base) / 'veojax' / 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 2.0)


def keep_memory():
  """glibc keeps what is freed, for the next step, instead of giving it back to the system and asking for it page by
  page again: that was a fifth of a training step's time on a CPU. Other C libraries are left as they are."""
  import ctypes
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return
  one_arena, no_mmap, never_trim = (-8, 1), (-4, 0), (-1, 2**31 - 1)  # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD
  for option in (one_arena, no_mmap, never_trim):
    mallopt(*option)


COMMANDS = {'prepare': prepare, 'train': train, 'generate': generate, 'compile': compile_ahead, 'info': info}

if __name__ == '__main__':
  sys.exit(main())
