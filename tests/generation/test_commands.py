"""Long clips, loops and joins from the command line, on a small random model."""
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from veojax import cli
from veojax.data import media
from veojax.generation.export import Sample
from veojax.models.audio_codec import AudioCodec
from veojax.models.audio_vae import AudioVAE, AudioVAEConfig


@pytest.fixture(scope='module')
def folder(model_folder, tmp_path_factory):
  """The random model with sound of a rate that mp4 has: pieces of sound are not resampled."""
  path = tmp_path_factory.mktemp('run') / 'model'
  shutil.copytree(model_folder, path)
  config = AudioVAEConfig(sample_rate=8000, channels=2, hop=320, latent_channels=3, strides=(), widths=(8,), depth=1)
  rng = np.random.default_rng(0)
  vae = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, .2, p.shape), p.dtype),
                     jax.eval_shape(lambda: AudioVAE(config, rngs=nnx.Rngs(0))))
  AudioCodec(vae, np.zeros(3, 'f'), np.ones(3, 'f'), chunk=32).save(path / 'audio_vae.safetensors')
  return path


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
  path = tmp_path_factory.mktemp('clip') / 'clip.mp4'
  rng = np.random.default_rng(0)
  Sample(video=rng.integers(0, 256, (9, 32, 32, 3), np.uint8), fps=8.0, audio=np.zeros((9000, 2), np.float32),
         sample_rate=8000).save(path)
  return path


pytestmark = pytest.mark.smoke

LONG = ['--num_frames=22', '--window=9', '--overlap=4']
CASES = {  # options, frames, what the title says
    'windows': ([*LONG, '--prompt', 'a ball'], 22, 'a ball'),
    'windows, from a clip, in a chain': (
        [*LONG, '--num_frames=26', '--window=13', '--video', 'CLIP', '--chain', '--prompt', 'a ball', '--prompt',
         'a box'], 26, 'a ball / a box'),
    'stream': ([*LONG, '--stream', '--prompt', 'a ball', '--prompt', 'a box', '--chain'], 22, 'a ball / a box'),
    'loop': (['--task=loop', '--video', 'CLIP', '--num_frames=13', '--prompt', 'a ball'], 13, 'a ball'),
    'join': (['--task=join', '--video', 'CLIP', '--end_video', 'CLIP', '--num_frames=21', '--prompt', 'a ball'], 21,
             'a ball'),
}


@pytest.mark.parametrize('case', CASES)
def test_clips_are_written(folder, clip, tmp_path, case):
  options, frames, title = CASES[case]
  out = tmp_path / 'out.mp4'
  options = [str(clip) if word == 'CLIP' else word for word in options]
  assert cli.main(['generate', '--model', str(folder), '--output', str(out), *options]) == 0
  made = media.read(out)
  assert made.video.shape == (frames, 32, 32, 3) and media.probe(out).tags['title'] == title
  assert abs(len(made.audio) / made.sample_rate - frames / 8) < 0.1


@pytest.mark.parametrize('options, words', [
    (['--stream', '--prompt', 'a'], 'without num_frames'),
    ([*LONG, '--prompt', 'a', '--prompt', 'b'], '--chain'),
    (['--prompt', 'a', '--expand', 'nowhere:nothing'], 'nowhere'),
    (['--prompt', 'a', '--expand', ''], "expand=''"),
    (['--prompt', 'a', '--num_frames=20', '--window=0'], 'a window of 0'),
    (['--prompt', 'a', '--overlap=4'], '--overlap=4'),
])
def test_what_does_not_go_together_is_one_line(folder, tmp_path, capsys, options, words):
  out = tmp_path / 'out.mp4'
  assert cli.main(['generate', '--model', str(folder), '--output', str(out), *options]) == 2
  message = capsys.readouterr().err
  assert words in message and message.count('\n') == 1 and not out.exists()


@pytest.mark.parametrize('task, name, words', [('sound', 'out.png', 'no picture'), ('image', 'out.wav', 'no sound')])
def test_a_file_that_cannot_hold_the_task_is_refused_before_a_model_is_read(tmp_path, capsys, task, name, words):
  output = str(tmp_path / name)
  assert cli.main(['generate', '--model', 'nowhere', '--prompt', 'a', '--task', task, '--output', output]) == 2
  assert words in capsys.readouterr().err
