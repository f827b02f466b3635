"""Mochi 1 against diffusers' own, through the folders that it reads: each part, gradients, and the whole pipeline."""
import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import veojax
from tests.zoo import small_folders as small
from veojax import cli, sharding
from veojax.zoo import convert, part_checkpoint
from veojax.zoo.mochi import BYTES_PER_PIXEL, MOCHI, MochiSettings, codec_of, fitting_tile

WIDER = {**small.TRANSFORMER, 'patch_size': 1, 'num_attention_heads': 3, 'attention_head_dim': 12, 'num_layers': 2,
         'pooled_projection_dim': 20, 'in_channels': 5, 'text_embed_dim': 16, 'time_embed_dim': 10}
DEEPER = {**small.VAE, 'latent_channels': 5, 'encoder_block_out_channels': [64, 32, 32],
          'decoder_block_out_channels': [32, 32, 64], 'layers_per_block': [2, 1, 1, 2], 'temporal_expansions': [2, 2],
          'spatial_expansions': [2, 1], 'add_attention_block': [True, False, True, False], 'latents_mean': None,
          'latents_std': None}


def libraries():
  reason = "PyTorch, diffusers and transformers are not installed: pip install -e '.[parity]'"
  torch, diffusers = (pytest.importorskip(name, reason=reason) for name in ('torch', 'diffusers'))
  diffusers.utils.logging.disable_progress_bar()
  return torch, diffusers


def relative(ours, theirs):
  ours, theirs = np.asarray(ours), theirs.detach().numpy()
  return np.abs(ours - theirs).max() / np.abs(theirs).max()


def to_torch(torch, x_BTHWC):
  return torch.tensor(np.asarray(x_BTHWC)).permute(0, 4, 1, 2, 3)


