"""Mochi's transformer forward and its decoder, against diffusers in PyTorch, compiled where that compiles, in one
process: `python -m tests.zoo.benchmark_mochi [--repeats=5] [--compiled=True]`.

float32, the same random weights, runs taken in turns, the best of `repeats` each. The transformer has 4 of 48 layers
and a sixth of the width, the decoder half of the width; both take seconds on a CPU.
"""
import os
import pathlib
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich import console, table

from veojax import arguments, host
from veojax.zoo.mochi import MOCHI
from tests.zoo import small_folders as small

TRANSFORMER = {**small.TRANSFORMER, 'num_attention_heads': 4, 'attention_head_dim': 128, 'num_layers': 4,
               'pooled_projection_dim': 256, 'text_embed_dim': 512, 'time_embed_dim': 256, 'max_sequence_length': 256}
VAE = {**small.VAE, 'encoder_block_out_channels': [32, 32, 32, 32], 'decoder_block_out_channels': [64, 128, 256, 384],
       'layers_per_block': [3, 3, 4, 6, 3]}
TOKENS, LATENT = (4, 30, 52), (3, 10, 12)  # frames, rows, columns of the latents


def transformer(torch, diffusers, folder):
  """(ours, theirs): functions without arguments that run once and wait."""
  module = small.write_part(folder, MOCHI.parts['transformer'], TRANSFORMER, 'diffusion_pytorch_model', 0)
  theirs = diffusers.MochiTransformer3DModel.from_pretrained(folder).eval()
  rng = np.random.default_rng(0)
  x, text = (rng.normal(size=shape).astype(np.float32) for shape in ((1, *TOKENS, 12), (1, 256, 512)))
  t, mask = np.full(1, 0.5, np.float32), np.arange(256)[None] < 100
  step, arguments = jax.jit(lambda module, *a: module(*a)), [jnp.asarray(a) for a in (x, t, text, mask)]
  module = jax.tree.map(jnp.asarray, module)
  inputs = [torch.tensor(a) for a in (x.transpose(0, 4, 1, 2, 3), text, 1000 * (1 - t), mask)]
  return lambda: jax.block_until_ready(step(module, *arguments)), lambda f=theirs: f(*inputs), theirs


def decoder(torch, diffusers, folder):
  module = small.write_part(folder, MOCHI.parts['vae'], VAE, 'diffusion_pytorch_model', 0)
  theirs = diffusers.AutoencoderKLMochi.from_pretrained(folder).eval().decoder
  z = np.random.default_rng(0).normal(size=(1, *LATENT, 12)).astype(np.float32)
  step, module = jax.jit(lambda module, z: module.decode_chunk(z)[0]), jax.tree.map(jnp.asarray, module)
  ours, latent = jnp.asarray(z), torch.tensor(z.transpose(0, 4, 1, 2, 3))
  return lambda: jax.block_until_ready(step(module, ours)), lambda f=theirs: f(latent), theirs


def best(functions: dict, repeats: int) -> dict[str, float]:
  """Seconds of each, taken in turns."""
  for function in functions.values():
    function()
  times = {name: [] for name in functions}
  for _ in range(repeats):
    for name, function in functions.items():
      start = time.perf_counter()
      function()
      times[name].append(time.perf_counter() - start)
  return {name: min(values) for name, values in times.items()}


def main(*options: str):
  compare({'transformer forward': transformer, 'decode': decoder}, options)


def compare(makers: dict, options):
  """A table of seconds; makers(torch, diffusers, folder) give (ours, theirs, PyTorch's module)."""
  os.environ['HF_HUB_OFFLINE'] = '1'
  import diffusers
  import torch
  given = {'repeats': 5, 'compiled': True} | arguments.parse(list(options))
  host.keep_memory()
  diffusers.utils.logging.disable_progress_bar()
  out = table.Table(title=f'float32 on {jax.default_backend()}, PyTorch {torch.__version__} on '
                          f'{torch.get_num_threads()} threads')
  for column in ('', 'veojax s', 'PyTorch s', 'compiled s', 'faster than the best of PyTorch by'):
    out.add_column(column)
  with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    for name, make in makers.items():
      ours, eager, module = make(torch, diffusers, pathlib.Path(folder) / name.split()[0])
      functions = {'ours': ours, 'eager': eager}
      if given['compiled']:
        try:
          compiled = torch.compile(module)
          eager(compiled)
          functions['compiled'] = lambda f=compiled, run=eager: run(f)
        except Exception as error:  # dynamo and inductor raise their own kinds, and whatever the C++ compiler says
          print(f'{name} does not compile in PyTorch: {str(error).splitlines()[0]}')
      seconds = best(functions, given['repeats'])
      theirs = min(value for kind, value in seconds.items() if kind != 'ours')
      out.add_row(name, *(f'{seconds[kind]:.2f}' if kind in seconds else '-' for kind in ('ours', 'eager', 'compiled')),
                  f'{theirs / seconds["ours"]:.2f}')
  console.Console().print(out)


if __name__ == '__main__':
  main(*sys.argv[1:])
