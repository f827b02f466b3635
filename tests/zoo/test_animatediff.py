"""AnimateDiff against diffusers' own, through the folders that it reads: each part, gradients and the pipelines."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import veojax
from tests.zoo import parity
from tests.zoo import small_folders as small
from veojax import cli, sharding
from veojax.generation import export
from veojax.models import weights
from veojax.zoo import convert, lora, motion_module, part_checkpoint, weight_table
from veojax.zoo.animatediff import SPARSECTRL, AnimateDiffSettings
from veojax.zoo.animatediff_unet import MotionUNet

DEEPER = {**small.IMAGE_UNET, 'down_block_types': ['CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'],
          'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D'],
          'block_out_channels': [16, 32, 32], 'layers_per_block': 2, 'attention_head_dim': [2, 4, 4],
          'use_linear_projection': True, 'transformer_layers_per_block': 2, 'norm_num_groups': 8}
DEEPER_MOTION = {**small.MOTION, 'block_out_channels': [16, 32, 32], 'motion_layers_per_block': 2,
                 'motion_norm_num_groups': 8, 'use_motion_mid_block': False, 'motion_num_attention_heads': 4}
SKETCH = {**small.CONTROL, 'conditioning_channels': 3, 'use_simplified_condition_embedding': False,
          'concat_conditioning_mask': False, 'block_out_channels': [16, 32], 'norm_num_groups': 8,
          'layers_per_block': 2, 'conditioning_embedding_out_channels': [8, 16, 24], 'use_linear_projection': True}


def from_folder(cls, folder):
  theirs, report = cls.from_pretrained(folder, output_loading_info=True)
  assert not report['missing_keys'] and not report['unexpected_keys']
  return theirs.eval()


def of_frames(torch, text, num_frames):
  return torch.tensor(np.asarray(text)).repeat_interleave(num_frames, 0)


def channels_first(torch, x_BTHWC):
  return torch.tensor(np.asarray(x_BTHWC)).permute(0, 4, 1, 2, 3)


@pytest.mark.parametrize('image, motion, sides', [(small.IMAGE_UNET, small.MOTION, (8, 6)),
                                                  (DEEPER, DEEPER_MOTION, (5, 7))], ids=['two stages', 'odd sides'])
def test_the_network_is_diffusers(image, motion, sides, tmp_path):
  """eps and gradients, at two steps, for two texts."""
  torch, diffusers = parity.libraries()
  halves = [small.write_part(tmp_path / name, SPARSECTRL.parts[name], tree, 'diffusion_pytorch_model', seed)
            for seed, (name, tree) in enumerate((('unet', image), ('motion_adapter', motion)))]
  theirs = diffusers.UNetMotionModel.from_unet2d(from_folder(diffusers.UNet2DConditionModel, tmp_path / 'unet'),
                                                 from_folder(diffusers.MotionAdapter, tmp_path / 'motion_adapter'))
  theirs.eval()
  x, text, t = parity.normal(1, 2, 4, *sides, 4), parity.normal(2, 2, 7, 32), jnp.array([3.0, 700.0])
  x_torch, network = channels_first(torch, x).requires_grad_(), MotionUNet(*halves)
  out = theirs(x_torch, torch.tensor(np.asarray(t)), of_frames(torch, text, 4)).sample
  error = parity.relative(jax.jit(lambda network, x: network(x, t, text))(network, x), out.permute(0, 2, 3, 4, 1))
  print(f'network: largest relative difference {error:.2e}')
  assert error < 1e-5
  if image is not small.IMAGE_UNET:
    return
  cotangent = parity.normal(3, *x.shape)
  loss = lambda network, x: jnp.sum(network(x, t, text) * cotangent)
  gradient, gradient_x = jax.jit(jax.grad(loss, (0, 1)))(network, x)
  (out * channels_first(torch, cotangent)).sum().backward()
  assert parity.relative(gradient_x, x_torch.grad.permute(0, 2, 3, 4, 1)) < 1e-4
  ours, block = gradient.motion.up[1][0].blocks[0], theirs.up_blocks[1].motion_modules[0].transformer_blocks[0]
  assert parity.relative(ours.attn2.w_q[...].reshape(len(ours.attn2.w_q), -1).T, block.attn2.to_q.weight.grad) < 1e-4
  assert parity.relative(ours.mlp.w_down[...].T, block.ff.net[2].weight.grad) < 1e-4
  assert not np.any(ours.pe[...])


@pytest.mark.parametrize('config', [small.CONTROL, SKETCH], ids=['latents', 'pixels'])
def test_the_control_network_is_diffusers(config, tmp_path):
  torch, diffusers = parity.libraries()
  module = small.write_part(tmp_path / 'a', SPARSECTRL.parts['controlnet'], config, 'diffusion_pytorch_model', 4)
  theirs = from_folder(diffusers.SparseControlNetModel, tmp_path / 'a')
  shrink = 1 if config is small.CONTROL else 4
  condition = parity.normal(1, 2, 4, 8 * shrink, 4 * shrink, config['conditioning_channels'])
  mask = jnp.array([1, 0, 0, 1])
  mask = jnp.broadcast_to(mask[None, :, None, None, None].astype(jnp.float32), (*condition.shape[:4], 1))
  text, t = parity.normal(2, 2, 7, 32), jnp.array([3.0, 700.0])
  given = jnp.concatenate([condition, mask], -1) if config['concat_conditioning_mask'] else condition
  with torch.no_grad():
    skips, middle = jax.jit(lambda m, *a: m(*a))(module, given, t, text, 0.7)
    out = theirs(torch.zeros(2, 4, 4, 8, 4), torch.tensor(np.asarray(t)), of_frames(torch, text, 4),
                 channels_first(torch, condition), 0.7, conditioning_mask=channels_first(torch, mask))
  errors = [parity.relative(ours, parity.frames_last(z, ours)) for ours, z in
            zip((*skips, middle), (*out.down_block_res_samples, out.mid_block_res_sample), strict=True)]
  print(f'control: largest relative difference {max(errors):.2e}')
  assert max(errors) < 1e-5


def test_positions_are_those_that_are_published():
  parity.libraries()
  from diffusers.models.embeddings import SinusoidalPositionalEmbedding
  np.testing.assert_allclose(motion_module.positions(32, 320), SinusoidalPositionalEmbedding(320).pe[0], atol=1e-5)


PROMPTS = ['a red ball falls', 'the floor of the red café']
SETTINGS = dict(num_frames=6, height=16, width=24, num_inference_steps=4, guidance_scale=3.0)


@pytest.fixture(scope='module')
def model(animatediff_folder, tmp_path_factory):
  """Through the command, without SparseCtrl."""
  output = tmp_path_factory.mktemp('run') / 'animatediff'
  assert cli.main(['convert', '--source', str(animatediff_folder / 'sd'), '--output', str(output),
                   '--motion_adapter', str(animatediff_folder / 'adapter')]) == 0
  return veojax.load(output)


@pytest.fixture(scope='module')
def controlled(animatediff_folder, tmp_path_factory):
  output = tmp_path_factory.mktemp('run') / 'sparsectrl'
  convert.convert(animatediff_folder / 'sd', output, parts={'motion_adapter': str(animatediff_folder / 'adapter'),
                                                            'controlnet': str(animatediff_folder / 'control')})
  return veojax.load(output)


def their_pipeline(folder, controlled=False):
  torch, diffusers = parity.libraries()
  import transformers
  sd = folder / 'sd'
  scheduler = diffusers.DDIMScheduler.from_pretrained(sd / 'scheduler', clip_sample=False, beta_schedule='linear',
                                                      timestep_spacing='linspace', steps_offset=1)
  parts = dict(
      vae=from_folder(diffusers.AutoencoderKL, sd / 'vae'), scheduler=scheduler,
      text_encoder=transformers.CLIPTextModel.from_pretrained(sd / 'text_encoder'),
      tokenizer=transformers.CLIPTokenizer.from_pretrained(sd / 'tokenizer'),
      unet=from_folder(diffusers.UNet2DConditionModel, sd / 'unet'),
      motion_adapter=from_folder(diffusers.MotionAdapter, folder / 'adapter'))
  if controlled:
    pipeline = diffusers.AnimateDiffSparseControlNetPipeline(
        **parts, controlnet=from_folder(diffusers.SparseControlNetModel, folder / 'control'))
  else:
    pipeline = diffusers.AnimateDiffPipeline(**parts)
  pipeline.set_progress_bar_config(disable=True)
  return pipeline


def their_frames(pipeline, seed, prompts, negative, **more):
  torch, _ = parity.libraries()
  noise = np.stack([jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), (6, 8, 12, 4))
                    for i in range(len(prompts))])
  with torch.no_grad():
    return np.asarray(pipeline(prompts, negative_prompt=[negative] * len(prompts), latents=channels_first(torch, noise),
                               output_type='np', **SETTINGS, **more).frames)


def on_one_device():
  """Programs for one device are compiled in a fraction of the time; `test_a_mesh_changes_nothing` has the rest."""
  return sharding.use(sharding.MeshConfig(), jax.devices()[:1])


def our_frames(model, seed, prompts, negative, **more):
  with on_one_device():
    clips = model.generate(prompts, seed=seed, negative_prompt=negative, dtype='float32', **SETTINGS, **more)
  return np.stack([clip.video for clip in clips])


def differ(ours, theirs, name):
  assert ours.shape == theirs.shape and theirs.std() > 0.1
  error = np.abs(ours / 255 - theirs).max() - 0.5 / 255  # rounding to 8 bits is all that is between them
  print(f'{name}: largest difference beyond rounding {error:.2e}')
  return error


def test_the_pipeline_makes_the_frames_that_diffusers_makes(model, animatediff_folder, tmp_path):
  """The same noise and prompts, four steps with guidance, through CLIP, both networks and the decoder; then with two
  changes of the motion, with weights and names of their own, against matrices merged by PyTorch."""
  torch, _ = parity.libraries()
  paths = [small.write_lora(tmp_path / f'{i}.safetensors', i, rank=2 + i, style=style)
           for i, style in enumerate(('published', 'peft'))]
  weights = {str(paths[0]): 0.8, str(paths[1]): -0.5}
  pipeline = their_pipeline(animatediff_folder)
  plain = our_frames(model, 7, PROMPTS, 'a ball')
  assert differ(plain, their_frames(pipeline, 7, PROMPTS, 'a ball'), 'frames') < 1e-3
  with torch.no_grad():
    for i, path in enumerate(paths):
      published = small.load_tensors(small.write_lora(tmp_path / f'again{i}' / 'a.safetensors', i, 2 + i).parent)
      for key in [key for key in published if '.down.' in key]:
        module, part = key.removeprefix('unet.').split('.processor.')
        part = part.removesuffix('_lora.down.weight') + ('.0' if 'out' in part else '')
        change = torch.tensor(published[key.replace('.down.', '.up.')]) @ torch.tensor(published[key])
        pipeline.unet.get_parameter(f'{module}.{part}.weight').add_(weights[str(path)] * change)
  ours = our_frames(model, 7, PROMPTS, 'a ball', lora=weights)
  assert differ(ours, their_frames(pipeline, 7, PROMPTS, 'a ball'), 'frames with LoRA') < 1e-3
  assert np.abs(ours.astype(int) - plain).max() > 20
  np.testing.assert_array_equal(our_frames(model, 7, PROMPTS, 'a ball'), plain)


def test_names_of_changes(tmp_path):
  """Three ways to name them, the same changes; and what is none."""
  read = [lora.read(small.write_lora(tmp_path / f'{style}.safetensors', 3, style=style))
          for style in ('published', 'peft', 'makers')]
  assert read[0].keys() == read[1].keys() == read[2].keys() and len(read[0]) == 7 * 8
  for key in read[0]:
    for other in read[1:]:
      np.testing.assert_array_equal(read[0][key].matrix(), other[key].matrix())
  tensors = {'unet.a.lora_A.weight': np.ones((2, 3), 'f'), 'unet.a.lora_B.weight': np.ones((4, 2), 'f'),
             'unet.a.alpha': np.array(1.0, 'f')}
  small.save_tensors(tmp_path / 'alpha.safetensors', tensors)
  np.testing.assert_array_equal(lora.read(tmp_path / 'alpha.safetensors')['a.weight'].matrix(), np.full((4, 3), 1.0))
  small.save_tensors(tmp_path / 'half.safetensors', {'unet.a.lora_A.weight': np.ones((2, 3), 'f')})
  small.save_tensors(tmp_path / 'none.safetensors', {'conv.weight': np.ones((2, 3), 'f')})
  for name, message in (('half', 'half a change of a.weight'), ('none', 'is no low-rank change')):
    with pytest.raises(ValueError, match=message):
      lora.read(tmp_path / f'{name}.safetensors')


@pytest.mark.filterwarnings('ignore')
def test_given_frames_make_what_diffusers_makes(controlled, animatediff_folder, monkeypatch):
  """Two of six frames are given, the first and one at its time; the posterior's mean in place of a draw from it."""
  _, diffusers = parity.libraries()
  from diffusers.pipelines.animatediff import pipeline_animatediff_sparsectrl as module
  from PIL import Image
  monkeypatch.setattr(module, 'retrieve_latents', lambda output: output.latent_dist.mode())
  pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
  theirs = their_frames(their_pipeline(animatediff_folder, True), 7, PROMPTS, 'a ball', controlnet_frame_indices=[0, 4],
                        conditioning_frames=[Image.fromarray(p) for p in pictures], controlnet_conditioning_scale=0.9)
  ours = our_frames(controlled, 7, PROMPTS, 'a ball', image=pictures[0], keyframes={0.5: pictures[1]},
                    conditioning_scale=0.9)
  assert differ(ours, theirs, 'frames with given ones') < 1e-3
  given = {'image': pictures[1], 'keyframes': {0.5: pictures[0]}}
  assert np.abs(ours.astype(int) - our_frames(controlled, 7, PROMPTS, 'a ball', **given)).max() > 20
  with pytest.raises(ValueError, match='lies outside the clip, which ends at 0.750 s'):
    our_frames(controlled, 7, PROMPTS, '', keyframes={0.8: pictures[1]})