@pytest.mark.filterwarnings('ignore:In CPU autocast')
@pytest.mark.parametrize('config', [small.TRANSFORMER, WIDER], ids=['three layers', 'patch 1'])
def test_the_transformer_is_diffusers(config, tmp_path):
  """Velocity and gradients, at two noise levels, with texts of two lengths."""
  torch, diffusers = libraries()
  part = MOCHI.parts['transformer']
  module = small.write_part(tmp_path / 'a', part, config, 'diffusion_pytorch_model', 3)
  theirs, report = diffusers.MochiTransformer3DModel.from_pretrained(tmp_path / 'a', output_loading_info=True)
  assert not report['missing_keys'] and not report['unexpected_keys']
  rng = np.random.default_rng(4)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  x, text = normal(2, 3, 4, 6, config['in_channels']), normal(2, 7, config['text_embed_dim'])
  mask, t = jnp.arange(7)[None] < jnp.array([[5], [2]]), jnp.array([0.3, 0.85])
  cotangent = normal(*x.shape)

  @jax.jit
  def ours(module, x):
    loss = lambda module, x: (lambda v: (jnp.sum(v * cotangent), v))(module(x, t, text, mask))
    return jax.value_and_grad(loss, (0, 1), has_aux=True)(module, x)
  with jax.default_matmul_precision('highest'):
    (_, velocity), (grads, grad_x) = ours(module, x)
  x_torch = to_torch(torch, x).requires_grad_()
  out = theirs(x_torch, *(torch.tensor(np.asarray(z)) for z in (text, 1000 * (1 - t), mask))).sample
  (-out * to_torch(torch, cotangent)).sum().backward()
  error = relative(velocity, -out.permute(0, 2, 3, 4, 1))
  print(f'transformer: largest relative difference {error:.2e}')  # shown by pytest -s
  assert error < 1e-5
  assert relative(grad_x, x_torch.grad.permute(0, 2, 3, 4, 1)) < 1e-4
  block = theirs.transformer_blocks[0]
  K = config['attention_head_dim']
  q = np.asarray(grads.blocks.attention.w_q[...][0]).reshape(-1, K)
  q = q.reshape(len(q), 2, K // 2).swapaxes(1, 2).reshape(block.attn1.to_q.weight.shape[::-1]).T  # pairs side by side
  assert relative(q, block.attn1.to_q.weight.grad) < 1e-4
  assert relative(grads.frequencies[...], theirs.pos_frequencies.grad) < 1e-4
  assert relative(grads.last.mlp.w_down[...].T, theirs.transformer_blocks[-1].ff.net[2].weight.grad) < 1e-4
  assert relative(grads.pool.w_q[...].reshape(text.shape[-1], -1).T, theirs.time_embed.pooler.to_q.weight.grad) < 1e-4


@pytest.mark.parametrize('config', [small.VAE, DEEPER], ids=['6x8x8', '4x4x2'])
def test_the_autoencoder_is_diffusers(config, tmp_path):
  torch, diffusers = libraries()
  module = small.write_part(tmp_path / 'a', MOCHI.parts['vae'], config, 'diffusion_pytorch_model', 5)
  theirs, report = diffusers.AutoencoderKLMochi.from_pretrained(tmp_path / 'a', output_loading_info=True)
  assert not report['missing_keys'] and not report['unexpected_keys']
  rng = np.random.default_rng(6)
  tc = module.cfg.temporal_compression
  video = jnp.asarray(rng.uniform(-1, 1, (1, 1 + 2 * tc, 16, 24, 3)), jnp.float32)
  encode, decode = (jax.jit(f) for f in (type(module).encode_chunk, type(module).decode_chunk))
  with jax.default_matmul_precision('highest'), torch.no_grad():
    (mean, logvar), _ = encode(module, video)
    posterior = theirs.encode(to_torch(torch, video)).latent_dist
    latent = jnp.asarray(rng.normal(size=mean.shape), jnp.float32)
    pixels, state = decode(module, latent)
    errors = [relative(ours, z.permute(0, 2, 3, 4, 1)) for ours, z in (
        (mean, posterior.mean), (logvar, posterior.logvar), (pixels, theirs.decode(to_torch(torch, latent)).sample))]
    print('mean, log variance, pixels: largest relative differences', *(f'{e:.2e}' for e in errors))
    assert max(errors) < 1e-4
    if config is small.VAE:  # in chunks
      _, state = encode(module, video[:, :1 + tc])
      (last, _), _ = encode(module, video[:, 1 + tc:], state)
      np.testing.assert_allclose(last, mean[:, 2:], atol=1e-4)
      first, state = decode(module, latent[:, :2])
      rest, _ = decode(module, latent[:, 2:], state)
      np.testing.assert_allclose(np.concatenate([first, rest], 1), pixels, atol=1e-4 * np.abs(pixels).max())


def their_features(torch, model, folder, texts):
  import transformers
  encoder = transformers.T5EncoderModel.from_pretrained(folder / 'text_encoder')
  ids, mask = np.zeros((len(texts), 16), np.int64), np.zeros((len(texts), 16), bool)
  for row, text in enumerate(texts):
    if text:
      tokens = model.pipeline.tokenizer.encode(text, 16)
      ids[row, :len(tokens)], mask[row, :len(tokens)] = tokens, True
  return encoder(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))[0], torch.tensor(mask)


PROMPTS = ['a red ball falls', 'the floor on the red ball falls on a red floor on a ball']
SETTINGS = dict(num_frames=13, height=32, width=48, num_inference_steps=4, guidance_scale=3.0, dtype='float32')


@pytest.fixture(scope='module')
def model(mochi_folder, tmp_path_factory):
  output = tmp_path_factory.mktemp('run') / 'mochi'
  convert.convert(mochi_folder, output)
  return veojax.load(output)


