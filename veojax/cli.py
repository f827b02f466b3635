"""`veojax <command>`: short doors to functions that can be imported.

Every error a person can cause ends in one line with its remedy and exit code 2; a run that a signal stopped, with all
saved, ends with 130 after Ctrl-C and 75 (start it again) after SIGTERM. With 75 end also errors that pass by
themselves, as a network's, and the processes that are left of several when one is gone or hangs.
"""
import argparse
import pathlib
import sys
from contextlib import nullcontext

from veojax import arguments
from veojax import config as door


def main(argv: list[str] | None = None) -> int:
  argv = list(sys.argv[1:] if argv is None else argv)
  try:
    return _run(argv)
  except (ValueError, FloatingPointError, OSError, KeyboardInterrupt) as error:
    return _ended(error)


def _ended(error: BaseException) -> int:
  """Tells what has ended the command, and ends a process of several at once; the exit code."""
  processes = sys.modules.get('veojax.processes')  # where it is loaded: it loads JAX
  if isinstance(error, KeyboardInterrupt):
    line, code = 'stopped; nothing that was saved is lost', 130
  else:
    line = ' '.join(str(error).split()) or type(error).__name__
    code = processes.RESTART if processes and processes.passes(error) else 2
  print(f'veojax: {line}', file=sys.stderr)
  if processes:
    processes.abandon(code)
  return code


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
  parser.add_argument('--embed', help='folder of a published text encoder, whose features of the captions are stored '
                                      'in the output')
  parser.add_argument('--embed_length', '--embed-length', type=int, default=256, help='tokens of a caption, at most')
  known, rest = parser.parse_known_args(argv)
  from veojax.data import prepare as preparation
  config = door.build(preparation.PrepareConfig, arguments.parse(rest), 'prepare')
  preparation.prepare(known.source, known.output, config=config, workers=known.workers, overwrite=known.overwrite)
  if known.embed:
    from veojax.zoo import text_encoders
    for split, features in text_encoders.embed(known.output, known.embed, max_length=known.embed_length).items():
      print(f'{split}: {len(features)} captions, {features.start[-1]} tokens of {features.record["width"]} features')
  return 0


def train(argv) -> int:
  """Trains the model of a config file in a work directory, or goes on with what the directory holds.

  Any key of the config can be set: --config.loop.num_steps=100 --config.data=DATA ...
  """
  parser = _parser('train')
  parser.add_argument('--config', required=True, help='config file, such as configs/quickstart.py')
  parser.add_argument('--workdir', required=True, help='folder of the run')
  _add_process_options(parser)
  known, rest = parser.parse_known_args(argv)
  from veojax import host, processes
  from veojax.training import run, stopping
  config = _config(known.config, rest)
  host.keep_memory()
  host.enable_compilation_cache()
  if isinstance(config, run.TransformerRun) and config.mesh == run.TransformerRun.mesh:
    host.one_device_a_core(run.common_batch(config))
  processes.join(known.coordinator, known.num_processes, known.process_index)
  with processes.together():
    try:
      run.train(config, known.workdir)
    except stopping.Stopped as stopped:
      print(f'veojax: {stopped}', file=sys.stderr)
      return stopped.exit_code
  return 0


def _add_process_options(parser):
  parser.add_argument('--coordinator', default='', help='HOST:PORT of process 0 of several; auto: ask the TPU machine')
  parser.add_argument('--num_processes', '--num-processes', '--process_count', '--process-count', type=int,
                      help='how many there are')
  parser.add_argument('--process_index', '--process-index', type=int, help='which of them this one is, from 0')


def _config(path, rest):
  """The run of a config file, with the keys that are set on the command line."""
  from veojax.training import run
  tree = run.read_config(path)
  if hasattr(tree, 'unlock'):
    tree.unlock()
  given = arguments.parse(rest)
  for name in given:
    if name != 'config':
      raise ValueError(f'unknown option --{name}; keys of the config are set as --config.{name}=...')
  arguments.merge(tree, given.get('config', {}))
  return run.build(tree)


