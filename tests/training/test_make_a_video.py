"""Make-A-Video in small, part by part: from a data set to clips by all parts."""
import dataclasses
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import veojax
from tests.training.interrupted import stopped_at
from veojax import cli, sharding
from veojax import config as door
from veojax.data import datasets, media
from veojax.data.tokenizer import Tokenizer
from veojax.generation import cascade
from veojax.models import weights
from veojax.training import journal, run, step
from veojax.training.make_a_video import MakeAVideoStage, MakeAVideoStep
from veojax.training.make_a_video_rows import ClipSource, fitted

PARTS = 'image', 'video', 'interpolation', 'super_resolution'
LOOP = {'num_steps': 2, 'batch_size': 8, 'ema_decays': (0.0,), 'log_every': 1, 'evaluate_every': 0, 'sample_every': 0,
        'save_every': 0, 'num_threads': 0}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A data set of 8 clips of 9 frames of 16 x 16."""
  folder = tmp_path_factory.mktemp('make_a_video')
  assert cli.main(['prepare', '--source', 'world', '--output', str(folder / 'data'), '--num_clips=8',
                   '--world.height=16', '--world.width=16', '--world.num_frames=9', '--world.sample_rate=0',
                   '--validation_fraction=0', '--vocab_size=400', '--workers=1']) == 0
  return folder


def tree(folder, part, **changes):
  return {'stage': 'make_a_video', 'part': part, 'data': str(folder / 'data'), 'num_frames': 3, 'height': 8, 'width': 8,
          'embedder': {'embedding_dim': 6, 'widths': (8,), 'groups': 4, 'prior_width': 8, 'prior_depth': 1,
                       'prior_head_dim': 8,
                       'text': {'vocab_size': 400, 'width': 8, 'depth': 1, 'num_heads': 2, 'mlp_width': 8}},
          'unet': {'widths': (8,), 'attention': (True,), 'depth': 1, 'head_dim': 8, 'groups': 4, 'condition_dim': 6,
                   'num_tokens': 2},
          'interpolation': {'num_frames': 5, 'factor': 2},
          'super_resolution': {
              'num_frames': 1, 'height': 16, 'width': 16, 'factor': 2,
              'unet': {'widths': (8,), 'attention': (False,), 'depth': 1, 'groups': 4, 'condition_dim': 8,
                       'given_channels': 3}},
          'objective': {'process': 'vp_cosine', 'prediction': 'v'}, 'dtype': 'float32', 'max_text': 40,
          'frame_skips': (1, 2), 'settings': {'num_inference_steps': 2, 'prior_steps': 2}, 'loop': LOOP,
          'optimizer': {'learning_rate': 3e-3, 'warmup_steps': 0, 'schedule': 'constant'}, **changes}


def means(workdir, name):
  """Of a metric over the first and over the last ten steps."""
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  found = [line[name] for line in lines if 'grad_norm' in line]
  return np.mean(found[:10]), np.mean(found[-10:])


def changed(before: dict, after: dict) -> set[str]:
  return {name for name in before.keys() & after.keys() if np.abs(before[name] - after[name]).max() > 0}


@pytest.mark.unet
def test_from_pictures_to_clips(folder, one_device):
  """Every part begins with what the one before it has learned, and learns what it should."""
  start = lambda name: {'start': str(folder / name)}
  run.train(tree(folder, 'image', loop={**LOOP, 'num_steps': 60}), folder / 'image')
  for name in ('diffusion_loss', 'contrast_loss', 'loss'):
    first, last = means(folder / 'image', name)
    assert last < 0.95 * first
  run.train(tree(folder, 'video', prompts=('a red ball',), loop={**LOOP, 'sample_every': 2}, **start('image')),
            folder / 'video')
  for ending in ('mp4', 'png'):
    tags = media.probe(folder / 'video' / 'samples' / f'0000002_0.{ending}').tags
    assert tags['title'] == 'a red ball' and tags['artist'] == 'video' and 'AI-generated' in tags['comment']
  pictures, clips = cascade.load(folder / 'image'), cascade.load(folder / 'video')
  assert not changed(pictures.flat('embedder'), clips.flat('embedder'))  # no text, and nothing of it is learned
  decoder = clips.flat('decoder')
  assert 'conv_in.kernel' in changed(pictures.flat('decoder'), decoder)
  assert np.abs(decoder['conv_in.frames.kernel'][1, 0] - np.eye(8)).max() > 0
  assert np.abs(decoder['down.0.transformers.0.blocks.0.frames.w_out']).max() > 0
  assert np.abs(decoder['fps.linear_2.w']).max() > 0
  close = [np.abs(decoder[name] - value).max() for name, value in pictures.flat('decoder').items()]
  assert max(close) < 0.02  # it began with them
  run.train(tree(folder, 'interpolation', **start('video')), folder / 'smooth')
  between = cascade.load(folder / 'smooth').flat('interpolation')
  assert max(np.abs(between[name] - value).max() for name, value in decoder.items() if name != 'conv_in.kernel') < 0.02
  assert 0 < np.abs(between['conv_in.kernel'][:, :, 3:]).max() < 0.02
  run.train(tree(folder, 'super_resolution', **start('smooth')), folder / 'large')
  assert cli.main(['info', '--model', str(folder / 'large')]) == 0
  model = veojax.load(folder / 'large')
  with sharding.use(sharding.MeshConfig(), jax.devices()[:1]):
    clip = model.generate('a red ball', seed=3)
    shorter = model.generate(['a red ball'], seed=3, num_frames=4)[0]
    check_pieces(model)
  assert clip.video.shape == (5, 16, 16, 3) and clip.audio is None and clip.fps == 8.0
  assert shorter.video.shape == (4, 16, 16, 3)
  np.testing.assert_array_equal(shorter.video, clip.video[:4])
  assert veojax.load(folder / 'image').info()['tasks'] == 'text to image'
  with pytest.raises(ValueError, match='makes 16x16'):
    model.generate('a ball', height=24)
  with pytest.raises(ValueError, match='guidance_scale'):
    model.generate('a ball', guidance_scal=2.0)
  with pytest.raises(ValueError, match='only pictures'):
    pictures.generate('a ball', num_frames=3)


@pytest.mark.slow
def test_resumed_equals_uninterrupted_bit_for_bit(folder, one_device, tmp_path):
  """Stopped by SIGTERM at a step that is no checkpoint's, and started again; the part that compiles fastest."""
  begun_without_weights(folder, tmp_path / 'begun')
  config = tree(folder, 'super_resolution', start=str(tmp_path / 'begun'),
                loop={**LOOP, 'num_steps': 4, 'ema_decays': (0.5,), 'save_every': 3})
  run.train(config, tmp_path / 'whole')
  with stopped_at(2):
    run.train(config, tmp_path / 'resumed')
  run.train(config, tmp_path / 'resumed')
  whole, resumed = (cascade.load(tmp_path / name).flat('super_resolution_0') for name in ('whole', 'resumed'))
  assert whole.keys() == resumed.keys() and not changed(whole, resumed)
  losses = [{line['step']: line['loss'] for line in journal.read(tmp_path / folder) if 'loss' in line}
            for folder in ('whole', 'resumed')]
  assert losses[0] == losses[1] and sorted(losses[0]) == [1, 2, 3, 4]