def test_generate_takes_the_projects_arguments(model, controlled, tmp_path, capsys):
  assert model.pipeline.settings == AnimateDiffSettings(16, 512, 512, 8.0, 50, 7.5)
  run = str(controlled.run.folder)
  (tmp_path / 'a.png').write_bytes(export.png(np.full((20, 20, 3), 99, np.uint8)))
  path = small.write_lora(tmp_path / 'zoom.safetensors', 1)
  with on_one_device():
    assert cli.main([
        'generate', '--model', run, '--output', str(tmp_path / 'a.mp4'), '--seed=7', '--dtype=float32',
        *(f'--prompt={prompt}' for prompt in PROMPTS), '--keyframes', f"{{0.25: '{tmp_path / 'a.png'}'}}",
        '--lora', str(path), *(f'--{name}={value}' for name, value in SETTINGS.items())]) == 0
  clip = veojax.read(tmp_path / 'a_1.mp4')
  assert clip.video.shape == (6, 16, 24, 3) and clip.fps == 8
  assert cli.main(['info', '--model', run]) == 0
  told = capsys.readouterr().out
  for word in ('AnimateDiff', 'OpenRAIL', 'text to video', 'keyframes', 'multiples of 8', 'guidance_scale: 7.5',
               'MotionAdapter', 'SparseControlNetModel'):
    assert word in told
  for options, message in (({'num_frames': 9}, 'count up to 8 frames'), ({'height': 20}, 'multiples of 8'),
                           ({'num_frame': 6}, "did you mean 'num_frames'"),
                           ({'image': 'x.png'}, 'unknown option image'),
                           ({'lora': {'a': 'b'}}, 'paths to weights'), ({'lora': 'nowhere'}, 'does not exist'),
                           ({'num_inference_steps': 2000}, 'give 1 to 1000'), ({'fps': 0.0}, 'positive')):
    with pytest.raises(ValueError, match=message), on_one_device():
      model.generate('a', **{**SETTINGS, **options})


