"""Published folders in small, with all weights drawn: as diffusers and transformers write them, without either."""
import dataclasses
import json

import jax
import numpy as np
import safetensors.numpy

from veojax.data.tokenizer import Tokenizer
from veojax.models import weights
from veojax.zoo import clip_tokenizer, part_checkpoint, weight_table
from veojax.zoo.animatediff import SPARSECTRL
from veojax.zoo.mochi import MOCHI
from veojax.zoo.svd import SVD

TRANSFORMER = dict(patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=3, pooled_projection_dim=12,
                   in_channels=12, out_channels=None, qk_norm='rms_norm', text_embed_dim=24, time_embed_dim=8,
                   activation_fn='swiglu', max_sequence_length=16)
VAE = dict(in_channels=15, out_channels=3, latent_channels=12, encoder_block_out_channels=[32, 32, 64, 32],
           decoder_block_out_channels=[32, 64, 32, 32], layers_per_block=[1, 1, 1, 1, 1], act_fn='silu',
           temporal_expansions=[1, 2, 3], spatial_expansions=[2, 2, 2],
           add_attention_block=[False, True, True, True, True], latents_mean=[0.02 * i - 0.1 for i in range(12)],
           latents_std=[0.8 + 0.03 * i for i in range(12)], scaling_factor=1.1)
T5 = dict(model_type='t5', vocab_size=320, d_model=24, d_kv=10, d_ff=40, num_layers=2, num_heads=2,
          feed_forward_proj='gated-gelu', is_encoder_decoder=False, use_cache=False)
CLIP = dict(model_type='clip_text_model', vocab_size=530, hidden_size=32, intermediate_size=48, projection_dim=16,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=77, hidden_act='quick_gelu',
            layer_norm_eps=1e-5, eos_token_id=523)
MERGES = [('i', 'n'), ('t', 'h'), ('th', 'e</w>'), ('a', 'l'), ('b', 'al'), ('bal', 'l</w>'), ('r', 'e'),
          ('re', 'd</w>'), ('f', 'al'), ('fal', 'l'), ('Ã', '©</w>')]
IMAGE_UNET = dict(sample_size=8, in_channels=4, out_channels=4,
                  down_block_types=['CrossAttnDownBlock2D', 'DownBlock2D'],
                  up_block_types=['UpBlock2D', 'CrossAttnUpBlock2D'], block_out_channels=[32, 64], layers_per_block=1,
                  norm_num_groups=16, cross_attention_dim=32, attention_head_dim=4, act_fn='silu', norm_eps=1e-5,
                  flip_sin_to_cos=True, freq_shift=0, center_input_sample=False, downsample_padding=1,
                  mid_block_scale_factor=1)
MOTION = dict(block_out_channels=[32, 64], motion_layers_per_block=1, motion_mid_block_layers_per_block=1,
              motion_num_attention_heads=2, motion_norm_num_groups=16, motion_max_seq_length=8,
              use_motion_mid_block=True)
KL_VAE = dict(in_channels=3, out_channels=3, down_block_types=['DownEncoderBlock2D'] * 2,
              up_block_types=['UpDecoderBlock2D'] * 2, block_out_channels=[32, 64], layers_per_block=1, act_fn='silu',
              latent_channels=4, norm_num_groups=32, sample_size=32, scaling_factor=0.18215)
CONTROL = dict(in_channels=4, conditioning_channels=4,
               down_block_types=['CrossAttnDownBlockMotion', 'DownBlockMotion'],
               block_out_channels=[32, 64], layers_per_block=1, norm_num_groups=16, cross_attention_dim=32,
               attention_head_dim=4, motion_max_seq_length=8, motion_num_attention_heads=2,
               conditioning_embedding_out_channels=[16, 32], concat_conditioning_mask=True,
               use_simplified_condition_embedding=True)