def begun_without_weights(folder, path) -> cascade.CascadeConfig:
  """A run of the part image as those after it are told of it; what it has learned is not there."""
  stage = MakeAVideoStage(run.build(tree(folder, 'image')), path)
  path.mkdir(exist_ok=True)
  for name in ('embedder', 'decoder'):
    weights.save(path / f'{name}.safetensors', {'x': jnp.zeros(1)}, {})
  stage.tokenizer.save(path / cascade.TOKENIZER)
  (path / cascade.RECORD).write_text(json.dumps(door.to_tree(stage.made)))
  return stage.made


def check_pieces(model):
  """Given frames come back; frames enlarged alone begin at the same noise, clips at their own."""
  keys = jax.random.split(jax.random.key(0), 2)
  making = cascade._Making(model, model.config.settings, keys, 4.0)
  x = np.random.default_rng(0).uniform(-1, 1, (2, 4, 8, 8, 3)).astype(np.float32)
  made = making.interpolated(x, np.zeros((2, 6), np.float32))
  assert made.shape == (2, 7, 8, 8, 3)
  np.testing.assert_array_equal(made[:, ::2], x)
  assert np.abs(made[:, 1::2]).min(axis=(2, 3, 4)).max() > 0 and np.abs(made[:, 1::2]).max() <= 1
  still = np.broadcast_to(x[:1, :1], (2, 3, 8, 8, 3))
  large = making.larger(still, 'super_resolution_0', model.config.super_resolution[0], 3)
  assert large.shape == (2, 3, 16, 16, 3)
  np.testing.assert_array_equal(large[:, 1:], np.repeat(large[:, :1], 2, 1))
  assert np.abs(large[0] - large[1]).max() > 0.01