def contents(folder):
  return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def test_runs_go_back_to_the_very_files(controlled, animatediff_folder, tmp_path):
  """But for the index, which says that what was left out is not there."""
  convert.reverse(controlled.run.folder, tmp_path / 'back')
  after = contents(tmp_path / 'back')
  before = contents(animatediff_folder / 'sd') | {
      f'{name}/{path}': data for name, place in (('motion_adapter', 'adapter'), ('controlnet', 'control'))
      for path, data in contents(animatediff_folder / place).items()}
  index, index_after = (json.loads(files.pop('model_index.json')) for files in (before, after))
  assert before.keys() == after.keys() and before == after
  assert index_after == index | {name: [None, None] for name in ('safety_checker', 'feature_extractor')}


@pytest.mark.filterwarnings('ignore')
def test_diffusers_reads_what_goes_back(model, tmp_path):
  _, diffusers = parity.libraries()
  convert.reverse(model.run.folder, tmp_path / 'back')
  pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / 'back')
  assert isinstance(pipeline, diffusers.StableDiffusionPipeline) and pipeline.safety_checker is None


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('with_control', [False, True])
def test_saved_pipelines_are_the_same_model(with_control, model, controlled, animatediff_folder, tmp_path):
  """As AnimateDiffPipeline.save_pretrained leaves it: the same networks, and back with the same tensors."""
  pipeline = their_pipeline(animatediff_folder, with_control)
  pipeline.save_pretrained(tmp_path / 'saved')
  convert.convert(tmp_path / 'saved', tmp_path / 'run')
  again, expected = veojax.load(tmp_path / 'run'), controlled if with_control else model
  assert again.run.published.tasks == expected.run.published.tasks
  changes = {str(small.write_lora(tmp_path / 'a.safetensors', 0)): 0.5}
  # By name: the saved config says the number of heads where the published one gives it another name.
  same = lambda *trees: jax.tree.map(np.testing.assert_array_equal, *(weights.names(tree) for tree in trees))
  with on_one_device():
    same(again.pipeline.network(), expected.pipeline.network())
    same(again.pipeline.network(changes), expected.pipeline.network(changes))
    for name in ('vae', 'text_encoder', *['controlnet'] * with_control):
      same(again.run.parts[name], expected.run.parts[name])
    same(again.pipeline.embed(PROMPTS, 'float32'), expected.pipeline.embed(PROMPTS, 'float32'))
  assert again.pipeline.schedule == expected.pipeline.schedule
  convert.reverse(tmp_path / 'run', tmp_path / 'back')
  assert (tmp_path / 'back' / convert.INDEX).read_bytes() == (tmp_path / 'saved' / convert.INDEX).read_bytes()
  for path in (tmp_path / 'saved').rglob('*.safetensors'):
    before, after = (small.load_tensors(p.parent)
                     for p in (path, tmp_path / 'back' / path.relative_to(tmp_path / 'saved')))
    assert before.keys() == after.keys()
    for key in before:
      np.testing.assert_array_equal(before[key], after[key])


