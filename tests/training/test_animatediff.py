"""Fine-tuning a small AnimateDiff: motion modules learn, the image model stays, and the run generates."""
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import veojax
from tests.zoo import small_folders as small
from veojax import cli, sharding
from veojax.data import datasets, media, text_features
from veojax.models import weights
from veojax.training import animatediff, run, step
from veojax.zoo import animatediff as animatediff_zoo
from veojax.zoo import convert, text_encoders
from veojax.zoo.animatediff_unet import MotionUNetConfig

LOOP = {'num_steps': 2, 'batch_size': 2, 'ema_decays': (0.0,), 'log_every': 1, 'evaluate_every': 2, 'sample_every': 0,
        'save_every': 0, 'num_threads': 1}
# One stage, with attention to the text alone in its middle: what takes time here is to compile a step.
UNET = {**small.IMAGE_UNET, 'down_block_types': ['DownBlock2D'], 'up_block_types': ['UpBlock2D'],
        'block_out_channels': [32]}
MOTION = {**small.MOTION, 'block_out_channels': [32], 'use_motion_mid_block': False}
SIZES = {'num_frames': 4, 'height': 16, 'width': 16}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Published folders, their run, and a data set."""
  folder = tmp_path_factory.mktemp('animatediff')
  small.write_animatediff(folder, UNET, MOTION)
  convert.convert(folder / 'sd', folder / 'run', parts={'motion_adapter': str(folder / 'adapter')})
  assert cli.main(['prepare', '--source', 'world', '--output', str(folder / 'data'), '--num_clips=10',
                   '--world.height=24', '--world.width=16', '--world.num_frames=5', '--world.sample_rate=0',
                   '--validation_fraction=0.2', '--vocab_size=400', '--workers=1']) == 0
  return folder


def sizes(config):
  return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k != 'sample_size'}


def tree(folder, **changes):
  return {'stage': 'animatediff', 'model': str(folder / 'run'), 'data': str(folder / 'data'), **SIZES,
          'unet': sizes(UNET), 'motion': sizes(MOTION),
          'vae': sizes(small.KL_VAE), 'loop': LOOP, 'optimizer': {'learning_rate': 1e-3, 'warmup_steps': 0}, **changes}


@pytest.mark.slow
def test_training_changes_the_motion_modules_alone(folder, one_device, tmp_path):
  drawn = {'prompts': ('a ball',), 'settings': {**SIZES, 'num_inference_steps': 1, 'dtype': 'float32'}}
  metrics = run.train(tree(folder, loop={**LOOP, 'sample_every': 2}, **drawn), tmp_path / 'mine')
  assert np.isfinite(metrics['loss'])
  for ending in ('mp4', 'png'):
    tags = media.probe(tmp_path / 'mine' / 'samples' / f'0000002_0.{ending}').tags
    assert tags['title'] == 'a ball' and tags['artist'] == 'mine' and 'AI-generated' in tags['comment']
  base, tuned = veojax.load(folder / 'run'), veojax.load(tmp_path / 'mine')
  moved = {name: jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), *(
      model.run.parts[name] for model in (base, tuned))) for name in ('unet', 'motion_adapter')}
  assert max(jax.tree.leaves(moved['unet'])) == 0 and 0 < max(jax.tree.leaves(moved['motion_adapter'])) < 0.1
  assert moved['motion_adapter'].down[0][0].blocks[0].pe.get_value() == 0
  convert.reverse(tmp_path / 'mine', tmp_path / 'back')
  before, after = small.load_tensors(folder / 'adapter'), small.load_tensors(tmp_path / 'back' / 'motion_adapter')
  assert [(k, v.shape, v.dtype) for k, v in before.items()] == [(k, v.shape, v.dtype) for k, v in after.items()]
  record = json.loads((tmp_path / 'mine' / 'published.json').read_text())
  assert record['fine-tuned from'] == str(folder / 'run')
  with sharding.use(sharding.MeshConfig(), jax.devices()[:1]):
    clip = tuned.generate('a ball', num_inference_steps=1, dtype='float32', **SIZES)
  assert clip.video.shape == (4, 16, 16, 3)


def test_a_saved_pipeline_learns_in_both_its_files(folder, one_device, tmp_path):
  """The U-Net's file holds the motion modules too; its image half stays, to the bit."""
  saved, unet = shutil.copytree(folder / 'sd', tmp_path / 'saved'), dict(UNET)
  shutil.rmtree(saved / 'unet')
  shutil.copytree(folder / 'adapter', saved / 'motion_adapter')
  fields = {field.name for field in dataclasses.fields(MotionUNetConfig)}
  kinds = {name: [kind.replace('2D', 'Motion') for kind in unet[name]]
           for name in ('down_block_types', 'up_block_types')}
  small.write_part(saved / 'unet', animatediff_zoo.SAVED.parts['unet'], {
      **{name: value for name, value in unet.items() if name in fields}, **kinds,
      'num_attention_heads': unet['attention_head_dim'], 'motion_max_seq_length': 8, 'motion_num_attention_heads': 2,
      'use_motion_mid_block': False}, 'diffusion_pytorch_model', 5)
  index = json.loads((saved / 'model_index.json').read_text())
  (saved / 'model_index.json').write_text(json.dumps({
      **index, '_class_name': 'AnimateDiffPipeline', 'motion_adapter': ['diffusers', 'MotionAdapter'],
      'unet': ['diffusers', 'UNetMotionModel'], 'scheduler': ['diffusers', 'DDIMScheduler']}))
  (saved / 'scheduler' / 'scheduler_config.json').write_text(json.dumps({
      '_class_name': 'DDIMScheduler', 'beta_start': 0.00085, 'beta_end': 0.012, 'clip_sample': False,
      'set_alpha_to_one': False, 'steps_offset': 1, 'timestep_spacing': 'linspace'}))
  convert.convert(saved, tmp_path / 'run')
  stage = animatediff.AnimateDiffStage(run.build(tree(folder, model=str(tmp_path / 'run'))), tmp_path)
  before, key = stage.pipeline.network(), jax.random.key(0)
  with sharding.use(sharding.MeshConfig()):
    model = stage.begin(stage.make_model(key))
  model.motion = jax.tree.map(lambda x: x + 1, model.motion)
  stage.export(model, tmp_path / 'mine')
  tuned = veojax.load(tmp_path / 'mine')
  same = lambda *trees: jax.tree.map(np.testing.assert_array_equal, *(weights.names(tree) for tree in trees))
  same(tuned.pipeline.network().image, before.image)
  same(tuned.pipeline.network().motion, model.motion)
  same(tuned.run.parts['motion_adapter'], model.motion)
  convert.reverse(tmp_path / 'mine', tmp_path / 'back')
  for name in ('unet', 'motion_adapter'):
    old, new = small.load_tensors(saved / name), small.load_tensors(tmp_path / 'back' / name)
    assert old.keys() == new.keys()


