"""Stable Video Diffusion's one file, by the keys that diffusers converts for images, and against PyTorch's own layers."""
import json
import re
import shutil

import jax
import numpy as np
import pytest

import veojax
from tests.zoo import parity
from tests.zoo import small_folders as small
from veojax.zoo import convert, published, stable_video_diffusion, weight_files
from veojax.zoo.svd import IN_CODE, SVD

SIZES = {'unet': small.SVD_UNET, 'vae': small.SVD_VAE, 'image_encoder': small.CLIP_VISION}
BESIDE = {name: np.zeros(2, 'f') for name in (
    'conditioner.embedders.0.open_clip.model.token_embedding.weight', 'conditioner.embedders.0.open_clip.model.logit_scale',
    'conditioner.embedders.3.encoder.decoder.conv_in.weight', 'conditioner.embedders.3.encoder.post_quant_conv.bias',
    'first_stage_model.encoder.conv_in.bias', 'model_ema.decay')}
IN_TIME = r'time_stack|time_mix|time_pos_embed|mix_factor'
SETTINGS = dict(num_frames=3, height=16, width=24, num_inference_steps=2, chunk=2)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return small.write_svd(tmp_path_factory.mktemp('svd') / 'published')


@pytest.fixture(scope='module')
def one_file(folder):
  return small.write_one_file(folder.parent / 'svd_xt.safetensors', SVD, folder, SIZES, BESIDE)


def in_space(tensors):
  """By the names of an image model."""
  return {key.replace('.spatial_res_block', ''): value for key, value in tensors.items() if not re.search(
      r'temporal|time_mixer|time_pos_embed|time_conv_out', key)}


def test_keys_of_single_frames_are_those_that_diffusers_converts(one_file, folder):
  parity.libraries()
  from diffusers.loaders import single_file_utils
  tensors = small.load_tensors(one_file.parent)
  images = {key: value for key, value in tensors.items() if key not in BESIDE and not re.search(IN_TIME, key)}
  unet = single_file_utils.convert_ldm_unet_checkpoint(
      dict(images), {**small.SVD_UNET, 'class_embed_type': None, 'addition_embed_type': 'text_time'})
  encoder = {key.replace('conditioner.embedders.3.encoder', 'first_stage_model'): value for key, value in images.items()}
  vae = single_file_utils.convert_ldm_vae_checkpoint(encoder, {**small.SVD_VAE, 'up_block_types': [None] * 2})
  for name, theirs in {'unet': unet, 'vae': vae}.items():
    expected = in_space(small.load_tensors(folder / name))
    assert theirs.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, theirs, expected)


def test_keys_along_time_have_the_places_of_those_beside_them(one_file, folder):
  """Each layer along time stands in the file beside the layer within frames that it stands beside in diffusers'."""
  tensors, unet = small.load_tensors(one_file.parent), small.load_tensors(folder / 'unet')
  where = {}  # of a layer within frames, its place in the makers' file by diffusers' place
  for theirs, ours in ((k, k2) for k, v in unet.items() for k2, v2 in tensors.items()
                       if k2 not in BESIDE and v.shape == v2.shape and np.array_equal(v, v2) and v.size > 8):
    where[theirs] = ours
  renamed = {'temporal_transformer_blocks': 'time_stack', 'temporal_res_block.norm1': 'time_stack.in_layers.0',
             'temporal_res_block.conv1': 'time_stack.in_layers.2', 'temporal_res_block.norm2': 'time_stack.out_layers.0',
             'temporal_res_block.conv2': 'time_stack.out_layers.3', 'time_pos_embed.linear_1': 'time_pos_embed.0',
             'temporal_res_block.time_emb_proj': 'time_stack.emb_layers.1', 'time_pos_embed.linear_2': 'time_pos_embed.2'}
  seen = 0
  for key in where:
    for theirs, ours in renamed.items():
      if theirs in key:
        block, rest = key.split(f'.{theirs}')
        beside = 'spatial_res_block.norm1.weight' if 'resnets' in block else 'norm.weight'
        place = re.split(r'\.in_layers|\.norm', where[f'{block}.{beside}'])[0]
        assert where[key] == f'{place}.{ours}{rest}'
        seen += 1
  assert seen > 100


def test_the_image_towers_layers_are_pytorchs(folder, one_file):
  """OpenCLIP's blocks are PyTorch's own attention, so their names say what they compute."""
  torch, _ = parity.libraries()
  part, prefix = SVD.parts['image_encoder'], 'conditioner.embedders.0.open_clip.model.visual.transformer.resblocks.1.'
  config = part.read_config(folder / 'image_encoder' / 'config.json')
  tensors = {key.removeprefix(prefix): torch.tensor(value) for key, value in small.load_tensors(one_file.parent).items()
             if key.startswith(prefix)}
  theirs = torch.nn.TransformerEncoderLayer(config.hidden_size, config.num_attention_heads, config.intermediate_size, 0.0,
                                            'gelu', batch_first=True, norm_first=True)
  names = {'attn.': 'self_attn.', 'ln_1': 'norm1', 'ln_2': 'norm2', 'mlp.c_fc': 'linear1', 'mlp.c_proj': 'linear2'}
  rename = lambda key: next(key.replace(a, b) for a, b in names.items() if key.startswith(a))
  theirs.load_state_dict({rename(key): value for key, value in tensors.items()})
  x = parity.normal(1, 2, 5, config.hidden_size)
  block = jax.tree.map(lambda p: p[1], small.module_of(part, folder / 'image_encoder').blocks)
  assert parity.relative(block(x), theirs(torch.tensor(np.asarray(x)))) < 1e-5


def test_the_file_is_the_same_model(one_file, folder, tmp_path, monkeypatch):
  """And back, all tensors of the model in one file again."""
  monkeypatch.setattr(convert, 'PUBLISHED', (small.of_sizes(SVD, SIZES),))
  convert.convert(one_file, tmp_path / 'run')
  small.assert_same_parts(SVD, folder, tmp_path / 'run', SIZES)
  convert.convert(folder, tmp_path / 'other')
  image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
  clips = [veojax.load(tmp_path / name).generate(image=image, seed=3, **SETTINGS) for name in ('run', 'other')]
  np.testing.assert_array_equal(clips[0].video, clips[1].video)
  convert.reverse(tmp_path / 'run', tmp_path / 'back')
  before, after = small.load_tensors(one_file.parent), small.load_tensors(tmp_path / 'back')
  assert after.keys() == before.keys() - BESIDE.keys()
  jax.tree.map(np.testing.assert_array_equal, after, {key: before[key] for key in after})


def test_what_the_file_does_not_tell(one_file, folder, tmp_path):
  """Frames by the file's name; the published sizes, which these small weights are not; files beside it in code."""
  for name, frames in (('svd.safetensors', 14), ('svd_xt_1_1.safetensors', 25)):
    shutil.copyfile(one_file, tmp_path / name)
    with weight_files.opened(tmp_path / name) as files:
      assert stable_video_diffusion.UNET.config(files)['num_frames'] == frames
  with pytest.raises(ValueError, match='holds another model than its configuration says'):
    convert.convert(one_file, tmp_path / 'run')
  for name, tree in IN_CODE.items():
    found = published.read_json(folder / name)
    assert {key: found[key] for key in tree} == json.loads(json.dumps(tree))
