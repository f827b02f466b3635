"""`veojax train`: a config, a work directory, and whatever of it is not done yet."""
import contextlib
import dataclasses
import importlib.util
import json
import math
import pathlib

from rich import console

from veojax import config as door
from veojax import files, processes, sharding
from veojax.data import datasets, mixing
from veojax.data.tokenizer import Tokenizer
from veojax.generation import codecs
from veojax.generation import model as models
from veojax.models import codec_file, run_checkpoint, weights
from veojax.training import journal, loop, watch
from veojax.training.animatediff import AnimateDiffRun, AnimateDiffStage, AnimateDiffStep
from veojax.training.audio_vae import AudioVAERun, AudioVAEStage, AudioVAEStep
from veojax.training.make_a_video import MakeAVideoRun, MakeAVideoStage, MakeAVideoStep
from veojax.training.mochi import MochiRun, MochiStage, MochiStep
from veojax.training.svd import SVDRun, SVDStage, SVDStep
from veojax.training.transformer import TransformerRun, TransformerStage, TransformerStep
from veojax.training.video_vae import VideoVAERun, VideoVAEStage, VideoVAEStep

RUNS = {'video_vae': VideoVAERun, 'audio_vae': AudioVAERun, 'transformer': TransformerRun, 'mochi': MochiRun,
        'svd': SVDRun, 'animatediff': AnimateDiffRun, 'make_a_video': MakeAVideoRun}
STEPS = {'video_vae': VideoVAEStep, 'audio_vae': AudioVAEStep, 'transformer': TransformerStep, 'mochi': MochiStep,
         'svd': SVDStep, 'animatediff': AnimateDiffStep, 'make_a_video': MakeAVideoStep}
IN_FOLDER = {MochiRun: MochiStage, SVDRun: SVDStage, AnimateDiffRun: AnimateDiffStage,
             MakeAVideoRun: MakeAVideoStage}  # of a config and a work directory
# What may change between two starts of one run; anything else would make another model of it, or other data.
FREE = ('loop.num_steps', 'loop.log_every', 'loop.evaluate_every', 'loop.sample_every', 'loop.save_every', 'loop.keep',
        'loop.keep_every', 'loop.save_patience', 'loop.explosion', 'loop.max_skipped', 'loop.hang_seconds',
        'loop.num_threads', 'loop.num_workers', 'mesh.', 'prompts', 'sampling.', 'clip.', 'data', 'video_codec',
        'audio_codec', 'evaluation_clips', 'optimizer.', 'latents', 'perceptual.weights', 'perceptual.heads',
        'adversarial.learning_rate', 'dit.remat')


def read_config(path):
  """The tree of a config file's get_config(). Raises ValueError where there is no such file or function."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f'{path} does not exist; give a config file, such as configs/quickstart.py')
  spec = importlib.util.spec_from_file_location('veojax_config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise ValueError(f'{path} defines no get_config(); see configs/quickstart.py')
  return module.get_config()


def build(tree):
  """The run that a config's tree describes, by its `stage`."""
  stage = tree.get('stage') if hasattr(tree, 'get') else None
  if stage not in RUNS:
    raise ValueError(f'config.stage is {stage!r}; give one of {", ".join(RUNS)}')
  return door.build(RUNS[stage], tree)


def train(config, workdir) -> dict[str, float]:
  """Trains the run in `workdir`, or goes on with what it holds; the last metrics.

  config: a path of a config file, its tree, or a run's dataclass. Raises ValueError for what cannot be, before any
  work, and `stopping.Stopped` when a signal has ended it. Several processes call it alike, after `processes.join`.
  """
  if isinstance(config, (str, pathlib.Path)):
    config = read_config(config)
  if not dataclasses.is_dataclass(config):
    config = build(config)
  workdir = files.path(workdir)
  processes.on_first(lambda: remember(config, workdir))
  if loop.is_done(config.loop, workdir):
    if processes.is_first():
      console.Console().print(f'{workdir} is finished: {config.loop.num_steps} steps; raise loop.num_steps to go on',
                              highlight=False)
    return {name: float(value) for name, value in journal.read(workdir)[-1].items()}
  check(config, workdir)
  with watch.over(config.loop.hang_seconds):
    return loop.fit(stage_of(config, workdir), workdir)