def generate(argv) -> int:
  """A clip with sound for a prompt.

  The file's tags say that it is AI-generated, with the model's name, the seed and the prompt.
  Besides those below: --negative_prompt --num_frames --height --width --fps --seed --num_inference_steps
  --guidance_scale --audio_guidance_scale --modality_guidance_scale --guidance_in_turn=True --guidance_rescale
  --guidance_interval --sampler --video_shift ...
  What of the clip is given: --image --last_image --keyframes="{0.5: 'middle.png'}" --references="['face.png']"
  --video --end_video --audio --mask --strength, and --task where it does not follow from these: image, sound, extend,
  extend_backward, inpaint, outpaint, soundtrack, picture, edit, loop, join
  On several devices: --mesh.data --mesh.fsdp --mesh.context --mesh.tensor; without these rows, then tokens are shared,
  over several processes tokens. One of the processes writes.
  """
  parser = _parser('generate')
  _generate_options(parser)
  _add_process_options(parser)
  known, rest = parser.parse_known_args(argv)
  given = arguments.parse(rest)
  output = pathlib.Path(known.output)
  from veojax.data import media_write
  media_write.check_path(output, picture=given.get('task') != 'sound', sound=given.get('task') != 'image')
  from veojax import host, processes
  from veojax.generation import prompts as prompting
  prompts = list(known.prompt or []) + (prompting.read(known.prompt_file) if known.prompt_file else [])
  host.enable_compilation_cache()
  for name in ('prompt', 'output', 'model'):
    given.pop(name, None)
  if 'negative_prompt' in given:
    given['negative_prompt'] = str(given['negative_prompt'])
  given |= {'paste': True} if known.paste else {}
  given |= {'expand': prompting.expander(known.expand)} if known.expand is not None else {}
  if processes.join(known.coordinator, known.num_processes, known.process_index):
    given.setdefault('mesh', {'data': 1, 'context': -1})
  with processes.together():
    _generate(known, prompts, output, given)
  return 0


def _generate(known, prompts, output, given):
  from veojax import processes
  from veojax.generation import long, model
  long_clip = known.window is not None or known.stream or known.chain
  if known.overlap is not None and not long_clip:
    raise ValueError(f'--overlap={known.overlap} belongs to a clip in windows; give --window, --stream or --chain too')
  with _mesh(given):
    loaded = model.load(known.model)
    if not prompts and loaded.takes_prompt:
      raise ValueError('there is no prompt; give --prompt "..." or --prompt_file FILE')
    if long_clip:
      overlap = {} if known.overlap is None else {'overlap': known.overlap}
      long.save(output, loaded, prompts, window=known.window, stream=known.stream, chain=known.chain,
                with_prompt=not known.no_prompt_in_file, **overlap, **given)
      clips = []
    else:
      clips = loaded.generate(prompts or [''], **given)
  if not processes.is_first():
    return
  for i, clip in enumerate(clips):
    path = output if len(clips) == 1 else output.with_stem(f'{output.stem}_{i}')
    clip.save(path, with_prompt=not known.no_prompt_in_file)
    print(path)
  if not clips:
    print(output)


def _mesh(given: dict, devices=None):
  """A context with the mesh of the options --mesh.NAME in force, which are taken out of `given`; of all devices."""
  from veojax import sharding
  if 'mesh' not in given:
    return nullcontext()
  return sharding.use(door.build(sharding.MeshConfig, given.pop('mesh'), 'mesh'), devices)


def _generate_options(parser):
  parser.add_argument('--model', required=True, help='folder of a run, of a checkpoint of it, or of a converted model')
  parser.add_argument('--prompt', action='append', help='may be given several times')
  parser.add_argument('--prompt_file', '--prompt-file', help='a text file, one prompt a line; # begins a comment')
  parser.add_argument('--output', required=True,
                      help='.mp4 .webm .gif .wav .png; of several prompts the number is added')
  parser.add_argument('--no_prompt_in_file', '--no-prompt-in-file', action='store_true',
                      help='the tags of the file then name the model and the seed, not the prompt')
  parser.add_argument('--paste', action='store_true',
                      help='put the given pixels and samples themselves over what the codecs make of them')
  parser.add_argument('--expand', help='module:function, or a command that reads a prompt and writes a longer one')
  parser.add_argument('--window', type=int, help='a long clip in windows of so many frames, written as it is made')
  parser.add_argument('--overlap', type=int, help='frames of a window that the one before has made, 9 by default')
  parser.add_argument('--stream', action='store_true', help='a long clip whose later frames are noisier, instead; for '
                      'models trained on the task stream')
  parser.add_argument('--chain', action='store_true', help='the prompts follow one another in one long clip')