SVD_UNET = dict(sample_size=8, in_channels=8, out_channels=4, down_block_types=[
    'CrossAttnDownBlockSpatioTemporal', 'DownBlockSpatioTemporal'], up_block_types=[
        'UpBlockSpatioTemporal', 'CrossAttnUpBlockSpatioTemporal'], block_out_channels=[32, 64],
                addition_time_embed_dim=8, projection_class_embeddings_input_dim=24, layers_per_block=1,
                cross_attention_dim=20, transformer_layers_per_block=1, num_attention_heads=[2, 4], num_frames=5)
SVD_VAE = dict(in_channels=3, out_channels=3, down_block_types=['DownEncoderBlock2D'] * 2, block_out_channels=[32, 32],
               layers_per_block=2, latent_channels=4, sample_size=32, scaling_factor=0.3, force_upcast=True)
CLIP_VISION = dict(model_type='clip_vision_model', hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                   num_attention_heads=2, image_size=224, patch_size=56, projection_dim=20, hidden_act='gelu',
                   layer_norm_eps=1e-5, num_channels=3)
STEMS = {'transformer': 'diffusion_pytorch_model', 'vae': 'diffusion_pytorch_model', 'text_encoder': 'model'}


def drawn(shapes, seed: int):
  """Every parameter from a normal: of unit size for what it makes of unit inputs, scales about 1."""
  rng = np.random.default_rng(seed)

  def draw(name, p):
    if name.rsplit('.', 1)[-1].endswith('scale'):
      return 1 + 0.2 * rng.normal(size=p.shape)
    if name.rsplit('.', 1)[-1] == 'share':
      return rng.normal(size=p.shape)
    if p.ndim < 2 or name.rsplit('.', 1)[-1].startswith('b'):
      return 0.1 * rng.normal(size=p.shape)
    return rng.normal(size=p.shape) * max(1, np.prod(p.shape[-3:]) / p.shape[-1]) ** -0.5
  return weights.replace(shapes, {n: draw(n, p).astype(np.float32) for n, p in weights.names(shapes).items()})


def write_part(folder, part, tree: dict, stem: str, seed: int, shard_bytes: int = 10 ** 9):
  """A part's folder; its module."""
  folder.mkdir(parents=True)
  named = {'architectures': [part.class_name]} if 'model_type' in tree else {
      '_class_name': part.class_name, '_diffusers_version': '0.42.1'}
  (folder / 'config.json').write_text(json.dumps({**named, **tree}, indent=2))
  config = part.read_config(folder / 'config.json')
  module = drawn(part.shapes(config), seed)
  weight_table.save(folder, part.table(config), module, shard_bytes, stem)
  return module


def write_mochi(folder, shard_bytes: int = 30_000):
  """A pipeline's folder; the transformer in shards."""
  for seed, (name, tree) in enumerate((('transformer', TRANSFORMER), ('vae', VAE), ('text_encoder', T5))):
    write_part(folder / name, MOCHI.parts[name], tree, STEMS[name], seed,
               shard_bytes if name == 'transformer' else 10 ** 9)
  (folder / 'tokenizer').mkdir()
  Tokenizer.train(['a red ball falls on the floor'], folder / 'tokenizer' / 'spiece.model', 320)
  (folder / 'scheduler').mkdir()
  (folder / 'scheduler' / 'scheduler_config.json').write_text(json.dumps({
      '_class_name': 'FlowMatchEulerDiscreteScheduler', 'invert_sigmas': True, 'num_train_timesteps': 1000,
      'shift': 1.0}))
  (folder / 'model_index.json').write_text(json.dumps({
      '_class_name': 'MochiPipeline', '_diffusers_version': '0.42.1', 'force_zeros_for_empty_prompt': True,
      'scheduler': ['diffusers', 'FlowMatchEulerDiscreteScheduler'], 'text_encoder': ['transformers', 'T5EncoderModel'],
      'tokenizer': ['transformers', 'T5TokenizerFast'], 'transformer': ['diffusers', 'MochiTransformer3DModel'],
      'vae': ['diffusers', 'AutoencoderKLMochi']}))
  return folder



