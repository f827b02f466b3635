"""T5's encoder and both towers of CLIP forward, against transformers in PyTorch, compiled where that compiles, in one
process: `python -m tests.zoo.benchmark_encoders [--repeats=5] [--compiled=True]`.

float32, the same random weights, runs taken in turns, the best of `repeats` each. T5 has a quarter of the width of
XXL's and 4 of its 24 layers, for 2 texts of 256 tokens; the text tower is that of Stable Diffusion 1.5, for 4 texts; the
image tower 3 of the 32 layers of Stable Video Diffusion's, for 4 pictures.
"""
import sys

import jax
import jax.numpy as jnp
import numpy as np

from tests.zoo import small_folders as small
from tests.zoo.benchmark_animatediff import drawn, step
from tests.zoo.benchmark_mochi import compare
from veojax.zoo.animatediff import ANIMATEDIFF
from veojax.zoo.mochi import MOCHI
from veojax.zoo.svd import SVD

T5 = {**small.T5, 'vocab_size': 2000, 'd_model': 1024, 'd_kv': 64, 'd_ff': 2560, 'num_layers': 4, 'num_heads': 16}
TEXT = {**small.CLIP, 'hidden_size': 768, 'intermediate_size': 3072, 'num_hidden_layers': 12, 'num_attention_heads': 12}
IMAGES = {**small.CLIP_VISION, 'hidden_size': 1280, 'intermediate_size': 5120, 'num_hidden_layers': 3,
          'num_attention_heads': 16, 'patch_size': 14, 'projection_dim': 1024}


def pair(published, name: str, tree: dict, class_name: str, folder):
  """(ours, PyTorch's module) of one part."""
  import transformers
  module = small.write_part(folder, published.parts[name], tree, 'model', 0)
  return jax.tree.map(jnp.asarray, module), getattr(transformers, class_name).from_pretrained(folder).eval()


def ids(rows: int, length: int, size: int) -> np.ndarray:
  return np.random.default_rng(0).integers(3, size, (rows, length), np.int32)


def t5(torch, diffusers, folder):
  ours, theirs = pair(MOCHI, 'text_encoder', T5, 'T5EncoderModel', folder)
  tokens, mask = ids(2, 256, 2000), np.ones((2, 256), bool)
  inputs = torch.tensor(tokens).long(), torch.tensor(mask)
  call = jax.jit(lambda module, tokens, mask: module(tokens, mask, 'float32'))
  return (lambda: jax.block_until_ready(call(ours, tokens, mask)),
          lambda f=theirs: f(input_ids=inputs[0], attention_mask=inputs[1]), theirs)


def text(torch, diffusers, folder):
  ours, theirs = pair(ANIMATEDIFF, 'text_encoder', TEXT, 'CLIPTextModel', folder)
  tokens = ids(4, 77, 500)
  inputs = torch.tensor(tokens).long()
  return step(ours, tokens), lambda f=theirs: f(input_ids=inputs), theirs


def images(torch, diffusers, folder):
  ours, theirs = pair(SVD, 'image_encoder', IMAGES, 'CLIPVisionModelWithProjection', folder)
  pictures = drawn(4, 224, 224, 3)
  inputs = torch.tensor(pictures).permute(0, 3, 1, 2)
  return step(ours, pictures), lambda f=theirs: f(pixel_values=inputs), theirs


if __name__ == '__main__':
  compare({'T5': t5, 'text tower of CLIP': text, 'image tower of CLIP': images}, list(sys.argv[1:]))