@pytest.mark.filterwarnings('ignore:In CPU autocast')
@pytest.mark.parametrize('negative', ['', 'a ball'])
def test_the_pipeline_makes_the_frames_that_diffusers_makes(negative, model, mochi_folder):
  """The same noise and prompts, four steps with guidance, through T5, transformer and decoder."""
  torch, diffusers = libraries()
  parts = {name: getattr(diffusers, MOCHI.parts[name].class_name).from_pretrained(mochi_folder / name)
           for name in ('transformer', 'vae')}
  scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(mochi_folder / 'scheduler')
  pipeline = diffusers.MochiPipeline(scheduler, parts['vae'], None, None, parts['transformer'])
  pipeline.set_progress_bar_config(disable=True)
  noise = np.stack([jax.random.normal(jax.random.fold_in(jax.random.key(7), i), (3, 4, 6, 12)) for i in range(2)])
  with jax.default_matmul_precision('highest'):
    clips = model.generate(PROMPTS, seed=7, negative_prompt=negative, **SETTINGS)
  with torch.no_grad():
    (text, mask), (untext, unmask) = (their_features(torch, model, mochi_folder, t) for t in (PROMPTS, [negative] * 2))
    frames = pipeline(
        prompt_embeds=text, prompt_attention_mask=mask, negative_prompt_embeds=untext,
        negative_prompt_attention_mask=unmask, latents=to_torch(torch, noise), output_type='np',
        **{k: v for k, v in SETTINGS.items() if k != 'dtype'}).frames
  ours = np.stack([clip.video for clip in clips])
  assert ours.shape == frames.shape == (2, 13, 32, 48, 3) and frames.std() > 0.1
  # Rounding to 8 bits is all that is between them.
  error = np.abs(ours / 255 - frames).max() - 0.5 / 255
  print(f'frames: largest difference beyond rounding {error:.2e}')
  assert error < 1e-3


def test_generate_takes_the_projects_arguments(model, mochi_folder, tmp_path, capsys):
  assert model.pipeline.settings == MochiSettings(19, 480, 848, 30.0, 64, 4.5)
  run = str(model.run.folder)
  assert cli.main(['generate', '--model', run, '--prompt', PROMPTS[0], '--output', str(tmp_path / 'a.mp4'), '--seed=7',
                   *(f'--{name}={value}' for name, value in SETTINGS.items())]) == 0
  clip = veojax.read(tmp_path / 'a.mp4')
  assert clip.video.shape == (13, 32, 48, 3) and clip.fps == 30
  assert cli.main(['info', '--model', run]) == 0
  told = capsys.readouterr().out
  for word in ('Mochi 1', 'Apache-2.0', 'text to video', 'multiples of 16', 'guidance_scale: 4.5'):
    assert word in told
  for options, message in (({'num_frames': 18}, 'give 6k \\+ 1, such as 19'), ({'height': 40}, 'multiples of 16'),
                           ({'num_frame': 19}, "did you mean 'num_frames'"),
                           ({'image': 'x.png'}, 'unknown option image'),
                           ({'dtype': 'int8'}, 'dtype'), ({'num_inference_steps': 0}, 'positive')):
    with pytest.raises(ValueError, match=message):
      model.generate('a', **options)
  with pytest.raises(ValueError, match='no prompt'):
    model.generate([])