def write_animatediff(folder, unet=IMAGE_UNET, motion=MOTION):
  """A Stable Diffusion folder `sd`, a motion adapter `adapter` and a control network `control`."""
  parts, sd = SPARSECTRL.parts, folder / 'sd'
  for seed, (place, name, tree) in enumerate((
      (sd / 'unet', 'unet', unet), (sd / 'vae', 'vae', KL_VAE), (sd / 'text_encoder', 'text_encoder', CLIP),
      (folder / 'adapter', 'motion_adapter', motion), (folder / 'control', 'controlnet', CONTROL))):
    write_part(place, parts[name], tree, STEMS.get(name, 'diffusion_pytorch_model'), seed)
  write_clip_tokenizer(sd / 'tokenizer')
  (sd / 'scheduler').mkdir()
  (sd / 'scheduler' / 'scheduler_config.json').write_text(json.dumps({
      '_class_name': 'PNDMScheduler', 'beta_end': 0.012, 'beta_schedule': 'scaled_linear', 'beta_start': 0.00085,
      'num_train_timesteps': 1000, 'set_alpha_to_one': False, 'skip_prk_steps': True, 'steps_offset': 1,
      'trained_betas': None, 'clip_sample': False}))
  (sd / 'model_index.json').write_text(json.dumps({
      '_class_name': 'StableDiffusionPipeline', '_diffusers_version': '0.6.0',
      'feature_extractor': ['transformers', 'CLIPImageProcessor'],
      'safety_checker': ['stable_diffusion', 'StableDiffusionSafetyChecker'],
      'scheduler': ['diffusers', 'PNDMScheduler'],
      'text_encoder': ['transformers', 'CLIPTextModel'], 'tokenizer': ['transformers', 'CLIPTokenizer'],
      'unet': ['diffusers', 'UNet2DConditionModel'], 'vae': ['diffusers', 'AutoencoderKL']}))
  return folder


def write_one_file(path, published, folder, names, beside):
  """These parts of a published folder as their makers publish them, in one file, with tensors beside them."""
  tensors = {**beside}
  for name in names:
    part = published.parts[name]
    module = module_of(part, folder / name)
    found = weight_table.entries(part.original.table(part.read_config(folder / name / 'config.json')), module)
    tensors |= {key: entry.write(weights.names(module)) for key, entry in found.items()}
  save_tensors(path, tensors)
  return path


def module_of(part, folder):
  """What a part's folder holds."""
  config = part.read_config(folder / 'config.json')
  return weight_table.load(folder, part.table(config), part.shapes(config))


def of_sizes(published, trees):
  """The same with these configs for the makers' files, which do not tell them."""
  of_size = lambda part, tree: dataclasses.replace(part, original=dataclasses.replace(
      part.original, config=lambda files: tree))
  return dataclasses.replace(published, parts={
      name: of_size(part, trees[name]) if name in trees else part for name, part in published.parts.items()})


def assert_same_parts(published, folder, run, names):
  """Whether the run has exactly the weights of the folder."""
  for name in names:
    part = published.parts[name]
    config = part.read_config(run / name / 'config.json')
    jax.tree.map(np.testing.assert_array_equal, module_of(part, folder / name),
                 part_checkpoint.read(run / name / 'weights', part.shapes(config)))