def evaluate(argv) -> int:
  """One model under one benchmark: report.html, .json and .csv with ceiling, codec round trip and floor.

  --model truth and --model roundtrip measure true clips, and the same through the world's codecs. Any field of the
  benchmark is an option (world: --num_clips --seed --levels="('L1','L4')" --split=pairs --given=first_frame
  --num_frames --height --width --fps), and any of generate's settings (--num_inference_steps --guidance_scale --sampler
  ...); with the captions of a data set (--data) clip.num_frames, clip.height, clip.width, clip.fps. Started again, it
  goes on with what the output holds. On several devices: --mesh.data --mesh.fsdp --mesh.context --mesh.tensor, as of
  generate, over the devices of each process; several processes share out the clips.
  """
  parser = _parser('evaluate')
  parser.add_argument('--model', required=True, help='folder of a run, a checkpoint or a converted model; truth or roundtrip')
  parser.add_argument('--benchmark', default='world', help='world, reconstruction, fvd, fad, basic or surprise')
  parser.add_argument('--output', required=True, help='folder of the report')
  parser.add_argument('--batch', type=int, default=8, help='clips made at a time')
  _add_process_options(parser)
  known, rest = parser.parse_known_args(argv)
  _host(known.batch)
  from veojax import processes
  from veojax.evaluation import evaluate as evaluation
  given = arguments.parse(rest)
  processes.join(known.coordinator, known.num_processes, known.process_index)
  with processes.together(), _local_mesh(given):
    evaluation.evaluate(known.model, known.benchmark, known.output, given, batch=known.batch)
    if processes.is_first():
      print(pathlib.Path(known.output) / 'report.html')
  return 0


def _local_mesh(given: dict):
  """As `_mesh`, of this process's devices."""
  import jax
  return _mesh(given, jax.local_devices())


def sweep(argv) -> int:
  """A grid of evaluations: models x settings, resumable, over any number of processes, with one report.

  --grid takes name=value,value,... for any option of `evaluate`: guidance_scale=1,3,5 sampler=euler,heun seed=0,1
  given=nothing,first_frame ...; other options hold for all cells. Processes share the output folder alone: those of a
  pod find their number by themselves, others are told --process_index=0 --num_processes=4. --mesh.NAME as of evaluate,
  over the devices of each process.
  """
  parser = _parser('sweep')
  parser.add_argument('--models', required=True, nargs='+', help='folders of runs, checkpoints and converted models')
  parser.add_argument('--grid', nargs='+', default=[], help='name=value,value,...')
  parser.add_argument('--benchmark', default='world')
  parser.add_argument('--output', required=True, help='folder of the results and the report')
  parser.add_argument('--batch', type=int, default=8, help='clips made at a time, and kept in one file')
  _add_process_options(parser)
  known, rest = parser.parse_known_args(argv)
  _host(known.batch)
  from veojax import processes
  from veojax.evaluation import sweep as sweeping
  given = arguments.parse(rest)
  if known.coordinator or known.process_index is None:
    processes.join(known.coordinator, known.num_processes, known.process_index)
  with processes.together(), _local_mesh(given):
    outcomes = sweeping.sweep(
        known.models, sweeping.parse_grid(known.grid), known.output, benchmark=known.benchmark, options=given,
        batch=known.batch, process_index=known.process_index, process_count=known.num_processes)
    first = processes.is_first()
  if outcomes is None:
    print('this process has done its part; the last one writes the report, or any one started without --process_index')
    return 0
  if first:
    for outcome in filter(lambda outcome: outcome.error, outcomes):
      print(f'veojax: {outcome.cell.name} failed: {outcome.error}', file=sys.stderr)
    print(pathlib.Path(known.output) / 'report.html')
  return 1 if all(outcome.error for outcome in outcomes) else 0


def _host(rows: int):
  """Sets the process up for rows that are computed together, before JAX starts."""
  from veojax import host
  host.keep_memory()
  host.one_device_a_core(rows)
  host.enable_compilation_cache()


def info(argv) -> int:
  """What a model is: sizes, shapes, codecs, defaults."""
  parser = _parser('info')
  parser.add_argument('--model', required=True, help='folder of a run, or of a converted model')
  known = parser.parse_args(argv)
  from rich import console, table
  from veojax.generation import model
  rows = table.Table(title=known.model, title_justify='left', show_header=False)
  for name, value in model.load(known.model).info().items():
    text = '\n'.join(f'{k}: {v}' for k, v in value.items()) if isinstance(value, dict) else str(value)
    rows.add_row(name, text)
  console.Console().print(rows)
  return 0


