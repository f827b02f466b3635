"""Two processes of one run on this machine, which may be killed, stopped and told to stop: for test_pod.py, and alone

  python tests/training/pod.py 20 FOLDER

kills one of them 20 times at random moments, compares what comes out with an uninterrupted run bit for bit, and tells
how long the run took to go on after each.
"""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import safetensors.numpy

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = pathlib.Path(__file__).with_name('pod_worker.py')
LOOP = {'batch_size': 8, 'log_every': 1, 'evaluate_every': 0, 'sample_every': 0, 'save_every': 2, 'num_threads': 2,
        'hang_seconds': 60.0}
# Steps that two numbers of processes must agree on: Adam with a large epsilon does not blow up rounding.
OPTIMIZER = {'schedule': 'constant', 'warmup_steps': 2, 'eps': 0.1}
AUDIO = {'stage': 'audio_vae', 'num_latents': 4, 'loss': {'fft_sizes': (64,)}, 'evaluation_clips': 1,
         'optimizer': OPTIMIZER, 'loop': {**LOOP, 'num_steps': 2},
         'model': {'sample_rate': 8000, 'hop': 320, 'latent_channels': 6, 'strides': (), 'widths': (16,), 'depth': 1}}
DIT = {'stage': 'transformer', 'video_codec': '', 'optimizer': OPTIMIZER,
       'dit': {'video_channels': 4, 'audio_channels': 6, 'width': 32, 'depth': 1, 'num_heads': 2, 'mlp_width': 32,
               'dtype': 'float32',
               'text': {'vocab_size': 300, 'width': 16, 'depth': 1, 'num_heads': 2, 'mlp_width': 16}},
       'pack': {'row_tokens': 64, 'text_tokens': 24, 'max_clips': 1, 'max_text': 24, 'channels': 6},
       'loop': {**LOOP, 'num_steps': 16}}


def prepare(folder: pathlib.Path):
  """Sounds of the world with captions."""
  from veojax.data import prepare
  from veojax.data.world import WorldConfig
  world = WorldConfig(num_frames=9, height=16, width=16, sample_rate=8000)
  config = prepare.PrepareConfig(num_clips=12, world=world, vocab_size=300, validation_fraction=0.2, only='sound')
  prepare.prepare('world', folder / 'data', config=config, workers=1, progress=False)
  write_config(folder / 'audio.py', AUDIO)


def tree(folder: pathlib.Path, **loop) -> dict:
  """A transformer's config; its audio codec is trained inside the run."""
  return {**DIT, 'data': str(folder / 'data'), 'audio_codec': str(folder / 'audio.py'), 'loop': {**DIT['loop'], **loop}}


def write_config(path: pathlib.Path, config: dict):
  path.write_text(f'import ml_collections\n\n\ndef get_config():\n  return ml_collections.ConfigDict({config!r})\n')


