"""The same block shapes through another project's transformer, in the same run and on the same device.

diffusers: its Wan transformer (self-attention, cross-attention to the text, MLP) under torch.compile, with as many
blocks, heads and tokens as ours, and an MLP so wide that its products with parameters are as many FLOPs as ours. It
trains as ours does: parameters in float32, blocks in the config's precision, AdamW; float32 products in TF32, as JAX's
are on GPUs. Attention is that of PyTorch's which is fastest here on the config's sizes, and is told.

MaxDiffusion is none: it is not on PyPI, and its repository wants Python 3.12, TensorFlow, and PyTorch by direct links.
"""
import importlib.util
import sys
import time
import timeit

import jax

from veojax import host
from veojax.benchmarking.timing import Candidate
from veojax.compiling import model_flops
from veojax.models.dit import DiTConfig
from veojax.training.transformer import TransformerRun

PEERS = ('diffusers',)
LONGEST = 1024  # places along one axis that Wan's rotary positions know
# What diffusers calls PyTorch's own ways: as PyTorch chooses, cuDNN's, and FlashAttention-2.
BACKENDS = ('native', '_native_cudnn', '_native_flash')


def check(name: str, what: str, config):
  """Raises ValueError where there is no such peer, or it does not do this."""
  if name == 'maxdiffusion':
    raise ValueError('--peer maxdiffusion: MaxDiffusion is not on PyPI, and what its repository installs (TensorFlow, '
                     'PyTorch by direct links, for Python 3.12) is no extra of ours; give --peer diffusers')
  if name not in PEERS:
    raise ValueError(f'no peer {name!r}; known: {", ".join(PEERS)}')
  if not isinstance(config, TransformerRun) or what not in ('train', 'forward'):
    raise ValueError(f'--peer {name} goes with --what train or forward of the config of a transformer, not with {what} '
                     f'of {config.stage!r}')


def mlp_width(dit: DiTConfig) -> int:
  """Two matrices of it and cross-attention's two over all tokens are as much as our three."""
  return (3 * dit.mlp_width - 2 * dit.width) // 2


def flops(dit: DiTConfig, tokens: int, text: int) -> float:
  """Forward, of one row, counted as `model_flops` counts ours."""
  D, F = dit.width, mlp_width(dit)
  matrix = 2 * tokens * (6 * D * D + 2 * D * F) + 2 * text * 2 * D * D
  return dit.depth * (matrix + 4 * D * tokens * (tokens + text))


def grid(tokens: int) -> tuple[int, int, int]:
  """Frames, height and width that make so many tokens. Raises ValueError where none do."""
  for width in range(min(tokens, LONGEST), 0, -1):
    if tokens % width == 0 and tokens // width <= LONGEST:
      return 1, tokens // width, width
    if tokens % (width * width) == 0 and tokens // width ** 2 <= LONGEST:
      return tokens // width ** 2, width, width
  raise ValueError(f'no frame has {tokens} tokens of sides up to {LONGEST}; give another pack.row_tokens')


def diffusers(config: TransformerRun, what: str) -> Candidate:
  """One forward call or training step of diffusers' Wan transformer on a batch of rows. Raises ValueError where it is
  not installed, or sees no GPU though JAX does."""
  if not all(map(importlib.util.find_spec, ('torch', 'diffusers'))):
    raise ValueError("--peer diffusers needs PyTorch and diffusers; pip install 'veojax[parity]' brings them")
  import torch
  dit, B, L, S = config.dit, config.loop.batch_size, config.pack.row_tokens, config.pack.max_text
  device = 'cuda' if jax.default_backend() == 'gpu' else 'cpu'
  if device == 'cpu':
    torch.set_num_threads(host.num_cores())
  elif not torch.cuda.is_available():
    raise ValueError(f'--peer diffusers: PyTorch {torch.__version__} sees no GPU; install its build for CUDA')
  else:
    torch.set_float32_matmul_precision('high')
  done = torch.cuda.synchronize if device == 'cuda' else (lambda: None)
  backend = fastest(torch, config, what, device, done)
  start = time.perf_counter()
  model, operands = _wan(torch, config, device)
  model.set_attention_backend(backend)
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
  call = torch.compile(model)
  half = torch.autocast(device, torch.bfloat16, enabled=dit.dtype == 'bfloat16')

  def forward():
    with half, torch.no_grad():
      call(*operands, return_dict=False)
    done()

  def train():
    optimizer.zero_grad(set_to_none=True)
    with half:
      out, = call(*operands, return_dict=False)
    out.float().square().mean().backward()
    optimizer.step()
    done()
  one = {'forward': forward, 'train': train}[what]
  one()  # compiles, and makes AdamW's moments
  seconds = time.perf_counter() - start
  if device == 'cuda':
    torch.cuda.reset_peak_memory_stats()
  units = {'rows a step': B, 'tokens a step': B * L} if what == 'train' else {'rows': B, 'tokens': B * L}
  times = model_flops.TRAINING if what == 'train' else 1
  return Candidate(f"diffusers' Wan, {what}, attention {backend}", one, times * B * flops(dit, L, S), units, seconds,
                   peak=lambda: float(torch.cuda.max_memory_allocated()) if device == 'cuda' else None)


def fastest(torch, config: TransformerRun, what: str, device: str, done, steps: int = 3) -> str:
  """Which of BACKENDS takes least time on the config's rows, [B, L, heads, head_dim], with the gradients where `what` is
  train: the best of `steps` calls. Those that do not run here are passed over."""
  from diffusers.models import attention_dispatch
  dit, B, L = config.dit, config.loop.batch_size, config.pack.row_tokens
  shape, dtype = (B, L, dit.num_heads, dit.width // dit.num_heads), getattr(torch, dit.dtype)
  q, k, v = (torch.randn(shape, dtype=dtype, device=device, requires_grad=what == 'train') for _ in 'qkv')
  seconds = {}
  for name in BACKENDS:
    def once():
      out = attention_dispatch.dispatch_attention_fn(q, k, v, backend=attention_dispatch.AttentionBackendName(name))
      if what == 'train':
        out.float().sum().backward()
      done()
    try:
      once()
      seconds[name] = min(timeit.repeat(once, number=1, repeat=steps))
    except (RuntimeError, ValueError) as error:
      print(f'diffusers: no attention {name} here: {error}', file=sys.stderr)
  return min(seconds, key=seconds.get)


def _wan(torch, config, device):
  """(model, (latents, time, text)) of a config's sizes."""
  from diffusers import WanTransformer3DModel
  dit, B, S = config.dit, config.loop.batch_size, config.pack.max_text
  t, h, w = grid(config.pack.row_tokens)
  with torch.device(device):
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=dit.num_heads, attention_head_dim=dit.width // dit.num_heads,
        in_channels=16, out_channels=16, text_dim=dit.text.width, ffn_dim=mlp_width(dit), num_layers=dit.depth,
        rope_max_seq_len=LONGEST)
    if dit.remat != 'none':
      model.enable_gradient_checkpointing()
    return model, (torch.randn(B, 16, t, 2 * h, 2 * w), torch.full((B,), 500), torch.randn(B, S, dit.text.width))
