"""The video VAE: causal in time, so frame 0 stands alone and an image is a clip of one frame.

A clip of 1 + k·tc frames (tc the temporal compression) has 1 + k latent frames: latent 0 is frame 0, latent i ≥ 1
covers frames tc(i-1)+1 … tc·i. So that every latent frame covers tc frames, frame 0 is repeated tc-1 times before
itself, and the decoder drops what it makes of the repeats; after that each chunk of a long clip is like any other.
Norms run over channels only and the convolutions of time carry their past, so a clip encoded or decoded in chunks
equals the whole, in memory that does not grow with its length.

RGB enters and leaves as patches of `patch_time` × `patch_size`² pixels (one matrix product), never by convolutions of
three channels. Between stages blocks of cells are folded into channels (down) or unfolded (up).

The posterior is N(mean, exp(logvar)) (Kingma & Welling 2014). Pixels lie in [-1, 1]; the decoder's output is
not clipped.
"""
import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from veojax.models import layers
from veojax.models.conv import CausalConv, Pointwise, SpatialConv, Video, depth_to_space, space_to_depth

LOGVAR_MIN, LOGVAR_MAX = -30.0, 20.0  # exp() of anything in between is finite and not zero

State = tuple[Video, ...]  # the past of every convolution of time, in the order of computation