@pytest.mark.parametrize('part, frames', [(part, 1) for part in PARTS] + [('super_resolution', 3)])
def test_parts_step_on_a_mesh(folder, part, frames):
  """Shapes and layouts alone, of training and of sampling."""
  made = tree(folder, part)
  made['super_resolution'] = {**made['super_resolution'], 'num_frames': frames}
  stage = MakeAVideoStep(run.build(made))
  assert ('text' in stage.blank()) == (part == 'image')
  with sharding.use(sharding.MeshConfig(data=2, fsdp=2, tensor=2)) as mesh:
    tx = stage.make_optimizer()
    state = jax.eval_shape(lambda key: step.init(stage.make_model, tx, key), jax.random.key(0))
    batch = jax.tree.map(lambda x, spec: jax.ShapeDtypeStruct(
        (1, 4, *np.shape(x)), x.dtype, sharding=sharding.named(mesh, P(None, *spec))), stage.blank(),
        stage.batch_spec(stage.blank()))
    new, metrics = jax.eval_shape(step.make(stage.loss, tx, (0.9,)), state, jax.random.key(0), batch)
    function, arguments, options, _ = stage.sampling(mesh)
    made = jax.eval_shape(lambda *arguments: function(*arguments, **options), *arguments)
  assert made.shape == (4, *stage.sampled_shape()) and made.sharding.spec[0] == sharding.ROWS
  specs = lambda model: {name: x.sharding.spec for name, x in weights.names(model).items()}
  assert specs(new.model) == specs(state.model)
  learned = state.model.unet if part in ('video', 'interpolation') else state.model
  size = sum(x.size for x in jax.tree.leaves(learned))
  assert size < sum(x.size for x in jax.tree.leaves(state.opt)) < 2.1 * size and 'loss' in metrics


def source(folder, told='picture', shape=(3, 8, 8), skips=(1, 2, 4), **changes):
  dataset = datasets.open_dataset(folder / 'data')
  return ClipSource([dataset], [1.0], shape, skips, told, **{'seed': 0, 'dropout': 0.5, 'num_rows': 0, **changes})


def test_rows_are_frames_of_their_clip(folder):
  """A pure function of the row's number; at the rate that they say; each clip once an epoch."""
  rows, dataset = source(folder), datasets.open_dataset(folder / 'data')
  again = pickle.loads(pickle.dumps(rows))
  rates, kept = set(), set()
  for row in range(16):
    made, clip = rows[row], rows.clips_of(row)[0]
    jax.tree.map(np.testing.assert_array_equal, made, again[row])
    small, skip = fitted(dataset[clip].video, 8, 8), round(dataset[clip].fps / float(made['fps']))
    starts = [s for s in range(9 - 2 * skip) if (small[s:s + 2 * skip + 1:skip] == made['video']).all()]
    assert starts and any((made['picture'] == frame).all() for frame in made['video'])
    rates.add(skip)
    kept.add(float(made['kept']))
  assert rates == {1, 2, 4} and kept == {0.0, 1.0}
  assert sorted(rows.clips_of(row)[0] for row in range(8)) == list(range(8))
  text = source(folder, 'text', (1, 8, 8), tokenizer=Tokenizer.load(dataset.tokenizer_path),
                max_text=24)[0]['text']
  assert text.shape == (24,) and (text >= 0).sum() > 3