MAKERS_MOTION = {**small.MOTION, 'motion_num_attention_heads': 8, 'motion_norm_num_groups': 32,
                 'motion_max_seq_length': 24, 'motion_layers_per_block': 2}


@pytest.mark.parametrize('with_middle', [True, False], ids=['second version', 'first and third'])
def test_the_makers_motion_modules_are_the_same(with_middle, animatediff_folder, tmp_path):
  """A file of any name, or its folder, under the keys that diffusers itself converts; and back, byte for byte."""
  parity.libraries()
  from diffusers.loaders import single_file_utils
  part = SPARSECTRL.parts['motion_adapter']
  config = {**MAKERS_MOTION, 'use_motion_mid_block': with_middle}
  module = small.write_part(tmp_path / 'adapter', part, config, 'diffusion_pytorch_model', 3)
  weight_table.save(tmp_path / 'makers', motion_module.makers_table(
      part.read_config(tmp_path / 'adapter' / 'config.json')), module, stem='mm_sd_v15_v2')
  file = tmp_path / 'makers' / 'mm_sd_v15_v2.safetensors'
  theirs = small.load_tensors(tmp_path / 'makers')
  for key in [key for key in theirs if '.attention_blocks.0.pos_encoder' in key]:  # beside each attention
    theirs[key.replace('blocks.0.pos_encoder', 'blocks.1.pos_encoder')] = theirs[key]
  small.save_tensors(file, theirs)
  found = single_file_utils.convert_animatediff_checkpoint_to_diffusers(theirs)
  expected = {key: value for key, value in small.load_tensors(tmp_path / 'adapter').items() if 'pos_embed' not in key}
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  output = tmp_path / 'run'
  convert.convert(animatediff_folder / 'sd', output,
                  parts={'motion_adapter': str(file if with_middle else file.parent)})
  read = part.read_config(output / 'motion_adapter' / 'config.json')
  assert read == part.read_config(tmp_path / 'adapter' / 'config.json')
  jax.tree.map(np.testing.assert_array_equal, module, part_checkpoint.read(
      output / 'motion_adapter' / 'weights', part.shapes(read)))
  convert.reverse(output, tmp_path / 'back')
  assert (tmp_path / 'back' / file.name).read_bytes() == file.read_bytes()
  small.save_tensors(tmp_path / 'other.safetensors', {'x': np.zeros(3, 'f')})
  with pytest.raises(ValueError, match='holds no motion modules'):
    convert.convert(animatediff_folder / 'sd', tmp_path / 'no',
                    parts={'motion_adapter': str(tmp_path / 'other.safetensors')})


