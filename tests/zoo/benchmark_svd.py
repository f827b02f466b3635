"""Stable Video Diffusion's U-Net forward and its decoder, against diffusers in PyTorch, compiled where that compiles, in
one process: `python -m tests.zoo.benchmark_svd [--repeats=5] [--compiled=True]`.

float32, the same random weights, runs taken in turns, the best of `repeats` each. Both networks have the published
stages, the U-Net at 2/5 of its width for 4 frames of 192 × 256, the decoder at half of its width for 4 frames of
128 × 128; both take seconds on a CPU.
"""
import sys

import jax
import jax.numpy as jnp
import numpy as np

from tests.zoo import small_folders as small
from tests.zoo.benchmark_mochi import compare
from veojax.zoo.svd import SVD
from veojax.zoo.svd_vae import SVDVAE

UNET = {**small.SVD_UNET, 'down_block_types': [*['CrossAttnDownBlockSpatioTemporal'] * 3, 'DownBlockSpatioTemporal'],
        'up_block_types': ['UpBlockSpatioTemporal', *['CrossAttnUpBlockSpatioTemporal'] * 3],
        'block_out_channels': [128, 256, 512, 512], 'num_attention_heads': [2, 4, 8, 8], 'cross_attention_dim': 1024,
        'addition_time_embed_dim': 256, 'projection_class_embeddings_input_dim': 768, 'layers_per_block': 2}
VAE = {**small.SVD_VAE, 'down_block_types': ['DownEncoderBlock2D'] * 4, 'block_out_channels': [64, 128, 256, 256]}
VIDEO, LATENT = (4, 24, 32), (4, 16, 16)  # frames, rows, columns


def part(folder, name: str, tree: dict):
  module = small.write_part(folder, SVD.parts[name], tree, 'diffusion_pytorch_model', 0)
  return jax.tree.map(jnp.asarray, module)


def drawn(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def network(torch, diffusers, folder):
  """(ours, theirs): functions without arguments that run once and wait; and PyTorch's module."""
  module = part(folder, 'unet', UNET)
  theirs = diffusers.UNetSpatioTemporalConditionModel.from_pretrained(folder).eval()
  x, level, vector = drawn(1, *VIDEO, 8), np.full(1, 0.5, np.float32), drawn(1, 1, 1024)
  conditions = np.array([[6, 127, 0.02]], np.float32)
  step, arguments = jax.jit(lambda module, *a: module(*a)), [jnp.asarray(a) for a in (x, level, vector, conditions)]
  inputs = [torch.tensor(a) for a in (x.transpose(0, 1, 4, 2, 3), level, vector, conditions)]
  return lambda: jax.block_until_ready(step(module, *arguments)), lambda f=theirs: f(*inputs), theirs


def decoder(torch, diffusers, folder):
  module = part(folder, 'vae', VAE)
  theirs = diffusers.AutoencoderKLTemporalDecoder.from_pretrained(folder).eval().decoder
  z = drawn(1, *LATENT, 4)
  step, ours = jax.jit(SVDVAE.decode), jnp.asarray(z)
  latent, zeros = torch.tensor(z[0].transpose(0, 3, 1, 2)), torch.zeros(1, LATENT[0])
  return (lambda: jax.block_until_ready(step(module, ours)),
          lambda f=theirs: f(latent, image_only_indicator=zeros, num_frames=LATENT[0]), theirs)


if __name__ == '__main__':
  compare({'network forward': network, 'decode': decoder}, list(sys.argv[1:]))
