"""Stable Video Diffusion against diffusers' own, through the folders that it reads: each part, and the whole
pipeline."""
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import veojax
from tests.zoo import parity
from tests.zoo import small_folders as small
from veojax import cli, sharding
from veojax.generation import export
from veojax.zoo import convert, svd_picture
from veojax.zoo.svd import AUGMENTATION, BYTES_PER_PIXEL, SVD, SVDSettings, fitting_chunk
from veojax.zoo.svd_vae import SVDVAE

THREE = {**small.SVD_UNET, 'block_out_channels': [64, 32, 32], 'num_attention_heads': [4, 2, 1],
         'down_block_types': ['DownBlockSpatioTemporal', *['CrossAttnDownBlockSpatioTemporal'] * 2],
         'up_block_types': [*['CrossAttnUpBlockSpatioTemporal'] * 2, 'UpBlockSpatioTemporal'],
         'layers_per_block': [1, 2, 1], 'transformer_layers_per_block': [1, 2, 1], 'in_channels': 6, 'out_channels': 3,
         'cross_attention_dim': 12}
DEEPER = {**small.SVD_VAE, 'block_out_channels': [32, 64, 32], 'down_block_types': ['DownEncoderBlock2D'] * 3,
          'latent_channels': 3}


def unets(config, folder):
  """(torch, ours, theirs) with the same weights."""
  torch, diffusers = parity.libraries()
  module = small.write_part(folder, SVD.parts['unet'], config, 'diffusion_pytorch_model', 3)
  theirs, report = diffusers.UNetSpatioTemporalConditionModel.from_pretrained(folder, output_loading_info=True)
  assert not report['missing_keys'] and not report['unexpected_keys']
  return torch, module, theirs


def inputs(config, sides, tokens):
  """Two clips of three frames, at two levels with two conditions."""
  return (parity.normal(1, 2, 3, *sides, config['in_channels']), jnp.array([-0.4, 1.3]),
          parity.normal(2, 2, tokens, config['cross_attention_dim']), jnp.array([[6.0, 127, 0.02], [24, 30, 0.3]]))


def theirs_of(torch, unet, x, *others):
  """(v, x) of PyTorch, channels last."""
  x = torch.tensor(np.asarray(x)).requires_grad_()
  out = unet(x.permute(0, 1, 4, 2, 3), *(torch.tensor(np.asarray(a)) for a in others)).sample
  return out.permute(0, 1, 3, 4, 2), x


def test_the_unet_and_its_gradients_are_diffusers(tmp_path):
  torch, module, theirs = unets(small.SVD_UNET, tmp_path / 'a')
  x, *others = inputs(small.SVD_UNET, (6, 4), 1)
  cotangent = parity.normal(4, 2, 3, 6, 4, 4)

  @jax.jit
  def ours(module, x):
    loss = lambda module, x: (lambda v: (jnp.sum(v * cotangent), v))(module(x, *others))
    return jax.value_and_grad(loss, (0, 1), has_aux=True)(module, x)
  with jax.default_matmul_precision('highest'):
    (_, v), (grads, grad_x) = ours(module, x)
  out, x_torch = theirs_of(torch, theirs, x, *others)
  (out * torch.tensor(np.asarray(cotangent))).sum().backward()
  error = parity.relative(v, out)
  print(f'unet: largest relative difference {error:.2e}')
  assert error < 1e-5
  assert parity.relative(grad_x, x_torch.grad) < 1e-4
  middle, theirs_middle = grads.middle, theirs.mid_block
  assert parity.relative(middle.resnets[1].share[...], theirs_middle.resnets[1].time_mixer.mix_factor.grad) < 1e-4
  assert parity.relative(middle.transformer.time_blocks[0].mlp_in.w_down[...].T,
                         theirs_middle.attentions[0].temporal_transformer_blocks[0].ff_in.net[2].weight.grad) < 1e-4
  assert parity.relative(grads.down[0].resnets[0].time.conv1.kernel[...][:, 0].transpose(2, 1, 0)[..., None, None],
                         theirs.down_blocks[0].resnets[0].temporal_res_block.conv1.weight.grad) < 1e-4


def test_a_unet_of_other_stages_and_sides_is_diffusers(tmp_path):
  """Sides that do not halve, several tokens of context, several layers of a transformer."""
  torch, module, theirs = unets(THREE, tmp_path / 'a')
  given = inputs(THREE, (5, 7), 3)
  with jax.default_matmul_precision('highest'), torch.no_grad():
    error = parity.relative(jax.jit(type(module).__call__)(module, *given), theirs_of(torch, theirs, *given)[0])
  print(f'unet: largest relative difference {error:.2e}')
  assert error < 1e-5