def convert(argv) -> int:
  """A published model, as it is downloaded, into a folder that generate, train and info take; or back.

  --source is its folder in diffusers' layout, or its makers' folder or one file; --output a new folder. A part that
  lies elsewhere is named: --text_encoder FOLDER ...
  """
  parser = _parser('convert')
  parser.add_argument('--source', required=True,
                      help='folder of safetensors, config.json and model_index.json, or the makers\' file')
  parser.add_argument('--output', required=True, help='a new folder')
  parser.add_argument('--variant', default='', help='fp16 or bf16, where the folder holds several precisions')
  parser.add_argument('--reverse', action='store_true', help='write a converted model back as it was published')
  known, rest = parser.parse_known_args(argv)
  from veojax.zoo import convert as conversion
  if known.reverse:
    conversion.reverse(known.source, known.output)
  else:
    conversion.convert(known.source, known.output, variant=known.variant, parts=arguments.parse(rest))
  return 0


def compile_ahead(argv) -> int:
  """What a step needs on a named topology of TPUs or GPUs, by their own compiler, without one.

  Any key of the config can be set: --config.mesh.fsdp=8 --config.dit.remat=full ... Ends with 1 where it does not fit.
  """
  parser = _parser('compile')
  parser.add_argument('--config', required=True, help='config file, such as configs/t2va_2b.py')
  parser.add_argument('--topology', required=True, help='kind of TPU and its torus, such as v5p:4x4x4, or "v5e:16x16*2" '
                      'of two slices; or h100:SLICESxHOSTSxGPUS')
  parser.add_argument('--stage', default='train', choices=('train', 'generate', 'encode', 'decode'),
                      help='encode and decode: of a transformer\'s config its clip over the chips of one host; of a '
                      'codec\'s or a published model\'s what one chip takes at once')
  parser.add_argument('--quick', action='store_true', help='the compiler\'s least effort, a quarter of its time and '
                      'memory: the figures without estimated cycles')
  parser.add_argument('--json', action='store_true', help='the figures as JSON, in bytes, FLOPs and seconds')
  known, rest = parser.parse_known_args(argv)
  import dataclasses
  import json
  from rich import console
  from veojax.compiling import chips, report, table
  chips.use_for_compiling(known.topology)
  found = report.compile_stage(_config(known.config, rest), known.topology, known.stage, quick=known.quick)
  if known.json:
    print(json.dumps(dataclasses.asdict(found)))
  else:
    console.Console().print(table.table(found))
  return 0 if found.fits else 1


def benchmark(argv) -> int:
  """What training, generation, attention or decoding takes on the devices that are here, against matrix products.

  Any key of the config can be set: --config.loop.batch_size=1 ... Ends with 1 where a part fails or errs too much.
  """
  parser = _parser('benchmark')
  parser.add_argument('--config', required=True, help='config file, such as configs/t2va_2b.py')
  parser.add_argument('--what', default='train', help='train, forward, generate, encode, decode or attention; '
                      'forward and attention of a transformer\'s config')
  parser.add_argument('--steps', type=int, default=5, help='that are timed')
  parser.add_argument('--peer', help='diffusers: the same block shapes through it, in the same run')
  parser.add_argument('--workdir', help='of a run of this config, whose data then feeds the training step')
  parser.add_argument('--profile', type=int, default=0, help='how many of the dearest instructions to name')
  parser.add_argument('--no_products', '--no-products', action='store_true', help='leave the matrix products out')
  parser.add_argument('--json', action='store_true', help='the figures as JSON, in bytes, FLOPs and seconds')
  parser.add_argument('--output', help='file of JSON lines to add all that is measured to')
  parser.add_argument('--name', help='of the line, in place of one that is there; what is timed by default')
  known, rest = parser.parse_known_args(argv)
  from veojax import host
  from veojax.benchmarking import report, table
  config = _config(known.config, rest)
  report.check(config, known.what, known.peer)
  host.keep_memory()
  host.enable_compilation_cache()
  if hasattr(config, 'dit') and known.what in ('train', 'forward') and config.mesh == type(config).mesh:
    host.one_device_a_core(config.loop.batch_size)
  parts = report.parts(config, known.what, steps=known.steps, peer=known.peer, workdir=known.workdir,
                       profiled=known.profile, with_products=not known.no_products)
  table.show(found := table.kept(parts, known.output, known.name or known.what), known.json)
  return 0 if found.fine else 1


COMMANDS = {'prepare': prepare, 'train': train, 'generate': generate, 'evaluate': evaluate, 'sweep': sweep,
            'convert': convert, 'compile': compile_ahead, 'benchmark': benchmark, 'info': info}

if __name__ == '__main__':
  sys.exit(main())
