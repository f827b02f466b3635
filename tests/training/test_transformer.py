"""What a transformer's run refuses: before any codec is trained for it, and when it goes on."""
import dataclasses
import shutil

import pytest

from tests.training.pod import write_config
from tests.training.test_run import AUDIO, DIT, LOOP, VIDEO, folder, tree
from veojax.data.tokenizer import Tokenizer
from veojax.generation import codecs
from veojax.training import loop, run

pytestmark = pytest.mark.xdist_group('run')

SMALL_TEXT = {'dit': {**DIT['dit'], 'text': {**DIT['dit']['text'], 'vocab_size': 10}}}


@pytest.mark.parametrize('changes, inner, words', [
    (SMALL_TEXT, AUDIO, ['dit.text.vocab_size is 10', 'raise it']),
    ({'dit': {**DIT['dit'], 'video_channels': 5}}, AUDIO, ['dit.video_channels=5', 'set it to 4']),
    ({'loop': {**DIT['loop'], 'batch_size': 6}}, AUDIO, ['loop.batch_size=6', 'a multiple of 8']),
    ({}, {**AUDIO, 'loop': {**LOOP, 'batch_size': 4}}, ['audio.py, the audio codec', 'loop.batch_size=4', 'of 8']),
    ({}, {'stage': 'animatediff'}, ['audio_codec=', 'stage=animatediff; give one of stage=audio_vae'])])
def test_what_codecs_would_be_trained_in_vain_for_is_refused_before_and_may_be_changed(
    folder, tmp_path, monkeypatch, changes, inner, words):
  for name, stage in (('video', VIDEO), ('audio', inner)):
    write_config(tmp_path / f'{name}.py', stage)
  named = {f'{kind}_codec': str(tmp_path / f'{kind}.py') for kind in codecs.KINDS}
  monkeypatch.setattr(loop, 'fit', lambda stage, workdir: pytest.fail(f'{stage.name} was trained'))
  with pytest.raises(ValueError) as error:
    run.train(tree(folder, **named, **changes), tmp_path / 'run')
  assert all(word in str(error.value) for word in words)
  run.remember(run.build(tree(folder)), tmp_path / 'run')  # with another config: nothing has been trained with this one


@pytest.mark.parametrize('kind', ['video', 'audio', 'tokenizer'])
def test_a_run_goes_on_with_what_it_has_trained_with(folder, tmp_path, monkeypatch, kind):
  """Without a cache of latents, which would know the codecs that have made it."""
  monkeypatch.setattr(loop, 'fit', lambda stage, workdir: {})
  workdir, changes = tmp_path / 'run', {'latents': 'on_the_fly'}
  run.train(tree(folder, **changes), workdir)
  other = {**changes, f'{kind}_codec': str(tmp_path / 'shifted.safetensors')}
  if kind == 'tokenizer':
    other = {**changes, 'data': str(shutil.copytree(folder / 'data', tmp_path / 'data'))}
    Tokenizer.train(['other captions'], tmp_path / 'data' / 'text.model', 300)
  else:
    codec = codecs.load(folder / kind, kind)
    dataclasses.replace(codec, mean_C=codec.mean_C + 1).save(tmp_path / 'shifted.safetensors')
  run.train(tree(folder, **other), workdir)  # nothing has been trained yet
  run.train(tree(folder, **changes), workdir)
  (workdir / 'checkpoints' / '2').mkdir(parents=True)
  run.train(tree(folder, **changes), workdir)
  with pytest.raises(ValueError, match=f'another {kind}.*--workdir'):
    run.train(tree(folder, **other), workdir)


def test_workers_cannot_encode(folder):
  with pytest.raises(ValueError, match='loop.num_workers=2 with latents=on_the_fly.*num_workers=0'):
    run.build(tree(folder, latents='on_the_fly', loop={**LOOP, 'num_workers': 2}))