@pytest.mark.parametrize('config', [small.SVD_VAE, DEEPER], ids=['two stages', 'three stages'])
def test_the_autoencoder_is_diffusers(config, tmp_path):
  torch, diffusers = parity.libraries()
  module = small.write_part(tmp_path / 'a', SVD.parts['vae'], config, 'diffusion_pytorch_model', 5)
  theirs, report = diffusers.AutoencoderKLTemporalDecoder.from_pretrained(tmp_path / 'a', output_loading_info=True)
  assert not report['missing_keys'] and not report['unexpected_keys']
  pixels = parity.normal(1, 2, 3, 24, 16, 3)
  with jax.default_matmul_precision('highest'), torch.no_grad():
    mean, logvar = jax.jit(SVDVAE.encode)(module, pixels)
    latent = parity.normal(2, *mean.shape)
    decoded = jax.jit(SVDVAE.decode)(module, latent)
    posterior = theirs.encode(parity.frames_first(torch, pixels)).latent_dist
    errors = [parity.relative(ours, parity.frames_last(z, pixels)) for ours, z in (
        (mean, posterior.mean), (logvar, posterior.logvar),
        (decoded, theirs.decode(parity.frames_first(torch, latent), 3).sample))]
  print('mean, log variance, pixels: largest relative differences', *(f'{e:.2e}' for e in errors))
  assert max(errors) < 1e-5


def test_pictures_are_made_as_the_published_pipeline_makes_them():
  torch, _ = parity.libraries()
  from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
  from PIL import Image
  rng = np.random.default_rng(0)
  for size in ((300, 500), (100, 60), (460, 224)):
    x = rng.normal(size=(*size, 3)).astype(np.float32)
    theirs = _resize_with_antialiasing(torch.tensor(x).permute(2, 0, 1)[None], (224, 224))
    assert parity.relative(svd_picture.antialiased(x, 224), theirs[0].permute(1, 2, 0)) < 1e-4
  for size, new in (((50, 70), (32, 48)), ((31, 47), (64, 96)), ((48, 64), (48, 64)), ((60, 90), (64, 80))):
    x = rng.integers(0, 256, (*size, 3), np.uint8)
    theirs = np.asarray(Image.fromarray(x).resize(new[::-1], Image.LANCZOS))
    assert np.abs(svd_picture.resized(x, *new).astype(int) - theirs).max() <= 1
  tall = svd_picture.middle(rng.integers(0, 256, (90, 40, 3), np.uint8), 32, 48)
  assert tall.shape == (27, 40, 3)
  with pytest.raises(ValueError, match='give one of 2 or more'):
    svd_picture.antialiased(np.zeros((1, 50, 3), np.float32), 224)


