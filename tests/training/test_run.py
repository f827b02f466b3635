"""From data to a model and back to clips, in the smallest sizes: resuming, refusing, generating."""
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.training.interrupted import stopped_at
from veojax import cli, sharding
from veojax.data import datasets, media, prepare
from veojax.data.world import WorldConfig
from veojax.evaluation import quickstart
from veojax.generation import codecs, model as models
from veojax.training import checkpoint, journal, loop, run, transformer

pytestmark = pytest.mark.xdist_group('run')

LOOP = {'batch_size': 8, 'log_every': 1, 'evaluate_every': 0, 'sample_every': 0, 'save_every': 2, 'num_threads': 2}
VIDEO = {'stage': 'video_vae', 'crop': {'num_frames': 5, 'height': 16, 'width': 16}, 'tile': 16, 'overlap': 8,
         'motion_weight': 0.1, 'evaluation_clips': 2, 'loop': {**LOOP, 'num_steps': 2},
         'model': {'temporal_compression': 4, 'spatial_compression': 8, 'patch_time': 4, 'patch_size': 8,
                   'latent_channels': 4, 'widths': (16,), 'encoder_depths': (1,), 'decoder_depths': (1,)}}
AUDIO = {'stage': 'audio_vae', 'num_latents': 8, 'loss': {'fft_sizes': (64,)}, 'evaluation_clips': 2,
         'loop': {**LOOP, 'num_steps': 2},
         'model': {'sample_rate': 8000, 'hop': 320, 'latent_channels': 6, 'strides': (), 'widths': (16,), 'depth': 1}}
DIT = {'stage': 'transformer', 'prompts': ('a red ball falls',),
       'dit': {'video_channels': 4, 'audio_channels': 6, 'width': 32, 'depth': 2, 'num_heads': 2, 'mlp_width': 48,
               'dtype': 'float32',
               'text': {'vocab_size': 400, 'width': 16, 'depth': 1, 'num_heads': 2, 'mlp_width': 16}},
       'pack': {'row_tokens': 96, 'text_tokens': 48, 'max_clips': 1, 'max_text': 48, 'channels': 6},
       'sampling': {'num_inference_steps': 2}, 'clip': {'num_frames': 5, 'height': 16, 'width': 16},
       'loop': {**LOOP, 'num_steps': 4, 'ema_decays': (0.999, 0.0)}}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A data set and trained codecs."""
  folder = tmp_path_factory.mktemp('run')
  world = WorldConfig(num_frames=9, height=16, width=16, sample_rate=8000)
  config = prepare.PrepareConfig(num_clips=24, world=world, vocab_size=400, validation_fraction=0.2)
  prepare.prepare('world', folder / 'data', config=config, workers=1, progress=False)
  for name, tree in (('video', VIDEO), ('audio', AUDIO)):
    run.train({**tree, 'data': str(folder / 'data')}, folder / name)
  return folder


def tree(folder, **changes):
  return {**DIT, 'data': str(folder / 'data'), 'video_codec': str(folder / 'video'),
          'audio_codec': str(folder / 'audio'), **changes}


def leaves(workdir):
  config = run.build(json.loads((workdir / 'config.json').read_text()))
  mesh = sharding.make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    stage = transformer.TransformerStage(config, workdir, *[run.codec_of(config, workdir, kind) for kind in codecs.KINDS])
    saved = checkpoint.Checkpoints(workdir / 'checkpoints')
    state, row = loop.initial(stage, saved, mesh)
    saved.close()
  return [np.asarray(x) for x in jax.tree.leaves(state)], row


@pytest.fixture(scope='module')
def whole(folder):
  run.train(tree(folder), folder / 'whole')
  return folder / 'whole'


@pytest.mark.smoke
def test_resumed_equals_uninterrupted_bit_for_bit(folder, whole):
  """Stopped by SIGTERM at a step that is no checkpoint's, with data threads running, and started again."""
  workdir = folder / 'resumed'
  with stopped_at(3) as stopped:
    run.train(tree(folder), workdir)
  assert 'step 3' in str(stopped.value) and 'goes on from there' in str(stopped.value)
  run.train(tree(folder), workdir)
  (a, row_a), (b, row_b) = leaves(whole), leaves(workdir)
  assert row_a == row_b == 4 * 8
  for x, y in zip(a, b, strict=True):
    assert np.array_equal(x, y)
  lines = {line['step']: line['loss'] for line in journal.read(whole) if 'loss' in line}
  again = {line['step']: line['loss'] for line in journal.read(workdir) if 'loss' in line}
  assert lines == again and sorted(lines) == [1, 2, 3, 4]


