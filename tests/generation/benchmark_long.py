"""The memory of long clips: of 5, 15 and 60 seconds, made and written piece by piece, in windows and as a stream.

    python tests/generation/benchmark_long.py [SECONDS ...]

A small random model makes frames of 256x256 at 24 a second, with sound, and each clip in a process of its own, whose
peak resident memory is told with the time it took. A minute of such frames is 270 MiB, which nobody holds.
"""
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

SIDE, FPS, WINDOW, OVERLAP = 256, 24.0, 33, 9
WAYS = ('windows', 'stream')


def model(folder: pathlib.Path):
  """Random weights; cells of 64x64 pixels and 4 frames, so that what costs memory is frames and not attention."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from flax import nnx
  from veojax.data.tokenizer import Tokenizer
  from veojax.generation.model import ClipConfig, Model, ModelConfig
  from veojax.generation.sampling import SamplingConfig
  from veojax.models import audio_codec, audio_vae, dit, video_codec, video_vae
  from veojax.models.text import TextConfig
  rng = np.random.default_rng(0)
  drawn = lambda make: jax.tree.map(lambda p: jnp.asarray(rng.normal(0, .1, p.shape), p.dtype), jax.eval_shape(make))
  video = video_vae.VideoVAEConfig(temporal_compression=4, spatial_compression=64, patch_time=4, patch_size=64,
                                   latent_channels=4, widths=(8,), encoder_depths=(1,), decoder_depths=(1,))
  audio = audio_vae.AudioVAEConfig(sample_rate=16000, channels=2, hop=640, latent_channels=3, strides=(), widths=(8,),
                                   depth=1)
  net = dit.DiTConfig(video_channels=4, audio_channels=3, width=32, depth=2, num_heads=2, mlp_width=64,
                      text=TextConfig(vocab_size=300, width=8, depth=1, num_heads=1, mlp_width=8), dtype='float32')
  words = Tokenizer.train(['a red ball falls', 'a blue box slides'] * 9, folder / 'text.model', 300)
  return Model(
      ModelConfig(net, sampling=SamplingConfig(num_inference_steps=8), clip=ClipConfig(WINDOW, SIDE, SIDE, FPS)),
      drawn(lambda: dit.DiT(net, rngs=nnx.Rngs(0))),
      video_codec.VideoCodec(drawn(lambda: video_vae.VideoVAE(video, rngs=nnx.Rngs(0))), np.zeros(4, 'f'),
                             np.ones(4, 'f'), tile=SIDE, overlap=0),
      audio_codec.AudioCodec(drawn(lambda: audio_vae.AudioVAE(audio, rngs=nnx.Rngs(0))), np.zeros(3, 'f'),
                             np.ones(3, 'f')), words, 'random')


def one(way: str, seconds: str, folder: str):
  """What a process of its own runs; prints its peak memory in MiB."""
  from veojax.generation import long
  path = pathlib.Path(folder) / f'{way}_{seconds}.mp4'
  long.save(path, model(pathlib.Path(folder)), ['a red ball falls'], num_frames=round(float(seconds) * FPS),
            window=WINDOW, overlap=OVERLAP, stream=way == 'stream')
  print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main(*seconds: str):
  from rich import console, table
  from veojax.data import media
  out = table.Table(title=f'{SIDE}x{SIDE} at {FPS:.0f} frames a second, windows of {WINDOW}')
  for column in ('way', 'seconds of clip', 'peak MiB', 'seconds it took', 'frames in the file'):
    out.add_column(column)
  with tempfile.TemporaryDirectory() as folder:
    for way in WAYS:
      for length in seconds or ('5', '15', '60'):
        started = time.monotonic()
        peak = subprocess.run([sys.executable, __file__, way, length, folder], check=True, capture_output=True,
                              text=True).stdout
        clip = media.probe(pathlib.Path(folder) / f'{way}_{length}.mp4')
        out.add_row(way, length, f'{float(peak):.0f}', f'{time.monotonic() - started:.0f}', f'{clip.num_frames}')
  console.Console().print(out)


if __name__ == '__main__':
  one(*sys.argv[1:]) if sys.argv[1:2] and sys.argv[1] in WAYS else main(*sys.argv[1:])