def check(config, workdir):
  """Raises ValueError for what would else be found when codecs have been trained and latents encoded."""
  with sharding.use(config.mesh):
    loop.positions(config.loop.batch_size)
  if not isinstance(config, TransformerRun):
    return
  if not config.start:  # that model's own is read with its weights
    config.check_tokenizer(Tokenizer.load(datasets.open_dataset(mixing.parts(config.data)[0].path).tokenizer_path))
  for kind in codecs.KINDS:
    named, inner, folder = getattr(config, f'{kind}_codec'), inner_run(config, kind), workdir / f'{kind}_vae'
    if inner is None or loop.is_done(inner.loop, folder):
      continue
    if inner.stage != folder.name:
      raise ValueError(f'{kind}_codec={named} is a config of stage={inner.stage}; give one of stage={folder.name}')
    config.check_channels(kind, inner.model.latent_channels * (config.video_patch ** 2 if kind == 'video' else 1))
    with naming(named, kind):
      check(inner, folder)


def stage_of(config, workdir) -> loop.Stage:
  """The stage of a run, with the codecs trained and the latents encoded that it needs."""
  if isinstance(config, TransformerRun):
    both = [codec_of(config, workdir, kind) for kind in codecs.KINDS]
    with sharding.default_mesh():
      stage = TransformerStage(config, workdir, *both)
    with written(workdir):
      stage.describe(workdir)
  elif type(config) in IN_FOLDER:
    stage = IN_FOLDER[type(config)](config, workdir)
  else:
    stage = (VideoVAEStage if isinstance(config, VideoVAERun) else AudioVAEStage)(config)
  return stage


def remember(config, workdir):
  """Writes config.json; where a run has trained, compares, tells what changed, and refuses another model."""
  path, tree = workdir / 'config.json', door.to_tree(config)
  with written(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    if path.exists() and has_trained(workdir):
      # With the defaults of keys that are newer than the run.
      stored = door.to_tree(build(json.loads(path.read_text())))
      changed = door.differences(stored, tree)
      refused = [line for line in changed if not line.startswith(FREE)]
      if refused:
        raise ValueError(f'{workdir} holds a run with another config ({"; ".join(refused[:4])}); '
                         'give another --workdir, or the config it was begun with')
      for line in changed:
        console.Console().print(f'changed since the last start: {line}', highlight=False)
    files.write(path, json.dumps(tree, indent=2).encode())


def has_trained(workdir) -> bool:
  """Whether a work directory holds weights of a run, as checkpoints or as a model."""
  return bool(run_checkpoint.steps(workdir) or (workdir / 'done').exists()
              or any(weights.found(workdir / name) for name in (models.WEIGHTS, codec_file.NAME)))


@contextlib.contextmanager
def written(workdir):
  """What goes wrong in writing to a work directory, as one line with the remedy."""
  try:
    yield
  except OSError as error:
    if processes.passes(error):
      raise processes.Passing(f'{workdir} cannot be written now ({error.strerror or error}); start again when that has '
                              'passed') from None
    raise ValueError(f'{workdir} cannot be written ({error.strerror or error}); free some space, or give a --workdir you '
                     'can write to') from None


def codec_of(config: TransformerRun, workdir, kind: str):
  """The codec a transformer's config names; trained first, inside its workdir, where a config file is named."""
  named = getattr(config, f'{kind}_codec')
  if not named:
    return None
  if (inner := inner_run(config, kind)) is None:
    return codecs.load(files.path(named), kind)
  data = inner.data or mixing.parts(config.data)[0].path
  with naming(named, kind):
    train(dataclasses.replace(inner, data=data), workdir / f'{kind}_vae')
  return codecs.load(workdir / f'{kind}_vae', kind)


def inner_run(config: TransformerRun, kind: str):
  """The run of a codec that is trained inside the transformer's; None where it is not."""
  named = getattr(config, f'{kind}_codec')
  return build(read_config(named)) if named.endswith('.py') else None


@contextlib.contextmanager
def naming(config: str, kind: str):
  """What is wrong with a codec that is trained inside a run is told of its config."""
  try:
    yield
  except processes.Passing:
    raise
  except ValueError as error:
    raise ValueError(f'{config}, the {kind} codec that is trained first: {error}') from error


def common_batch(config: TransformerRun) -> int:
  """What divides the batches of a run and of the codecs that are trained inside it."""
  inner = [run for kind in codecs.KINDS if (run := inner_run(config, kind))]
  return math.gcd(*(run.loop.batch_size for run in (config, *inner)))
