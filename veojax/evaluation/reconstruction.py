"""What a model's codecs keep of true clips: pictures by PSNR, SSIM and LPIPS, sounds by SI-SDR and spectra.

The floor is what the codecs make of the next clip, where it has the same sizes, held to this one. LPIPS runs where the
user gives the weights of its network (`models/perceptual.py`), and is left out otherwise.
"""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from veojax.evaluation import benchmark, clips, fidelity, loaded, motion
from veojax.evaluation.benchmark import Metric, Row, Subject
from veojax.evaluation.world_benchmark import World
from veojax.models import perceptual
from veojax.training import audio_losses
from veojax.types import Clip
from veojax.zoo import origin

FFT_SIZES = (64, 256, 1024)
MEL_BINS, MEL_FFT = 64, 512
LEAST_SOUND = max(FFT_SIZES)  # samples
SILENT = 1e-4                 # root mean square below which a channel has no direction to be distorted in


@dataclasses.dataclass(frozen=True)
class Reconstruction(benchmark.Benchmark):
  """data: 'world', of `scenes`, or a prepared data set. lpips_weights, lpips_heads: files, as `models/perceptual.py`
  takes them. network, data_hash: what was found there, as of `clips.fitted`."""
  num_clips: int = 128
  seed: int = 0
  data: str = clips.WORLD
  data_hash: str = ''
  scenes: World = World()
  lpips_weights: str = ''
  lpips_heads: str = ''
  network: str = ''

  METRICS = {
      'psnr': Metric('higher', 'peak signal to noise, of the mean squared error of a clip', 'picture', 'dB'),
      'ssim': Metric('higher', 'structural similarity, windows of 11 × 11', 'picture'),
      'lpips': Metric('lower', "distance in the features of the user's network", 'picture'),
      'temporal_psnr': Metric('higher', 'PSNR of the differences from frame to frame', 'picture', 'dB'),
      'steadiness': Metric('', '1 less the mean difference from frame to frame; flicker lowers it', 'picture'),
      'si_sdr': Metric('higher', 'scale-invariant signal to distortion, of the channels that sound', 'sound', 'dB'),
      'log_mel': Metric('lower', 'mean difference of log-mel magnitudes', 'sound', 'Np'),
      'stft': Metric('lower', 'spectral convergence and log-magnitude difference, mean of three resolutions', 'sound'),
  }
  KEY = ('psnr', 'ssim', 'lpips', 'si_sdr', 'log_mel')
  WORST = 'psnr'
  MEANING = benchmark.MEANING | {'truth': 'the ceiling: the clips themselves',
                                 'shuffled': "the floor: other clips through the model's codecs"}

  def fitted(self, subject: Subject) -> 'Reconstruction':
    if not self.parts(subject):
      raise ValueError(f'{subject.name} has no codecs to reconstruct with; give a model, or roundtrip')
    if self.scenes.given != World.given:
      raise ValueError(f'scenes.given={self.scenes.given!r}: here nothing is made that it could be given for; leave it '
                       'out')
    network = ''
    if self.lpips_weights:
      _lpips(self.lpips_weights, self.lpips_heads)
      network = ' '.join(origin.identify(path, {}).hash for path in (self.lpips_weights, self.lpips_heads) if path)
    return clips.fitted(self, subject, network=network)

  def parts(self, subject: Subject) -> tuple[str, ...]:
    return ('codec', 'truth') if 'codec' in clips.parts(subject) else ()

  def rows(self, subject: Subject, part: str, indices, keep=benchmark.keep_nothing) -> dict[str, list[Row]]:
    lpips = _lpips(self.lpips_weights, self.lpips_heads) if self.lpips_weights else None
    rows = {part: []} | ({'shuffled': []} if part == 'codec' and self.num_clips > 1 else {})
    for i in indices:
      true = clips.adapted(clips.truth(self, i), subject.codecs[1])
      made = clips.through(true, subject) if part == 'codec' else true
      keep(part, i, made)
      rows[part].append(Row(i, true.text, values=measure(made, true, lpips)))
      if 'shuffled' in rows:
        other = clips.truth(self, (i + 1) % self.num_clips)
        rows['shuffled'].append(Row(i, true.text, values=measure(clips.through(other, subject), true, lpips)))
    return rows


@loaded.kept(1)
def _lpips(weights: str, heads: str):
  network = perceptual.load(weights, heads)
  return jax.jit(lambda x, y: jnp.mean(network(x, y)))


def measure(made: Clip, true: Clip, lpips=None) -> dict[str, float]:
  """Of the halves that both have in the same shape; what is undefined is left out."""
  values = {}
  if made.video is not None and true.video is not None and made.video.shape == true.video.shape:
    values |= pictures(made.video, true.video, lpips)
  if made.audio is not None and true.audio is not None and made.audio.shape == true.audio.shape:
    values |= sounds(made.audio, true.audio, true.sample_rate)
  return clips.defined(values)


def pictures(made: np.ndarray, true: np.ndarray, lpips=None) -> dict[str, float]:
  values = {'psnr': fidelity.psnr(made, true), 'steadiness': motion.steadiness(made)}
  if min(true.shape[1:3]) >= len(fidelity.TAPS):
    values['ssim'] = fidelity.ssim(made, true)
  if len(true) > 1:
    values['temporal_psnr'] = fidelity.temporal_psnr(made, true)
  if lpips is not None:
    values['lpips'] = float(lpips(*(x.astype(np.float32) / 127.5 - 1 for x in (made, true))))
  return values


@functools.partial(jax.jit, static_argnames='sample_rate')
def _spectra(made_CR, true_CR, sample_rate):
  return (audio_losses.log_mel_distance(made_CR, true_CR, sample_rate, fft_size=MEL_FFT, mel_bins=MEL_BINS),
          audio_losses.stft_loss(made_CR, true_CR, FFT_SIZES))


def sounds(made_RC: np.ndarray, true_RC: np.ndarray, sample_rate: int) -> dict[str, float]:
  """SI-SDR is the mean over the channels of the truth that sound; what is exact has none (infinite)."""
  values = {}
  heard = np.sqrt(np.mean(np.square(true_RC, dtype=np.float64), 0)) > SILENT
  if heard.any():
    values['si_sdr'] = float(np.mean(audio_losses.si_sdr(
        *(jnp.asarray(x.T[heard], jnp.float32) for x in (made_RC, true_RC)))))
  if len(true_RC) >= LEAST_SOUND:
    values['log_mel'], values['stft'] = map(float, _spectra(
        *(jnp.asarray(x.T, jnp.float32) for x in (made_RC, true_RC)), sample_rate))
  return values