def write_lora(path, seed: int, rank: int = 2, style: str = 'published'):
  """A MotionLoRA of the small adapter, of every projection of every attention."""
  rng, tensors = np.random.default_rng(seed), {}
  modules = [(f'{side}_blocks.{i}.motion_modules.{j}', width) for side, widths, n in (('down', (32, 64), 1),
                                                                                      ('up', (64, 32), 2))
             for i, width in enumerate(widths) for j in range(n)] + [('mid_block.motion_modules.0', 64)]
  for module, width in modules:
    for n in (1, 2):
      for part in ('to_q', 'to_k', 'to_v', 'to_out'):
        halves = {'down': rng.normal(size=(rank, width)) * width ** -0.5, 'up': rng.normal(size=(width, rank)) * 0.5}
        for half, value in halves.items():
          block = f'{module}.transformer_blocks.0.attn{n}'
          key = {'published': f'unet.{block}.processor.{part}_lora.{half}.weight',
                 'peft': f'unet.{block}.{part}{".0" * (part == "to_out")}.lora_{"A" if half == "down" else "B"}.weight',
                 'makers': f'{module}.temporal_transformer.transformer_blocks.0.attention_blocks.{n - 1}.processor.'
                           f'{part}_lora.{half}.weight'}[style]
          tensors[key] = value.astype(np.float32)
  save_tensors(path, tensors)
  return path


def write_clip_tokenizer(folder, merges=MERGES):
  """vocab.json and merges.txt: all bytes, all bytes at the end of a word, what the merges make, two special ones."""
  folder.mkdir(parents=True)
  alphabet = clip_tokenizer.printable_bytes()
  alphabet = sorted(alphabet, key=lambda c: (ord(c) >= 256, ord(c)))
  tokens = [*alphabet, *(c + '</w>' for c in alphabet), *map(''.join, merges), '<|startoftext|>', '<|endoftext|>']
  (folder / 'vocab.json').write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
  (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *map(' '.join, merges)]) + '\n')
  (folder / 'tokenizer_config.json').write_text(json.dumps({
      'tokenizer_class': 'CLIPTokenizer', 'model_max_length': 77, 'pad_token': '<|endoftext|>'}))
  return folder


def load_tensors(folder) -> dict[str, np.ndarray]:
  """Of all safetensors files of a folder."""
  tensors = {}
  for path in sorted(folder.glob('*.safetensors')):
    tensors |= safetensors.numpy.load_file(path)
  return tensors


def save_tensors(path, tensors):
  path.parent.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(tensors, path)


def write_svd(folder, shard_bytes: int = 10 ** 9, unet=SVD_UNET):
  """A pipeline's folder; the U-Net in shards where they are small."""
  trees = {'unet': unet, 'vae': SVD_VAE, 'image_encoder': CLIP_VISION}
  for seed, (name, tree) in enumerate(trees.items()):
    stem = 'model' if name == 'image_encoder' else 'diffusion_pytorch_model'
    write_part(folder / name, SVD.parts[name], tree, stem, seed, shard_bytes if name == 'unet' else 10 ** 9)
  for name, tree in (('scheduler/scheduler_config.json', {
      '_class_name': 'EulerDiscreteScheduler', 'beta_end': 0.012, 'beta_schedule': 'scaled_linear',
      'beta_start': 0.00085, 'interpolation_type': 'linear', 'num_train_timesteps': 1000,
      'prediction_type': 'v_prediction', 'sigma_max': 700.0, 'sigma_min': 0.002, 'steps_offset': 1,
      'timestep_spacing': 'leading', 'timestep_type': 'continuous', 'use_karras_sigmas': True}), (
          'feature_extractor/preprocessor_config.json', {
              'image_processor_type': 'CLIPImageProcessor', 'image_mean': [0.48145466, 0.4578275, 0.40821073],
              'image_std': [0.26862954, 0.26130258, 0.27577711]})):
    (folder / name).parent.mkdir()
    (folder / name).write_text(json.dumps(tree))
  (folder / 'model_index.json').write_text(json.dumps({
      '_class_name': 'StableVideoDiffusionPipeline', '_diffusers_version': '0.24.0',
      'feature_extractor': ['transformers', 'CLIPImageProcessor'],
      'image_encoder': ['transformers', 'CLIPVisionModelWithProjection'],
      'scheduler': ['diffusers', 'EulerDiscreteScheduler'], 'unet': ['diffusers', 'UNetSpatioTemporalConditionModel'],
      'vae': ['diffusers', 'AutoencoderKLTemporalDecoder']}))
  return folder