def test_motion_grows_in_the_course_of_training(folder):
  rows = source(folder, num_rows=4000)
  mean = lambda start: np.mean([rows.skip(9, start, np.random.default_rng(i)) for i in range(200)])
  assert mean(0) < 1.7 < 2.5 < mean(4000)


def test_frames_are_means_of_whole_pixels():
  video = np.arange(2 * 5 * 8 * 3).reshape(2, 5, 8, 3).astype(np.uint8)
  small = fitted(video, 2, 3)
  assert small.shape == (2, 2, 3, 3)
  np.testing.assert_array_equal(small[0, 0, 0], np.round(video[0, :2, 1:3].reshape(4, 3).mean(0)))


def test_data_sets_are_mixed_by_weight(folder):
  dataset = datasets.open_dataset(folder / 'data')
  rows = ClipSource([dataset, dataset], [1.0, 0.25], (1, 8, 8), (1,), '', 0, 0.0, 0)
  assert rows.rows_per_epoch == 10
  epoch = [rows.places[rows.clips_of(row)[0]][0] for row in range(10)]
  assert sorted(epoch) == [0] * 8 + [1] * 2


def test_what_does_not_fit_is_refused(folder, tmp_path):
  for part, changes, message in (
      ('video', {}, '--config.start=RUN'), ('video', {'num_frames': 1}, 'at least 2'),
      ('image', {'height': 32, 'width': 32}, 'has 1 frames of 32x32 and a caption'),
      ('image', {'dropout': 2.0}, 'dropout'), ('image', {'frame_skips': ()}, 'frame_skips'),
      ('image', {'objective': {'process': 'flow', 'prediction': 'eps'}}, 'does not determine'),
      ('image', {'unet': {**tree(folder, 'image')['unet'], 'condition_dim': 8}}, 'the embedding has 6'),
      ('part', {}, 'config.part'), ('image', {'start': str(folder / 'data')}, 'holds no parts')):
    with pytest.raises(ValueError, match=message):
      MakeAVideoStage(run.build(tree(folder, part, **changes)), tmp_path)


def test_a_part_must_fit_those_before_it(folder, tmp_path):
  """Told without a weight being read."""
  made = begun_without_weights(folder, tmp_path)
  large = tree(folder, 'image')['super_resolution']
  for part, changes, message in (
      ('interpolation', {}, 'train the part video first'), ('video', {'height': 4, 'width': 4}, 'makes 8x8'),
      ('image', {'max_text': 20}, 'max_text is 20'),
      ('super_resolution', {'super_resolution': {**large, 'height': 8, 'width': 8}}, 'has 8x8; give 2 times')):
    with pytest.raises(ValueError, match=message):
      MakeAVideoStage(run.build(tree(folder, part, start=str(tmp_path), **changes)), tmp_path)
  # Frames alone first, then clips of the same sides: the one network goes on.
  again = dataclasses.replace(made, super_resolution=(run.build(tree(folder, 'super_resolution')).network,))
  (tmp_path / cascade.RECORD).write_text(json.dumps(door.to_tree(again)))
  weights.save(tmp_path / 'super_resolution_0.safetensors', {'x': jnp.zeros(1)}, {})
  going_on = MakeAVideoStage(run.build(tree(folder, 'super_resolution', start=str(tmp_path),
                                            super_resolution={**large, 'num_frames': 3})), tmp_path)
  assert going_on.place == 'super_resolution_0' and [p.num_frames for p in going_on.made.super_resolution] == [3]
  (tmp_path / 'decoder.safetensors').unlink()
  with pytest.raises(ValueError, match='lacks decoder'):
    veojax.load(tmp_path)