def test_rows_hold_what_they_should(folder, tmp_path):
  """Latents are the codec's, captions CLIP's, and a caption that is dropped is that of no text."""
  stage = animatediff.AnimateDiffStage(run.build(tree(folder, caption_dropout=1.0, dtype='float32')), tmp_path)
  row, clip = stage.held_out[0], stage.held_out.clips_of(0)[0]
  dataset = datasets.open_dataset(folder / 'data', 'validation')
  codec = stage.pipeline.codec(4)
  np.testing.assert_allclose(row['latent'], codec.encode(dataset[clip].video)[:4, 2:10], atol=1e-2)
  np.testing.assert_allclose(row['text'], stage.pipeline.embed([dataset.text(clip)], 'float32')[0], atol=0.05)
  np.testing.assert_array_equal(stage.source[0]['text'], stage.empty)
  assert np.abs(stage.empty - row['text']).max() > 0.1


def test_loss_of_the_truth_is_none_and_the_image_model_has_no_gradient(folder):
  """Of a network that answers eps; and the optimizer holds moments of the motion modules alone."""
  config = run.build(tree(folder, dtype='float32'))
  stage = animatediff.AnimateDiffStep(config)
  key, x0 = jax.random.key(0), jax.random.normal(jax.random.key(1), (3, *config.latent_shape))
  batch = {'latent': x0, 'text': jnp.zeros((3, 77, 32))}

  class Truth:
    image = motion = jnp.zeros(())
  seen = {}

  def answer(image, motion):
    def predict(x, i_B, text):
      eps = jax.random.normal(jax.random.split(key)[1], x0.shape)
      alphabar = jnp.asarray(np.cumprod(1 - np.linspace(0.00085, 0.012, 1000)), jnp.float32)[i_B.astype(int)]
      seen['x'] = jnp.sqrt(alphabar)[:, None, None, None, None] * x0 + jnp.sqrt(1 - alphabar)[
          :, None, None, None, None] * eps
      np.testing.assert_allclose(x, seen['x'], atol=1e-5)
      return eps
    return predict
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(animatediff, 'MotionUNet', answer)
    assert float(stage.loss(Truth(), batch, key)[0]) == 0 and 'x' in seen
  with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=4, tensor=2))):
    state = jax.eval_shape(lambda key: step.init(stage.make_model, stage.make_optimizer(), key), key)
  motion = sum(x.size for x in jax.tree.leaves(state.model.motion))
  assert motion < sum(x.size for x in jax.tree.leaves(state.opt)) < 2.1 * motion


def test_stored_features_are_those_of_the_run(folder):
  encode = text_encoders.open_encoder(folder / 'sd' / 'text_encoder', 16)
  pipeline = veojax.load(folder / 'run').pipeline
  for one, other in zip(encode(['a ball', '']), pipeline.embed(['a ball', ''], 'float32')):
    np.testing.assert_allclose(one, other, atol=1e-5)
  assert text_features.read_record(text_encoders.place(folder / 'data', 'train')) is None


def test_what_does_not_fit_is_refused(folder, tmp_path):
  for changes, message in (({'model': ''}, '--config.model=RUN'), ({'num_frames': 6}, 'no clip of 8 has 6 frames'),
                           ({'num_frames': 9}, 'count up to 8 frames'), ({'height': 12}, 'multiples of 8'),
                           ({'caption_dropout': 2.0}, 'caption_dropout'), ({'text_tokens': 20}, 'set it to that'),
                           ({'motion': {**sizes(MOTION), 'block_out_channels': (32, 32)}}, 'were made for it'),
                           ({'vae': {**sizes(small.KL_VAE), 'layers_per_block': 2}}, 'vae.layers_per_block=2, but')):
    with pytest.raises(ValueError, match=message):
      run.train(tree(folder, loop={**LOOP, 'batch_size': 8}, **changes), tmp_path / 'new')
    if (tmp_path / 'new' / 'config.json').exists():
      (tmp_path / 'new' / 'config.json').unlink()