@dataclasses.dataclass(frozen=True)
class VideoVAEConfig:
  """Sizes of a VideoVAE.

  Stage i has `widths[i]` channels, `encoder_depths[i]` residual blocks on the way in and `decoder_depths[i]` on the way
  out. A transition between stages halves space or time or both: space as early as possible, time as late as possible,
  as many times as lead from the patch to the compression. The decoder may have other patches and widths than the
  encoder; where it is not told which, they are the same.
  """
  temporal_compression: int = 4
  spatial_compression: int = 8
  patch_time: int = 1                          # frames, and
  patch_size: int = 4                          # pixels of height and of width, that enter as one cell
  latent_channels: int = 16
  widths: tuple[int, ...] = (128, 256, 512)    # from pixels to latents
  encoder_depths: tuple[int, ...] = (2, 2, 2)
  decoder_depths: tuple[int, ...] = (2, 2, 3)  # in the order of widths, the decoder's
  decoder_patch_time: int | None = None
  decoder_patch_size: int | None = None
  decoder_widths: tuple[int, ...] | None = None
  dtype: str = 'float32'                       # of the computation; parameters are float32

  def __post_init__(self):
    if self.dtype not in ('float32', 'bfloat16'):
      raise ValueError(f"dtype={self.dtype!r}; give 'float32' or 'bfloat16'")
    for prefix, depths, (*patches, widths) in (('', 'encoder_depths', self.encoder_sizes),
                                               ('decoder_', 'decoder_depths', self.decoder_sizes)):
      if len(getattr(self, depths)) != len(widths):
        raise ValueError(f'{depths}={getattr(self, depths)} for {prefix}widths={widths}; give one depth per width')
      num_transitions = len(widths) - 1
      for axis, name, patch in zip(('temporal', 'spatial'), ('patch_time', 'patch_size'), patches):
        compression = getattr(self, f'{axis}_compression')
        if compression / patch not in [2 ** i for i in range(num_transitions + 1)]:
          raise ValueError(
              f'{axis}_compression={compression} over {prefix}{name}={patch} is {compression / patch:g}, which '
              f'{num_transitions} transitions of 1 or 2 cannot make; change the patch or the number of {prefix}widths')

  @property
  def encoder_sizes(self) -> tuple[int, int, tuple[int, ...]]:
    """Frames and pixels of a patch, and widths, of the encoder."""
    return self.patch_time, self.patch_size, self.widths

  @property
  def decoder_sizes(self) -> tuple[int, int, tuple[int, ...]]:
    """As `encoder_sizes`, of the decoder."""
    return (self.decoder_patch_time or self.patch_time, self.decoder_patch_size or self.patch_size,
            self.decoder_widths or self.widths)

  def strides(self, patch_time: int, patch_size: int, widths: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(time, space) factors of the transitions between the stages of an encoder or a decoder of such sizes."""
    num_time = round(math.log2(self.temporal_compression / patch_time))
    num_space = round(math.log2(self.spatial_compression / patch_size))
    n = len(widths) - 1
    return tuple((2 if i >= n - num_time else 1, 2 if i < num_space else 1) for i in range(n))


class Block(nnx.Module):
  """x + time(silu(space(norm(x)))): a residual 3 × 3 × 3 convolution in two factors."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.scale = layers.param(nnx.initializers.ones, rngs.params(), (width,))
    self.space = SpatialConv(width, width, rngs=rngs)
    # Small, so that a deep stack starts near the identity; not zero, which would give its first factor no gradient.
    self.time = CausalConv(width, width, rngs=rngs, init=nnx.initializers.variance_scaling(
        0.1, 'fan_in', 'truncated_normal', in_axis=(0, 1), out_axis=2))

  def __call__(self, x_BTHWC: Video, past: Video | None) -> tuple[Video, Video]:
    h_BTHWC = jax.nn.silu(self.space(layers.rms_norm(x_BTHWC, self.scale[...])))
    h_BTHWC, past = self.time(h_BTHWC, past)
    return x_BTHWC + h_BTHWC, past


class Stages(nnx.Module):
  """Blocks of each width, with the transitions between; `strides[i]` stands between stages i and i+1.

  Strides above 1 fold cells into channels (down), `up` unfolds them.
  """

  def __init__(self, widths, depths, strides, up: bool, *, rngs: nnx.Rngs):
    self.strides, self.up = tuple(strides), up
    self.blocks = nnx.List([nnx.List([Block(width, rngs=rngs) for _ in range(depth)])
                            for width, depth in zip(widths, depths, strict=True)])
    self.transitions = nnx.List()
    for inputs, outputs, (time, space) in zip(widths[:-1], widths[1:], strides, strict=True):
      fold = time * space ** 2
      sizes = (inputs, outputs * fold) if up else (inputs * fold, outputs)
      self.transitions.append(Pointwise(*sizes, rngs=rngs))

  def __call__(self, x_BTHWC: Video, state: State | None) -> tuple[Video, State]:
    old, new = iter(state or ()), []
    for i, stage in enumerate(self.blocks):
      for block in stage:
        x_BTHWC, past = block(x_BTHWC, next(old, None))
        new.append(past)
      if i < len(self.transitions):
        x_BTHWC = self.transition(i, x_BTHWC)
    return x_BTHWC, tuple(new)

  def transition(self, i: int, x_BTHWC: Video) -> Video:
    if self.up:
      return depth_to_space(self.transitions[i](x_BTHWC), *self.strides[i])
    return self.transitions[i](space_to_depth(x_BTHWC, *self.strides[i]))


class VideoVAE(nnx.Module):
  """Encoder and decoder of a VideoVAEConfig; a plain pytree of parameters."""
  DECODER = 'from_latent', 'decoder', 'decoder_scale', 'unpatchify'

  def __init__(self, cfg: VideoVAEConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    time, size, widths = cfg.encoder_sizes
    self.patchify = Pointwise(3 * time * size ** 2, widths[0], rngs=rngs)
    self.encoder = Stages(widths, cfg.encoder_depths, cfg.strides(*cfg.encoder_sizes), up=False, rngs=rngs)
    self.encoder_scale = layers.param(nnx.initializers.ones, rngs.params(), widths[-1:])
    self.to_latent = Pointwise(widths[-1], 2 * cfg.latent_channels, rngs=rngs)
    time, size, widths = cfg.decoder_sizes
    self.from_latent = Pointwise(cfg.latent_channels, widths[-1], rngs=rngs)
    self.decoder = Stages(widths[::-1], cfg.decoder_depths[::-1], cfg.strides(*cfg.decoder_sizes)[::-1], up=True,
                          rngs=rngs)
    self.decoder_scale = layers.param(nnx.initializers.ones, rngs.params(), widths[:1])
    self.unpatchify = Pointwise(widths[0], 3 * time * size ** 2, rngs=rngs)

  def encode(self, video_BTHWC: Float[Array, 'b t h w 3']) -> tuple[Video, Video]:
    """Pixels in [-1, 1], 1 + k·tc frames → mean and logvar float32[B, 1 + k, H/sc, W/sc, latent_channels]."""
    (mean, logvar), _ = self.encode_chunk(video_BTHWC)
    return mean, logvar

  def decode(self, latent_BTHWC: Video) -> Float[Array, 'b t h w 3']:
    """Latents of 1 + k frames → pixels float32[B, 1 + k·tc, H, W, 3], in [-1, 1] up to the network's error."""
    return self.decode_chunk(latent_BTHWC)[0]

  def encode_chunk(self, video_BTHWC: Float[Array, 'b t h w 3'],
                   state: State | None = None) -> tuple[tuple[Video, Video], State]:
    """One chunk → ((mean, logvar), state for the next). The first (state None) has 1 + k·tc frames, later ones k·tc."""
    tc, sc = self.cfg.temporal_compression, self.cfg.spatial_compression
    _, T, H, W, _ = video_BTHWC.shape
    if T < 1 or H < 1 or W < 1 or H % sc or W % sc or (T - (state is None)) % tc:
      frames = f'1 + k·{tc}' if state is None else f'k·{tc}'
      raise ValueError(f'{T} frames of {H}×{W} pixels do not divide; give {frames} frames of sides divisible by {sc}')
    x = video_BTHWC.astype(self.cfg.dtype)
    if state is None:
      x = jnp.concatenate([x[:, :1]] * (tc - 1) + [x], 1)
    return self.encode_frames(x, state)

  def encode_frames(self, x_BTHWC: Video, state: State | None) -> tuple[tuple[Video, Video], State]:
    """As `encode_chunk`, with the repeats of frame 0 there already."""
    x = self.patchify(space_to_depth(x_BTHWC, self.cfg.patch_time, self.cfg.patch_size))
    x, state = self.encoder(x, state)
    x = self.to_latent(layers.rms_norm(x, self.encoder_scale[...])).astype(jnp.float32)
    mean, logvar = jnp.split(x, 2, -1)
    return (mean, jnp.clip(logvar, LOGVAR_MIN, LOGVAR_MAX)), state

  def decode_chunk(self, latent_BTHWC: Video, state: State | None = None) -> tuple[Float[Array, 'b t h w 3'], State]:
    """One chunk of any number of latent frames → (pixels, state for the next); the first has state None."""
    if latent_BTHWC.shape[-1] != self.cfg.latent_channels:
      raise ValueError(f'latents of {latent_BTHWC.shape[-1]} channels for a codec of {self.cfg.latent_channels}; '
                       'use the codec that made them')
    x, new = self.decode_frames(latent_BTHWC, state)
    return (x[:, self.cfg.temporal_compression - 1:] if state is None else x), new

  def decode_frames(self, latent_BTHWC: Video, state: State | None) -> tuple[Float[Array, 'b t h w 3'], State]:
    """As `decode_chunk`, with what becomes of the repeats of frame 0."""
    x, state = self.decoder(self.from_latent(latent_BTHWC.astype(self.cfg.dtype)), state)
    x = self.unpatchify(layers.rms_norm(x, self.decoder_scale[...]))
    return depth_to_space(x, *self.cfg.decoder_sizes[:2]).astype(jnp.float32), state
