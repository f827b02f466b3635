"""The short-time Fourier transform that the losses on sound and its discriminator share.

A periodic Hann window, a hop of a quarter of it, whole frames only, no padding. Divided by the sum of the window
over 2: a sine of amplitude 1 at the centre of a bin has magnitude 1.
"""
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Up to this size the transform as a matrix product is faster than the FFT (on two CPU cores 3 times at 256, equal at
# 512), and on a TPU it runs on the matrix unit.
MATMUL_FFT_SIZE = 256


def stft(x_BR: Float[Array, 'b r'], fft_size: int) -> tuple[Float[Array, 'b t f'], Float[Array, 'b t f']]:
  """Real and imaginary part of the spectra, f = fft_size // 2 + 1."""
  hop = fft_size // 4
  if fft_size % 4 or x_BR.shape[1] < fft_size:
    raise ValueError(f'fft_size={fft_size} of {x_BR.shape[1]} samples: give a multiple of 4 that is not longer')
  R = x_BR.shape[1] // hop * hop
  # Frames are four neighbouring blocks side by side: no gather.
  blocks_BTH = jnp.reshape(x_BR[:, :R], (x_BR.shape[0], R // hop, hop))
  num_frames = R // hop - 3
  frames_BTN = jnp.concatenate([blocks_BTH[:, i:i + num_frames] for i in range(4)], axis=-1)
  window_N = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft_size) / fft_size)
  window_N *= 2 / window_N.sum()
  if fft_size <= MATMUL_FFT_SIZE:
    angle_NF = 2 * np.pi * np.outer(np.arange(fft_size), np.arange(fft_size // 2 + 1)) / fft_size
    basis_NF = np.exp(-1j * angle_NF) * window_N[:, None]
    real, imag = (jnp.einsum('btn,nf->btf', frames_BTN, jnp.asarray(b, jnp.float32))
                  for b in (basis_NF.real, basis_NF.imag))
    return real, imag
  spectrum = jnp.fft.rfft(frames_BTN * jnp.asarray(window_N, jnp.float32)[None, None])
  return spectrum.real, spectrum.imag
