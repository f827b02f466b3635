"""AnimateDiff's network forward, its control network and its decoder, against diffusers in PyTorch, compiled where that
compiles, in one process: `python -m tests.zoo.benchmark_animatediff [--repeats=5] [--compiled=True]`.

float32, the same random weights, runs taken in turns, the best of `repeats` each. The networks have the published
stages at 2/5 of their width, for 16 frames of 128 × 128; the decoder half of its width, for 4 frames of 128 × 128. All
take seconds on a CPU.
"""
import sys

import jax
import jax.numpy as jnp
import numpy as np

from tests.zoo import small_folders as small
from tests.zoo.benchmark_mochi import compare
from veojax.zoo.animatediff import SPARSECTRL
from veojax.zoo.animatediff_unet import MotionUNet

WIDTHS = [128, 256, 512, 512]
IMAGE = {**small.IMAGE_UNET, 'down_block_types': [*['CrossAttnDownBlock2D'] * 3, 'DownBlock2D'],
         'up_block_types': ['UpBlock2D', *['CrossAttnUpBlock2D'] * 3], 'block_out_channels': WIDTHS,
         'layers_per_block': 2, 'norm_num_groups': 32, 'cross_attention_dim': 768, 'attention_head_dim': 8}
MOTION = {**small.MOTION, 'block_out_channels': WIDTHS, 'motion_layers_per_block': 2, 'motion_norm_num_groups': 32,
          'motion_num_attention_heads': 8, 'motion_max_seq_length': 32}
CONTROL = {**small.CONTROL, 'down_block_types': [*['CrossAttnDownBlockMotion'] * 3, 'DownBlockMotion'],
           'block_out_channels': WIDTHS, 'layers_per_block': 2, 'norm_num_groups': 32, 'cross_attention_dim': 768,
           'attention_head_dim': 8, 'motion_num_attention_heads': 8, 'motion_max_seq_length': 32}
VAE = {**small.KL_VAE, 'down_block_types': ['DownEncoderBlock2D'] * 4, 'up_block_types': ['UpDecoderBlock2D'] * 4,
       'block_out_channels': [64, 128, 256, 256], 'layers_per_block': 2}
LATENT = (16, 16, 16)  # frames, rows, columns


def part(folder, name: str, tree: dict):
  module = small.write_part(folder / name, SPARSECTRL.parts[name], tree, 'diffusion_pytorch_model', 0)
  return jax.tree.map(jnp.asarray, module), folder / name


def drawn(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def step(ours, *arguments):
  """A function without arguments that runs once and waits."""
  call, arguments = jax.jit(lambda module, *a: module(*a)), [jnp.asarray(a) for a in arguments]
  return lambda: jax.block_until_ready(call(ours, *arguments))


def network(torch, diffusers, folder):
  (image, image_folder), (motion, motion_folder) = part(folder, 'unet', IMAGE), part(folder, 'motion_adapter', MOTION)
  theirs = diffusers.UNetMotionModel.from_unet2d(diffusers.UNet2DConditionModel.from_pretrained(image_folder),
                                                 diffusers.MotionAdapter.from_pretrained(motion_folder)).eval()
  x, text, t = drawn(1, *LATENT, 4), drawn(1, 77, 768), np.full(1, 500, np.float32)
  inputs = torch.tensor(x).permute(0, 4, 1, 2, 3), torch.tensor(t), torch.tensor(text).repeat_interleave(LATENT[0], 0)
  return step(MotionUNet(image, motion), x, t, text), lambda f=theirs: f(*inputs), theirs


def control(torch, diffusers, folder):
  ours, path = part(folder, 'controlnet', CONTROL)
  theirs = diffusers.SparseControlNetModel.from_pretrained(path).eval()
  condition, text, t = drawn(1, *LATENT, 5), drawn(1, 77, 768), np.full(1, 500, np.float32)
  first = torch.tensor(condition).permute(0, 4, 1, 2, 3)
  inputs = first[:, :4], torch.tensor(t), torch.tensor(text).repeat_interleave(LATENT[0], 0), first[:, :4]
  return step(ours, condition, t, text), lambda f=theirs: f(*inputs, conditioning_mask=first[:, 4:]), theirs


def decoder(torch, diffusers, folder):
  ours, path = part(folder, 'vae', VAE)
  theirs = diffusers.AutoencoderKL.from_pretrained(path).eval().decoder
  z = drawn(1, 4, *LATENT[1:], 4)
  call, latent, inputs = jax.jit(lambda vae, z: vae.decoder(z)), jnp.asarray(z), torch.tensor(z[0]).permute(0, 3, 1, 2)
  return lambda: jax.block_until_ready(call(ours, latent)), lambda f=theirs: f(inputs), theirs


if __name__ == '__main__':
  compare({'network forward': network, 'control network': control, 'decode': decoder}, list(sys.argv[1:]))