def test_tokens_of_patches_of_latents(folder, whole):
  """A model whose picture tokens are 2x2 latents trains, is loaded as such, and begins no model of other tokens."""
  changes = {'video_patch': 2, 'dit': {**DIT['dit'], 'video_channels': 16}, 'pack': {**DIT['pack'], 'channels': 16},
             'loop': {**LOOP, 'num_steps': 1}}
  run.train(tree(folder, **changes), folder / 'patched')
  model = models.load(folder / 'patched')
  assert (model.video_codec.spatial_compression, model.video_codec.latent_channels) == (16, 16)
  clip = model.generate('a red ball', num_frames=9, height=24, width=16)
  assert clip.video.shape == (9, 24, 16, 3) and clip.audio.shape[1] == 2
  with pytest.raises(ValueError, match='video_patch=1'):
    run.train(tree(folder, **changes, start=str(whole)), folder / 'patched_begun')


def test_a_finished_run_does_nothing_when_started_again(folder, whole):
  before = (whole / 'weights.safetensors').stat().st_mtime_ns
  run.train(tree(folder), whole)
  assert (whole / 'weights.safetensors').stat().st_mtime_ns == before


def test_every_average_of_the_weights_is_scored_and_exported(whole):
  scores = journal.read(whole)[-1]
  assert scores['evaluation/loss'] != scores['evaluation/ema_0/loss']
  saved, _ = leaves(whole)
  flat = [np.asarray(x) for x in jax.tree.leaves(models.load(whole / 'ema_0').dit)]
  num = len(flat)
  # Decay 0: the weights themselves.
  assert all(np.array_equal(a, b) for a, b in zip(flat, saved[4:4 + num], strict=True))
  assert not all(np.array_equal(a, b) for a, b in zip(flat, jax.tree.leaves(models.load(whole).dit), strict=True))


def test_micro_batches_make_one_update(folder):
  config = run.build(tree(folder, loop={**LOOP, 'num_steps': 1, 'accumulate': 2}))
  run.train(config, folder / 'accumulated')
  assert leaves(folder / 'accumulated')[1] == 16


def test_a_checkpoint_is_a_model(folder, whole, tmp_path, monkeypatch):
  """The first average at its step, of a run that has not exported any weights too."""
  unfinished = tmp_path / 'unfinished'
  shutil.copytree(whole, unfinished)
  (unfinished / 'weights.safetensors').unlink()
  last, before = (models.load(unfinished / 'checkpoints' / step) for step in ('4', '2'))
  jax.tree.map(np.testing.assert_array_equal, last.dit, models.load(whole).dit)
  with sharding.default_mesh():  # in which evaluations and sweeps load it
    jax.tree.map(np.testing.assert_array_equal, models.load(unfinished / 'checkpoints' / '2').dit, before.dit)
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), last.dit, before.dit)
  assert max(jax.tree.leaves(moved)) > 0
  out = tmp_path / 'clip.wav'
  assert cli.main(['generate', '--model', str(unfinished / 'checkpoints' / '2'), '--prompt', 'a ball', '--task', 'sound',
                   '--output', str(out)]) == 0
  assert media.probe(out).tags['artist'] == 'unfinished@2'
  with pytest.raises(ValueError, match='not finished.* checkpoints: .*/checkpoints/2, .*/checkpoints/4$'):
    models.load(unfinished)
  with pytest.raises(ValueError, match='no checkpoint .*/checkpoints/3; there are: .*/checkpoints/2, '):
    models.load(unfinished / 'checkpoints' / '3')
  for path in (unfinished / 'checkpoints' / '4' / 'ema').rglob('*'):
    if path.is_file():
      path.write_bytes(b'')
  with pytest.raises(ValueError, match='/checkpoints/4 is damaged .its ema .* another one: .*/checkpoints/2'):
    models.load(unfinished / 'checkpoints' / '4')
  with pytest.raises(ValueError, match='video/checkpoints/2 is a checkpoint of .*/video, which has no model.json'):
    models.load(folder / 'video' / 'checkpoints' / '2')
  # From its beginning on a run holds what its checkpoints need.
  begun = []
  monkeypatch.setattr(loop, 'fit', lambda stage, workdir: begun.extend(workdir.iterdir()) or {})
  run.train(tree(folder), tmp_path / 'begun')
  assert {'model.json', 'text.model', 'video_vae.safetensors', 'audio_vae.safetensors'} <= {p.name for p in begun}


