"""FAD: examples of its protocols, its network's refusal of others, and sounds that a drawn network tells apart."""
import numpy as np
import pytest

from veojax.evaluation import fad
from veojax.evaluation.benchmark import Row, Subject
from veojax.evaluation.fad import FAD
from veojax.types import Clip
from veojax.zoo import origin, vggish


def test_examples_of_the_protocols():
  sound = np.random.default_rng(0).uniform(-.5, .5, 2 * 16000)
  ours = fad.overlapping(sound)
  assert ours.shape == (3, 96, 64)
  for i, example in enumerate(ours):
    window = sound[8000 * i:8000 * i + 16000] / sound.max()
    np.testing.assert_allclose(example, vggish.log_mel(window)[:96], rtol=1e-5)
  assert len(fad.overlapping(sound[:15999])) == 0
  faint = fad.overlapping(.01 * sound)  # raised by 10, not to full scale
  np.testing.assert_allclose(faint[0], vggish.log_mel(.1 * sound[:16000])[:96], rtol=1e-5)
  assert len(fad.EXAMPLES['pytorch'](sound)) == 2
  np.testing.assert_allclose(fad.EXAMPLES['pytorch'](sound)[1], vggish.log_mel(sound)[96:192], rtol=1e-5)


def test_sounds_are_mixed_and_resampled():
  t = np.arange(44100) / 44100
  clip = Clip(audio=np.stack([np.sin(2 * np.pi * 500 * t), np.zeros_like(t)], 1).astype(np.float32), sample_rate=44100)
  sound = fad.mono(clip)
  assert len(sound) == 16000
  tone = .5 * np.sin(2 * np.pi * 500 * np.arange(16000) / 16000)
  np.testing.assert_allclose(sound[500:-500], tone[500:-500], atol=.01)
  assert len(fad.mono(Clip(video=np.zeros((1, 2, 2, 3), np.uint8), fps=1.))) == 0


def test_a_drawn_network_tells_tones_from_noise():
  rng, cfg = np.random.default_rng(0), vggish.VGGishConfig(hidden=16)
  import jax
  network = jax.tree.map(lambda p: rng.normal(0, np.prod(p.shape[:-1]) ** -.5 if p.ndim > 1 else .1, p.shape)
                         .astype(np.float32), jax.eval_shape(lambda: vggish.VGGish(cfg)))
  t = np.arange(16000 * 3) / 16000
  tone = lambda: np.sin(2 * np.pi * rng.uniform(200, 2000) * t)
  noise = lambda: rng.normal(0, .3, len(t))
  sets = {name: [Row(i, kept={'embeddings': fad.embeddings(network, vggish.examples(make())).tolist()})
                 for i in range(8)] for name, make in (('truth', tone), ('codec', tone), ('made', noise))}
  assert len(sets['truth'][0].kept['embeddings']) == 3
  scores, halves = FAD().scores(sets).values()
  assert scores['made'].value > 2 * scores['codec'].value > 0
  assert halves['made'].value > 2 * halves['truth'].value > 0
  alone = fad.embeddings(network, vggish.examples(t)[:1])
  np.testing.assert_allclose(alone, fad.embeddings(network, np.repeat(vggish.examples(t), 4, 0))[:1], rtol=1e-5)


def test_other_networks_are_refused_and_never_called_fad(tmp_path):
  fad.load.cache_clear()
  with pytest.raises(ValueError, match='needs the weights of VGGish: vggish-10086976.pth'):
    FAD().fitted(Subject('truth'))
  path = tmp_path / 'other.safetensors'
  origin.write({'x': np.zeros(1, np.float32)}, path, {'sha256': 'cd' * 32})
  with pytest.raises(ValueError, match='cdcd.* not known'):
    fad.load(str(path), False)
  assert list(FAD(weights=str(path), allow_unknown_weights=True).METRICS) == [
      'frechet-vggish/google', 'frechet-vggish/google/halves']
  origin.write({'x': np.zeros(1, np.float32)}, path, {'sha256': '10086976' + 'cd' * 28})
  assert list(FAD(weights=str(path), protocol='pytorch').METRICS) == ['fad/pytorch', 'fad/pytorch/halves']