def makers_files(mochi_folder):
  """The small model's tensors under the makers' names, by hand."""
  def load(name):
    tensors = {}
    for path in (mochi_folder / name).glob('*.safetensors'):
      tensors |= safetensors.numpy.load_file(path)
    return tensors
  swapped = lambda w: np.concatenate(np.split(w, 2)[::-1])
  theirs, dit = load('transformer'), {}
  top = {'patch_embed.proj': 'x_embedder.proj', 'time_embed.timestep_embedder.linear_1': 't_embedder.mlp.0',
         'time_embed.timestep_embedder.linear_2': 't_embedder.mlp.2', 'time_embed.caption_proj': 't5_yproj',
         'proj_out': 'final_layer.linear', **{f'time_embed.pooler.{p}': f't5_y_embedder.{p}' for p in
                                              ('to_q', 'to_kv', 'to_out')}}
  for old, new in top.items():
    dit |= {f'{new}.{kind}': theirs.pop(f'{old}.{kind}') for kind in ('weight', 'bias')}
  dit['pos_frequencies'] = theirs.pop('pos_frequencies')
  dit |= {f'final_layer.mod.{kind}': swapped(theirs.pop(f'norm_out.linear.{kind}')) for kind in ('weight', 'bias')}
  for i in range(3):
    old, new = f'transformer_blocks.{i}', f'blocks.{i}'
    for kind in ('weight', 'bias'):
      dit[f'{new}.mod_x.{kind}'] = theirs.pop(f'{old}.norm1.linear.{kind}')
      dit[f'{new}.mod_y.{kind}'] = theirs.pop(f'{old}.norm1_context.linear{"_1" * (i == 2)}.{kind}')
      for stream, out in (('x', 'to_out.0'), *[('y', 'to_add_out')] * (i < 2)):
        dit[f'{new}.attn.proj_{stream}.{kind}'] = theirs.pop(f'{old}.attn1.{out}.{kind}')
    for stream, names, norm in (('x', 'to_{}', 'norm_{}'), ('y', 'add_{}_proj', 'norm_added_{}')):
      dit[f'{new}.attn.qkv_{stream}.weight'] = np.concatenate(
          [theirs.pop(f'{old}.attn1.{names.format(p)}.weight') for p in 'qkv'])
      for p in 'qk':
        dit[f'{new}.attn.{p}_norm_{stream}.weight'] = theirs.pop(f'{old}.attn1.{norm.format(p)}.weight')
    for stream, mlp in (('x', 'ff'), *[('y', 'ff_context')] * (i < 2)):
      dit[f'{new}.mlp_{stream}.w1.weight'] = swapped(theirs.pop(f'{old}.{mlp}.net.0.proj.weight'))
      dit[f'{new}.mlp_{stream}.w2.weight'] = theirs.pop(f'{old}.{mlp}.net.2.weight')
  assert not theirs
  return dit, load('vae')


def makers_vae(theirs):
  """encoder.safetensors and decoder.safetensors of an autoencoder with one block in each stage."""
  out = {'encoder': {}, 'decoder': {}}
  moved = {'encoder.proj_in': 'layers.0', 'encoder.proj_out': 'output_proj',
           'encoder.norm_out.norm_layer': 'output_norm',
           'decoder.conv_in': 'blocks.0.0', 'decoder.proj_out': 'output_proj'}
  stacks = {'encoder.block_in': 'layers.1', 'encoder.block_out': 'layers.5', 'decoder.block_in': 'blocks.0.1',
            'decoder.block_out': 'blocks.4.0'}
  for i in range(3):
    moved |= {f'encoder.down_blocks.{i}.conv_in.conv': f'layers.{i + 2}.layers.0',
              f'decoder.up_blocks.{i}.proj': f'blocks.{i + 1}.proj'}
    stacks |= {f'encoder.down_blocks.{i}': f'layers.{i + 2}.layers.1',
               f'decoder.up_blocks.{i}': f'blocks.{i + 1}.blocks.0'}
  for old, new in stacks.items():
    moved |= {f'{old}.resnets.0.norm{n}.norm_layer': f'{new}.stack.{3 * n - 3}' for n in (1, 2)}
    moved |= {f'{old}.resnets.0.conv{n}.conv': f'{new}.stack.{3 * n - 1}' for n in (1, 2)}
    moved |= {f'{old}.norms.0.norm_layer': f'{new}.attn_block.norm',
              f'{old}.attentions.0.to_out.0': f'{new}.attn_block.attn.out'}
    if f'{old}.attentions.0.to_q.weight' in theirs:
      out['encoder'][f'{new}.attn_block.attn.qkv.weight'] = np.concatenate(
          [theirs.pop(f'{old}.attentions.0.to_{p}.weight') for p in 'qkv'])
  for key, tensor in theirs.items():
    name, kind = key.rsplit('.', 1)
    out[key.split('.')[0]][f'{moved[name]}.{kind}'] = tensor
  return out['encoder'], out['decoder']