class Pod:
  """Processes that train in `workdir`, started by launch/local_pod.sh and started again by it; environment as of
  pod_worker.py."""

  def __init__(self, folder: pathlib.Path, name: str, config: dict, number: int = 2, pause: float = 0.0, **environment):
    self.workdir, self.logs, self.number = folder / name, folder / f'{name}-logs', number
    self.logs.mkdir()
    write_config(folder / f'{name}.py', config)
    variables = {'PYTHONPATH': str(ROOT), 'PYTHON': sys.executable, 'LOGS': str(self.logs), 'GRACE': '20',
                 'JAX_ENABLE_COMPILATION_CACHE': 'true', 'XDG_CACHE_HOME': str(folder / 'cache'), 'PAUSE': str(pause)}
    self.launcher = subprocess.Popen(
        ['bash', str(ROOT / 'launch' / 'local_pod.sh'), str(number), sys.executable, str(WORKER), 'train', '--config',
         str(folder / f'{name}.py'), '--workdir', str(self.workdir)],
        env={**os.environ, **variables, **environment}, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self.launcher.poll() is None:
      self.launcher.kill()
      self.launcher.wait()
      for pid in self.pids():
        signal_if_there(pid, signal.SIGKILL)
    self.launcher.stderr.close()

  def pids(self) -> list[int]:
    """Of the processes that were started last, in order."""
    found = []
    for i in range(self.number):
      path = self.logs / f'{i}.pid'
      text = path.read_text().strip() if path.exists() else ''
      found += [int(text)] if text else []
    return found

  def running(self) -> bool:
    return self.launcher.poll() is None

  def wait_until(self, met, seconds: float = 900.0):
    """Until met(); fails where the run ends before."""
    end = time.monotonic() + seconds
    while not met():
      assert self.running() and time.monotonic() < end, f'waited for {met} in vain; {self.said()[-3000:]}'
      time.sleep(0.05)

  def step(self) -> int:
    """The last step that the journal has."""
    lines = journal(self.workdir)
    return max(lines) if lines else 0

  def started_after(self, old: list[int]) -> bool:
    new = self.pids()
    return len(new) == self.number and not set(new) & set(old)

  def said(self) -> str:
    return '\n'.join(path.read_text() for path in sorted(self.logs.glob('*.log')))

  def finish(self, seconds: float = 900.0) -> int:
    return self.launcher.wait(seconds)


def signal_if_there(pid: int, signum: int) -> bool:
  try:
    os.kill(pid, signum)
    return True
  except ProcessLookupError:
    return False


def journal(workdir: pathlib.Path) -> dict[int, dict]:
  """{step: metrics} of the lines of training."""
  path = workdir / 'metrics.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  records = [json.loads(line) for line in lines if line.endswith('}')]
  steps = [record['step'] for record in records if 'loss' in record]
  assert len(steps) == len(set(steps)), f'a step stands twice in {path}'
  return {record['step']: record for record in records if 'loss' in record}


def result(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """All that a run leaves: the averaged weights, and what its last checkpoint holds of the rest."""
  import jax
  from orbax.checkpoint.experimental import v1 as ocp

  from veojax.models.run_checkpoint import SUMS
  on_one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  whole = lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype, sharding=on_one)
  with ocp.training.Checkpointer(str(workdir / 'checkpoints')) as saved:
    step = saved.latest.step
    stored = saved.checkpointables_metadata(step).metadata
    wanted = {part: jax.tree.map(whole, dict(stored[part])) for part in ('model', 'ema', 'opt')}
    parts = saved.load_checkpointables(step, {**wanted, 'progress': None})
  arrays = {f'{part}.{name}': np.asarray(x) for part in ('model', 'ema', 'opt') for name, x in parts[part].items()}
  counts = {f'progress.{name}': np.asarray(x) for name, x in parts['progress'].items() if name != SUMS}
  return {**arrays, **counts, **safetensors.numpy.load_file(workdir / 'weights.safetensors')}


def kill_many(folder: pathlib.Path, times: int, seed: int = 0):
  rng, num_steps = random.Random(seed), 4 * times
  config = {**DIT, 'data': '', 'audio_codec': '', 'loop': {**LOOP, 'num_steps': num_steps}}
  with Pod(folder, 'whole', config, TOY='1') as whole:
    assert whole.finish(3600) == 0, whole.said()
  kills, recovered = 0, []
  with Pod(folder, 'killed', config, pause=0.5, TOY='1') as pod:
    old = []
    while kills < times:
      pod.wait_until(lambda: pod.started_after(old), 900)
      old, before, begun = pod.pids(), pod.step(), time.monotonic()
      if kills % 2:  # every other kill while they start, the rest while they train
        time.sleep(rng.uniform(0, 1.2 * (recovered[-1] if recovered else 20)))
      else:
        pod.wait_until(lambda: pod.step() > before, 900)
        recovered.append(time.monotonic() - begun)
        time.sleep(rng.uniform(0, 2))
      victim = rng.randrange(2)
      kills += signal_if_there(old[victim], signal.SIGKILL)
      print(f'kill {kills}: process {victim}, at step {pod.step()}', flush=True)
    assert pod.finish(3600) == 0, pod.said()
  a, b = result(whole.workdir), result(pod.workdir)
  assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
  print(f'{kills} kills of one of two processes in a run of {num_steps} steps: {len(a)} arrays equal those of the '
        f'uninterrupted run bit for bit; a start took {np.median(recovered):.1f} s to its first new step in the '
        f'median, {max(recovered):.1f} s at most')


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  folder = pathlib.Path(sys.argv[2]).resolve()
  folder.mkdir(parents=True)
  kill_many(folder, int(sys.argv[1]))