def test_what_is_drawn_during_training_names_the_run(folder):
  run.train(tree(folder, loop={**LOOP, 'num_steps': 1, 'sample_every': 1}), folder / 'drawn')
  for ending in ('mp4', 'png'):
    assert media.probe(folder / 'drawn' / 'samples' / f'0000001_0.{ending}').tags == {
        'title': 'a red ball falls', 'artist': 'drawn',
        'comment': 'AI-generated by veojax; model drawn; seed 0, clip 0'}


def test_several_data_sets_train_together_by_their_weights(folder):
  """Clips with sound, images alone and sounds alone; latents of each are kept apart."""
  for only in ('picture', 'sound'):
    world = WorldConfig(num_frames=1 if only == 'picture' else 9, height=16, width=16, sample_rate=8000)
    config = prepare.PrepareConfig(num_clips=6, world=world, vocab_size=400, store='rendered', only=only)
    prepare.prepare('world', folder / only, config=config, workers=1, progress=False)
  data = [{'path': str(folder / 'data')}, {'path': str(folder / 'picture'), 'weight': 2},
          {'path': str(folder / 'sound'), 'weight': 0.5}]
  config = run.build(tree(folder, data=data, loop={**LOOP, 'num_steps': 2}))
  run.train(config, folder / 'several')
  assert sorted(path.name for path in (folder / 'several' / 'latents').iterdir()) == [
      'train', 'train_1', 'train_2', 'validation', 'validation_1', 'validation_2']
  stage = transformer.TransformerStage(config, folder / 'several', *[
      run.codec_of(config, folder / 'several', kind) for kind in codecs.KINDS])
  clips = np.concatenate([stage.source.clips_of(row) for row in range(stage.source.rows_per_epoch)])
  sizes = [len(source) for source in stage.source.latents.sources]
  counts = np.bincount(np.repeat([0, 1, 2], sizes)[clips])
  assert counts.tolist() == [sizes[0], 2 * sizes[1], -(-sizes[2] // 2)]


@pytest.mark.parametrize('changes, words', [
    ({'dit': {**DIT['dit'], 'width': 64}}, ['dit.width', '32', '64', 'workdir']),
    ({'caption_dropout': 0.9}, ['caption_dropout']),
])
def test_another_model_in_the_same_workdir_is_refused(folder, whole, changes, words):
  with pytest.raises(ValueError) as error:
    run.train(tree(folder, **changes), whole)
  assert all(word in str(error.value) for word in words)


def test_a_checkpoint_of_another_model_is_named(folder, whole):
  workdir = folder / 'foreign'
  workdir.mkdir()
  shutil.copytree(whole / 'checkpoints', workdir / 'checkpoints')
  with pytest.raises(ValueError, match='another model; .*misshapen'):
    run.train(tree(folder, dit={**DIT['dit'], 'mlp_width': 64}), workdir)


@pytest.mark.parametrize('changes, words', [
    ({'data': '/nowhere'}, ['/nowhere', 'veojax prepare']),
    ({'data': [{'path': '/nowhere', 'weight': 0}]}, ['/nowhere', 'weight=0']),
    ({'video_codec': '/nowhere'}, ['/nowhere', 'does not exist']),
    ({'dit': {**DIT['dit'], 'video_channels': 5}, 'pack': DIT['pack']}, ['dit.video_channels=5', '4']),
    ({'dit': {**DIT['dit'], 'text': {**DIT['dit']['text'], 'vocab_size': 10}}}, ['vocab_size', '10']),
    ({'objective': {'process': 'flow', 'prediction': 'edm'}}, ['edm']),
])
def test_what_does_not_go_together_is_refused_at_the_door(folder, tmp_path, changes, words):
  with pytest.raises(ValueError) as error:
    run.train(tree(folder, **changes), tmp_path / 'refused')
  assert '\n' not in str(error.value)
  assert all(word in str(error.value) for word in words)


def test_a_run_that_logs_at_no_interval_logs_its_last_step(folder):
  run.train({**AUDIO, 'data': str(folder / 'data'), 'loop': {**AUDIO['loop'], 'log_every': 0}}, folder / 'quiet')
  assert [line['step'] for line in journal.read(folder / 'quiet') if 'loss' in line] == [2]


def test_losses_that_are_not_finite_change_nothing_and_end_the_run_with_the_clips_named(folder, monkeypatch, capsys):
  original = transformer.TransformerStage.loss

  def poisoned(self, *arguments):
    loss, metrics = original(self, *arguments)
    return loss * np.nan, metrics
  monkeypatch.setattr(transformer.TransformerStage, 'loss', poisoned)
  workdir = folder / 'poisoned'
  with pytest.raises(FloatingPointError, match='4 steps in a row were not applied.*skipped.json'):
    run.train(tree(folder, loop={**LOOP, 'num_steps': 20, 'max_skipped': 4}), workdir)
  assert journal.read(workdir)[-1]['skipped'] >= 4 and 'not finite' in capsys.readouterr().out
  (step, skipped, in_a_row, *_, last), row = leaves(workdir)
  assert step == skipped == in_a_row == row // 8 >= 4 and np.isfinite(last).all()
  told = json.loads((workdir / 'skipped.json').read_text())
  assert told['steps skipped in a row'] == 4 and told['first']['rows'] == [0, 8] and told['last']['rows'] == [24, 32]
  data = datasets.open_dataset(folder / 'data')
  known = {f'{folder / "data"}: {data.id(i)}' for i in range(len(data))}
  assert len(told['first']['clips']) == 8 and {clip for row in told['first']['clips'] for clip in row} <= known


def test_on_the_fly_latents_train_as_cached_ones(folder, whole):
  run.train(tree(folder, latents='on_the_fly', loop={**LOOP, 'num_steps': 1}), folder / 'fly')
  cached, fly = journal.read(whole)[0]['loss'], journal.read(folder / 'fly')[0]['loss']
  assert fly == pytest.approx(cached, rel=1e-2)  # the cache holds float16


def test_the_quickstarts_report(folder, whole, tmp_path):
  models.load(whole).generate('a ball').save(tmp_path / 'first.mp4')
  quickstart.main(str(whole), str(folder / 'data'), str(tmp_path), 'a ball')
  text = (tmp_path / 'report.html').read_text()
  assert all(words in text for words in ('PSNR', 'shuffled captions', 'veojax generate', 'data:video/mp4',
                                         'comes with the package'))
  assert media.probe(tmp_path / 'clip.mp4').has_audio


# The command line, in this process.


@pytest.mark.smoke
def test_generate_and_info_from_the_command_line(whole, tmp_path, capsys):
  out = tmp_path / 'clip.mp4'
  assert cli.main(['generate', '--model', str(whole), '--prompt', 'a ball', '--output', str(out),
                   '--num-frames=6']) == 0
  assert media.probe(out).tags == {'title': 'a ball', 'artist': whole.name,
                                   'comment': f'AI-generated by veojax; model {whole.name}; seed 0, clip 0'}
  hidden = ['generate', '--model', str(whole), '--prompt', 'a ball', '--output', str(out), '--num-frames=6', '--seed=7']
  for flag in ('--no_prompt_in_file', '--no-prompt-in-file'):
    assert cli.main([*hidden, flag]) == 0
    assert b'a ball' not in out.read_bytes() and 'seed 7' in media.probe(out).tags['comment']
  assert cli.main(['info', '--model', str(whole)]) == 0
  assert 'transformer parameters' in capsys.readouterr().out


@pytest.mark.parametrize('arguments, words', [
    (['generate', '--model', 'RUN', '--prompt', 'x', '--output', 'x.xyz'], ['.mp4']),
    (['generate', '--model', '/nowhere', '--prompt', 'x', '--output', 'x.mp4'], ['/nowhere']),
    (['generate', '--model', 'RUN', '--prompt_file', 'EMPTY', '--output', 'x.mp4'], ['no prompt']),
    (['generate', '--model', 'RUN', '--prompt_file', '/nowhere', '--output', 'x.mp4'], ['/nowhere']),
    (['generate', '--model', 'RUN', '--output', 'x.mp4'], ['--prompt']),
    (['generate', '--model', 'RUN', '--prompt', 'x', '--output', '/nowhere/x.mp4'], ['/nowhere']),
    (['generate', '--model', 'RUN', '--prompt', 'x', '--output', 'x.mp4', '--hieght=3'], ['hieght', 'height']),
    (['train', '--config', '/nowhere.py', '--workdir', 'x'], ['/nowhere.py']),
    (['prepare', '--source', '/nowhere', '--output', 'x'], ['/nowhere']),
    (['prepare', '--source', 'world', '--output', 'x', '--num_clisp=3'], ['num_clisp', 'num_clips']),
    (['tarin'], ['tarin', 'train']),
])
def test_bad_input_is_one_line_with_the_remedy(whole, tmp_path, monkeypatch, capsys, arguments, words):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'EMPTY').write_text('# only a comment\n\n')
  assert cli.main([str(whole) if a == 'RUN' else a for a in arguments]) == 2
  error = capsys.readouterr().err
  assert error.startswith('veojax: ') and error.count('\n') == 1
  assert all(word in error for word in words)


def test_truncated_weights_are_named(whole, tmp_path):
  copy = tmp_path / 'copy'
  shutil.copytree(whole, copy)
  data = (copy / 'weights.safetensors').read_bytes()
  (copy / 'weights.safetensors').write_bytes(data[:len(data) // 2])
  with pytest.raises(ValueError, match='weights.safetensors is truncated'):
    models.load(copy)


def test_a_workdir_that_cannot_be_written_is_named(folder):
  (folder / 'file').write_text('')
  with pytest.raises(ValueError, match='cannot be written .*--workdir'):
    run.train(tree(folder), folder / 'file' / 'run')


FULL = '''
import json, resource, signal, sys
from veojax import cli
from veojax.training import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
config, workdir, largest = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
run.read_config = lambda path: config
resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
sys.exit(cli.main(['train', '--config', 'x', '--workdir', workdir]))
'''


@pytest.mark.parametrize('told, largest', [(r'checkpoint in .*free some space', None),
                                           (r'\S+full cannot be written .*free some space', 20_000)])
def test_a_full_disk_ends_in_one_line_and_keeps_the_checkpoints_before_it(whole, tmp_path, told, largest):
  """Files can grow to so many bytes in that process (None: to what the model's own take, which is less than a
  checkpoint's): a checkpoint, or not even the model's files, cannot be written; the checkpoints before are whole."""
  workdir = shutil.copytree(whole, tmp_path / 'full')
  (workdir / 'done').unlink()
  kept = sorted(p.name for p in (workdir / 'checkpoints').iterdir())
  config = {**json.loads((whole / 'config.json').read_text()), 'loop': {**DIT['loop'], 'num_steps': 6}}
  largest = largest or max(p.stat().st_size for p in workdir.iterdir() if p.is_file())
  out = subprocess.run([sys.executable, '-c', FULL, json.dumps(config), str(workdir), str(largest)], text=True,
                       capture_output=True, timeout=300,
                       env={**os.environ, 'XLA_FLAGS': '--xla_force_host_platform_device_count=8'})
  assert out.returncode == 2, out.stderr[-2000:]
  lines = [line for line in out.stderr.splitlines() if line.startswith('veojax: ')]
  assert len(lines) == 1 and re.match(f'veojax: {told}', lines[0]), out.stderr[-2000:]
  assert set(kept) <= {p.name for p in (workdir / 'checkpoints').iterdir()}
  run.train({**config}, workdir)
  assert leaves(workdir)[1] == 6 * 8


def test_training_begins_with_the_weights_and_the_tokenizer_of_another_model(folder, whole):
  """Without a step it is that model, in every average; with other captions prepared, it still reads with its own pieces."""
  config = prepare.PrepareConfig(num_clips=8, world=WorldConfig(num_frames=9, height=16, width=16, sample_rate=8000),
                                 vocab_size=320, validation_fraction=0.2)
  prepare.prepare('world', folder / 'other', config=config, workers=1, progress=False)
  changes = {'start': str(whole), 'data': str(folder / 'other'), 'optimizer': {'learning_rate': 0.0}}
  run.train(tree(folder, **changes, loop={**LOOP, 'num_steps': 1, 'ema_decays': (0.0,)}), folder / 'begun')
  first, second = models.load(whole), models.load(folder / 'begun')
  for x, y in zip(jax.tree.leaves(first.dit), jax.tree.leaves(second.dit), strict=True):
    assert np.array_equal(x, y)
  text = 'a large red ball falls'
  assert first.tokenizer.encode(text, 32) == second.tokenizer.encode(text, 32)


def test_batches_of_codecs_trained_inside_count_too_and_what_is_wrong_with_one_is_told_of_it(tmp_path):
  config = run.build(run.read_config('configs/clips.py'))
  inner = [run.inner_run(config, kind) for kind in codecs.KINDS]
  assert all(one.loop.batch_size % run.common_batch(config) == 0 for one in (config, *inner)) and run.common_batch(config) > 1
  config = dataclasses.replace(config, data=str(tmp_path / 'nowhere'))
  with pytest.raises(ValueError, match='configs/clips_video_vae.py, the video codec that is trained first: '):
    run.codec_of(config, tmp_path / 'run', 'video')
  named = dataclasses.replace(config, video_codec='world', audio_codec='')
  assert run.common_batch(named) == named.loop.batch_size


@pytest.mark.parametrize('stage, name', [(VIDEO, 'video'), (AUDIO, 'audio')])
def test_a_codec_begins_with_the_weights_of_another(folder, stage, name):
  tree = {**stage, 'data': str(folder / 'data'), 'start': str(folder / name), 'optimizer': {'learning_rate': 0.0},
          'loop': {**LOOP, 'num_steps': 1, 'ema_decays': (0.0,)}}
  run.train(tree, folder / f'begun_{name}')
  pair = [codecs.load(path, name).vae for path in (folder / name, folder / f'begun_{name}')]
  for x, y in zip(*map(jax.tree.leaves, pair), strict=True):
    assert np.array_equal(x, y)


@pytest.mark.parametrize('changes, words', [
    ({'start': '/nowhere'}, ['/nowhere', 'veojax train']),
    ({'dit': {**DIT['dit'], 'depth': 3}}, ['another model', 'misshapen']),
    ({'video_codec': 'shifted'}, ['another video codec', 'video_codec=']),
])
def test_what_cannot_be_begun_with_is_refused(folder, whole, tmp_path, changes, words):
  if 'video_codec' in changes:
    codec = codecs.load(folder / 'video', 'video')
    dataclasses.replace(codec, mean_C=codec.mean_C + 1).save(tmp_path / 'shifted.safetensors')
    changes = {'video_codec': str(tmp_path / 'shifted.safetensors')}
  with pytest.raises(ValueError) as error:
    run.train(tree(folder, **{'start': str(whole), **changes}), tmp_path / 'refused')
  assert all(word in str(error.value) for word in words)