def test_the_makers_own_files_are_the_same_model(mochi_folder, model, tmp_path, monkeypatch):
  """dit, encoder and decoder.safetensors with a T5 beside them, whose folder holds its tokenizer too; and back, byte
  for byte."""
  source = tmp_path / 'makers'
  source.mkdir()
  dit, vae = makers_files(mochi_folder)
  for name, tensors in (('dit', dit), *zip(('encoder', 'decoder'), makers_vae(vae))):
    safetensors.numpy.save_file(tensors, source / f'{name}.safetensors')
  sizes = {'transformer': small.TRANSFORMER, 'vae': small.VAE}
  parts = {name: dataclasses.replace(part, original=dataclasses.replace(
      part.original, config=lambda files, name=name: sizes[name])) if name in sizes else part
           for name, part in MOCHI.parts.items()}
  monkeypatch.setattr(convert, 'PUBLISHED', (dataclasses.replace(MOCHI, parts=parts),))
  t5 = shutil.copytree(mochi_folder / 'text_encoder', tmp_path / 't5')
  shutil.copy(mochi_folder / 'tokenizer' / 'spiece.model', t5)
  (t5 / 'tf_model.h5').write_bytes(b'')
  given = {name: str(t5) for name in ('text_encoder', 'tokenizer')}
  with pytest.raises(ValueError, match='--text_encoder FOLDER'):
    convert.convert(source, tmp_path / 'run')
  convert.convert(source, tmp_path / 'run', parts=given)
  assert {path.name for path in (tmp_path / 'run' / 'tokenizer').iterdir()} == {'config.json', 'spiece.model'}
  for name in ('transformer', 'vae', 'text_encoder'):
    again = part_checkpoint.read(tmp_path / 'run' / name / 'weights', jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.run.parts[name]))
    jax.tree.map(np.testing.assert_array_equal, model.run.parts[name], again)
  convert.reverse(tmp_path / 'run', tmp_path / 'back')
  for name in ('dit', 'encoder', 'decoder'):
    assert (tmp_path / 'back' / f'{name}.safetensors').read_bytes() == (source / f'{name}.safetensors').read_bytes()


def test_tiles_over_devices_equal_one_device(model):
  """Nine tiles on eight devices, in chunks that carry their past."""
  codec = codec_of(model.run.parts['vae'], 32, 1)
  latent = np.random.default_rng(9).normal(size=(3, 8, 9, 12)).astype(np.float32)
  alone = codec.decode(latent, 13, 64, 72)
  with sharding.use(sharding.MeshConfig(data=1, context=2, tensor=4)):
    assert np.abs(codec.decode(latent, 13, 64, 72).astype(int) - alone).max() <= 1  # rounding


def test_tiles_fit_the_memory_that_is_free():
  """Whole frames where they do, or where nothing is known of it."""
  settings = MochiSettings()
  for free in (None, 100 * 2 ** 30):
    assert fitting_tile(settings, free) == 848
  sizes = [gib * 2 ** 30 for gib in (1, 4, 8, 16, 32)]
  tiles = [fitting_tile(settings, size) for size in sizes]
  assert tiles == sorted(set(tiles)) and tiles[-1] < 480 and not any(tile % 16 for tile in tiles)
  assert all(tile ** 2 * settings.chunk * BYTES_PER_PIXEL < size for tile, size in zip(tiles, sizes))
  assert fitting_tile(MochiSettings(chunk=1), 8 * 2 ** 30) > tiles[2]


def test_a_mesh_changes_nothing(model):
  """Rows, tokens of a row and heads split over eight devices."""
  transformer = MOCHI.parts['transformer']
  config = model.run.configs['transformer']
  rng = np.random.default_rng(8)
  x, text = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 3, 6, 6, 12), (2, 8, 24)))
  mask, t = jnp.arange(8)[None] < jnp.array([[8], [3]]), jnp.array([0.2, 0.9])
  forward = jax.jit(lambda module, *a: module(*a))
  alone = jax.tree.map(np.asarray, model.run.parts['transformer'])
  expected = forward(alone, x, t, text, mask)
  with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=2, context=2, tensor=2))):
    split = part_checkpoint.read(model.run.folder / 'transformer' / 'weights', transformer.shapes(config))
    np.testing.assert_allclose(forward(split, x, t, text, mask), expected, atol=2e-5)