IMAGE = np.random.default_rng(1).integers(0, 256, (32, 48, 3), np.uint8)
SETTINGS = dict(num_frames=3, height=16, width=24, num_inference_steps=4, noise_aug_strength=0.1, motion_bucket_id=60,
                fps=9.0, guidance_scale=4.0, dtype='float32')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A published folder, small, and its run."""
  folder = tmp_path_factory.mktemp('svd')
  small.write_svd(folder / 'published', shard_bytes=100_000)
  convert.convert(folder / 'published', folder / 'run')
  return folder


@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')  # of diffusers' own scheduler
@pytest.mark.parametrize('clips', [1, 2])
def test_the_pipeline_makes_the_frames_that_diffusers_makes(clips, folder, monkeypatch):
  """The same picture and noises, four steps with growing guidance, through CLIP, autoencoder and U-Net."""
  torch, diffusers = parity.libraries()
  import transformers
  from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as module
  from PIL import Image
  published = folder / 'published'
  parts = {name: getattr(library, SVD.parts[name].class_name).from_pretrained(published / name) for name, library in (
      ('unet', diffusers), ('vae', diffusers), ('image_encoder', transformers))}
  scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(published / 'scheduler')
  pipeline = diffusers.StableVideoDiffusionPipeline(scheduler=scheduler, feature_extractor=None, **parts)
  pipeline.set_progress_bar_config(disable=True)
  mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (
      [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]))
  pipeline.feature_extractor = lambda images, **_: types.SimpleNamespace(pixel_values=(images - mean) / std)
  key = jax.random.key(7)
  drawn = lambda first, shape: torch.tensor(np.stack([jax.random.normal(jax.random.fold_in(key, first + i), shape)
                                                      for i in range(clips)]))
  monkeypatch.setattr(module, 'randn_tensor', lambda *_, **__: drawn(AUGMENTATION, (16, 24, 3)).permute(0, 3, 1, 2))
  options = {k: v for k, v in SETTINGS.items() if k not in ('dtype', 'guidance_scale')}
  with torch.no_grad():
    frames = pipeline([Image.fromarray(IMAGE)] * clips, latents=drawn(0, (3, 8, 12, 4)).permute(0, 1, 4, 2, 3),
                      output_type='np', max_guidance_scale=4.0, **options | {'fps': 9}).frames
  with jax.default_matmul_precision('highest'), jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
    made = veojax.load(folder / 'run').generate([''] * clips, image=IMAGE, seed=7, **SETTINGS)
  ours = np.stack([clip.video for clip in made])
  assert ours.shape == frames.shape == (clips, 3, 16, 24, 3) and frames.std() > 0.1
  error = np.abs(ours / 255 - frames).max() - 0.5 / 255  # rounding to 8 bits is all that is between them
  print(f'frames: largest difference beyond rounding {error:.2e}')
  assert error < 1e-3


def test_a_run_goes_back_to_the_very_files(folder, tmp_path):
  convert.reverse(folder / 'run', tmp_path / 'back')
  before = {p.relative_to(folder / 'published'): p.read_bytes() for p in (folder / 'published').rglob('*') if p.is_file()}
  after = {p.relative_to(tmp_path / 'back'): p.read_bytes() for p in (tmp_path / 'back').rglob('*') if p.is_file()}
  assert len([p for p in before if p.suffix == '.safetensors']) > 4 and before == after


def test_generate_takes_the_projects_arguments(folder, tmp_path, capsys):
  """With all devices: tokens and the outputs of convolutions are shared out."""
  run, picture = str(folder / 'run'), tmp_path / 'a.png'
  picture.write_bytes(export.png(IMAGE))
  options = SETTINGS | {'num_inference_steps': 1, 'guidance_scale': 1.0}
  assert cli.main(['generate', '--model', run, '--image', str(picture), '--output', str(tmp_path / 'a.mp4'),
                   *(f'--{name}={value}' for name, value in options.items())]) == 0
  clip = veojax.read(tmp_path / 'a.mp4')
  assert clip.video.shape == (3, 16, 24, 3) and clip.fps == 9
  assert cli.main(['info', '--model', run]) == 0
  told = capsys.readouterr().out
  for word in ('Stable Video Diffusion', 'Stability AI', 'image to video', 'multiples of 8', 'motion_bucket_id: 127',
               'num_frames: 5'):
    assert word in told
  model = veojax.load(folder / 'run')
  for given, message in (({'height': 20}, 'multiples of 8'), ({'chunk': 0}, 'positive'), ({'fps': 0}, 'positive'),
                         ({'noise_aug_strength': -1}, '0 for none'), ({'motion_bucket': 3}, "'motion_bucket_id'")):
    with pytest.raises(ValueError, match=message):
      model.generate(image=IMAGE, **given)
  with pytest.raises(ValueError, match='give image='):
    model.generate()


def test_as_many_frames_are_decoded_at_once_as_fit():
  """All where they do, or where nothing is known of it; at least one."""
  settings = SVDSettings()
  assert [fitting_chunk(settings, free) for free in (None, 100 * 2 ** 30, 1)] == [25, 25, 1]
  chunks = [fitting_chunk(settings, gib * 2 ** 30) for gib in (8, 16, 32)]
  assert chunks == sorted(set(chunks)) and all(
      n * settings.height * settings.width * BYTES_PER_PIXEL <= gib * 2 ** 30 for n, gib in zip(chunks, (8, 16, 32)))
  assert fitting_chunk(SVDSettings(height=288, width=512), 8 * 2 ** 30) >= 4 * chunks[0]


def test_what_is_sampled_otherwise_is_refused(folder, tmp_path):
  shutil.copytree(folder / 'run', tmp_path / 'run')
  path = tmp_path / 'run' / 'scheduler' / 'scheduler_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'prediction_type': 'epsilon'}))
  with pytest.raises(ValueError, match="prediction_type='epsilon'"):
    veojax.load(tmp_path / 'run')
  for change, message in (({'num_attention_heads': [3, 4]}, 'multiples'), ({'layers_per_block': [1]}, '2 values'),
                          ({'projection_class_embeddings_input_dim': 16}, 'make 24')):
    with pytest.raises(ValueError, match=message):
      SVD.parts['unet'].build(small.SVD_UNET | change, 'config.json')