def test_what_does_not_fit_is_refused(animatediff_folder, tmp_path):
  sd, adapter = animatediff_folder / 'sd', animatediff_folder / 'adapter'
  with pytest.raises(ValueError, match='--motion_adapter FOLDER'):
    convert.convert(sd, tmp_path / 'a')
  with pytest.raises(ValueError, match='is that of a UNet2DConditionModel, not of a MotionAdapter'):
    convert.convert(sd, tmp_path / 'a', parts={'motion_adapter': str(sd / 'unet')})
  small.write_part(tmp_path / 'other', SPARSECTRL.parts['motion_adapter'], DEEPER_MOTION, 'diffusion_pytorch_model', 0)
  convert.convert(sd, tmp_path / 'b', parts={'motion_adapter': str(tmp_path / 'other')})
  with pytest.raises(ValueError, match='give those that were made for it'):
    veojax.load(tmp_path / 'b')
  config = json.loads((adapter / 'config.json').read_text())
  small.write_part(tmp_path / 'pia', SPARSECTRL.parts['motion_adapter'], small.MOTION, 'diffusion_pytorch_model', 0)
  (tmp_path / 'pia' / 'config.json').write_text(json.dumps({**config, 'conv_in_channels': 9}))
  with pytest.raises(ValueError, match='conv_in_channels is 9'):
    convert.convert(sd, tmp_path / 'a', parts={'motion_adapter': str(tmp_path / 'pia')})


def test_a_mesh_changes_nothing(controlled):
  """Rows, tokens and heads split over eight devices, with a control network."""
  run, configs = controlled.run, controlled.run.configs
  x, text, t = parity.normal(1, 2, 4, 4, 6, 4), parity.normal(2, 2, 7, 32), jnp.array([3.0, 700.0])
  condition = parity.normal(3, 2, 4, 4, 6, 5)
  names = 'unet', 'motion_adapter', 'controlnet'

  @jax.jit
  def forward(parts, x, t, text, condition):
    return MotionUNet(*parts[:2])(x, t, text, parts[2](condition, t, text))
  alone = [jax.tree.map(np.asarray, run.parts[name]) for name in names]
  expected = forward([jax.tree.map(jnp.asarray, part) for part in alone], x, t, text, condition)
  with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=2, context=2, tensor=2))):
    split = [part_checkpoint.read(run.folder / name / 'weights', SPARSECTRL.parts[name].shapes(configs[name]))
             for name in names]
    inputs = [jax.device_put(np.asarray(a), sharding.B) for a in (x, t, text, condition)]
    np.testing.assert_allclose(forward(split, *inputs), expected, atol=5e-5)
