"""A codec whose decoder alone learns: the latents stay."""
import numpy as np
import pytest

from tests.training.test_run import AUDIO, LOOP, VIDEO, folder
from veojax.generation import codecs
from veojax.models import codec_file, weights
from veojax.training import run

pytestmark = pytest.mark.xdist_group('run')


@pytest.mark.parametrize('adversary', [0.0, 0.5])
@pytest.mark.parametrize('stage, name', [(VIDEO, 'video'), (AUDIO, 'audio')])
def test_a_decoder_alone_learns_and_latents_stay(folder, stage, name, adversary):
  """To the bit, under weight decay and with a discriminator too; models of the codec's latents take the new one."""
  discriminator = {'patch_size': 8, 'widths': (4,)} if name == 'video' else {'fft_sizes': (64,), 'width': 4}
  tree = {**stage, 'data': str(folder / 'data'), 'learn': 'decoder', 'adversarial': {'weight': adversary},
          'discriminator': discriminator, 'optimizer': {'weight_decay': 0.1, 'warmup_steps': 0},
          'loop': {**LOOP, 'num_steps': 2, 'ema_decays': (0.5,)}}
  run.train({**tree, 'start': str(folder / name)}, folder / f'decoder_{name}_{adversary}')
  old, new = (codecs.load(path, name) for path in (folder / name, folder / f'decoder_{name}_{adversary}'))
  before, after = weights.names(old.vae), weights.names(new.vae)
  changed = {part for part in before if not np.array_equal(before[part], after[part])}
  assert len(changed) > 3 and {part.split('.')[0] for part in changed} <= set(old.VAE.DECODER)
  assert np.array_equal(old.mean_C, new.mean_C) and np.array_equal(old.std_C, new.std_C)
  assert old.hash() == new.hash() and old.whole_hash() != new.whole_hash()
  with pytest.raises(ValueError, match='start=CODEC'):
    run.build(tree)


@pytest.mark.parametrize('stage, name, sizes', [
    (VIDEO, 'video', {'decoder_patch_time': 2, 'decoder_patch_size': 4, 'decoder_widths': (8, 16),
                      'decoder_depths': (1, 1)}),
    (AUDIO, 'audio', {'decoder_strides': (4,), 'decoder_widths': (8, 16)})])
def test_a_decoder_of_other_sizes_learns_from_the_same_latents(folder, stage, name, sizes):
  tree = {**stage, 'data': str(folder / 'data'), 'start': str(folder / name), 'model': {**stage['model'], **sizes}}
  run.train({**tree, 'learn': 'decoder'}, folder / f'finer_{name}')
  old, new = (codecs.load(path, name) for path in (folder / name, folder / f'finer_{name}'))
  kept = codec_file.encoder(old.vae)
  assert kept and all(np.array_equal(kept[part], x) for part, x in codec_file.encoder(new.vae).items())
  assert old.hash() == new.hash() and old.whole_hash() != new.whole_hash()
  with pytest.raises(ValueError, match='another model'):
    run.train(tree, folder / f'other_{name}')
