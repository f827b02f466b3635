"""Stable Video Diffusion as its makers published it (Blattmann et al. 2023): one file with the U-Net, the autoencoder
and OpenCLIP's tower of pictures, each under a prefix. Sizes, schedule and the pictures' mean and deviation are not in it.

Layers are numbered as in `stable_diffusion`; what looks along time stands in `time_stack` beside them. First frames are
encoded by an autoencoder of their own, that of Stable Diffusion, whose decoder is not used; of the other, with layers
along time, only the decoder is.
"""
from collections.abc import Mapping, Sequence
from typing import Any

from veojax.zoo import stable_diffusion, svd_unet, unet_layers
from veojax.zoo.clip_vision import ClipVisionConfig
from veojax.zoo.published import Original
from veojax.zoo.stable_diffusion import BESIDE as BESIDE_IMAGES, UNET_KEYS, VAE_KEYS
from veojax.zoo.svd_unet import SVDUNetConfig
from veojax.zoo.svd_vae import SVDVAEConfig
from veojax.zoo.transforms import FLAT, LINEAR, LINEAR_FROM_HEADS, patch, pointwise
from veojax.zoo.unet_layers import linear_rules, norm_rules
from veojax.zoo.weight_files import WeightFiles
from veojax.zoo.weight_table import Rule

_FIRST, _CLIP = 'conditioner.embedders.3.encoder.', 'conditioner.embedders.0.open_clip.model.'
_PICTURES = f'{_CLIP}visual.'
_UNUSED = r'loss\..+|post_quant_conv\.(weight|bias)'
BESIDE = '|'.join((BESIDE_IMAGES, rf'{VAE_KEYS}(encoder\..+|quant_conv\.(weight|bias)|{_UNUSED})',
                   rf'{_FIRST}(decoder\..+|{_UNUSED})', rf'{_CLIP}(?!visual\.).+'))


def unet_table(config: SVDUNetConfig) -> Sequence[Rule]:
  return [*stable_diffusion.mlp_rules(f'{UNET_KEYS}time_embed', 'level'),
          *stable_diffusion.mlp_rules(f'{UNET_KEYS}label_emb.0', 'conditions'), *stable_diffusion.end_rules(),
          *_timed_residual(f'{UNET_KEYS}middle_block.0', 'middle.resnets.0'),
          *_transformer(f'{UNET_KEYS}middle_block.1', 'middle.transformer'),
          *_timed_residual(f'{UNET_KEYS}middle_block.2', 'middle.resnets.1'),
          *stable_diffusion.stages(config.down_block_types, config.up_block_types, config.layers_per_block,
                                   _timed_residual, _transformer, 'transformers')]


def _timed_residual(source: str, target: str) -> list[Rule]:
  return [*stable_diffusion.timed_residual(source, f'{target}.space'),
          *linear_rules(f'{source}.time_stack.emb_layers.1', f'{target}.time.time'),
          *_time_residual(f'{source}.time_stack', f'{target}.time'),
          Rule(f'{source}.time_mixer.mix_factor', f'{target}.share')]


def _time_residual(source: str, target: str) -> list[Rule]:
  convolution = svd_unet.TIME_CONV, 'kernel', 'bias'
  return [*norm_rules(f'{source}.in_layers.0', f'{target}.norm1'),
          *unet_layers.weights(f'{source}.in_layers.2', f'{target}.conv1', *convolution),
          *norm_rules(f'{source}.out_layers.0', f'{target}.norm2'),
          *unet_layers.weights(f'{source}.out_layers.3', f'{target}.conv2', *convolution)]


def _transformer(source: str, target: str) -> list[Rule]:
  return [*unet_layers.transformer_rules(source, target),
          *svd_unet.time_block_rules(f'{source}.time_stack.{{k}}', f'{target}.time_blocks.{{k}}'),
          *stable_diffusion.mlp_rules(f'{source}.time_pos_embed', f'{target}.frame'),
          Rule(f'{source}.time_mixer.mix_factor', f'{target}.share')]


def vae_table(cfg: SVDVAEConfig) -> Sequence[Rule]:
  num = len(cfg.block_out_channels)
  return [*unet_layers.weights(f'{_FIRST}quant_conv', 'quant', pointwise(2)),
          *stable_diffusion.vae_side('encoder', _FIRST, num, stable_diffusion.residual),
          *stable_diffusion.vae_side('decoder', VAE_KEYS, num, _residual),
          *unet_layers.weights(f'{VAE_KEYS}decoder.conv_out.time_mix_conv', 'decoder.time_out', svd_unet.TIME_CONV,
                               'kernel', 'bias')]


def _residual(source: str, target: str) -> list[Rule]:
  return [*stable_diffusion.residual(source, f'{target}.space'),
          *_time_residual(f'{source}.time_stack', f'{target}.time'), Rule(f'{source}.mix_factor', f'{target}.share')]


def image_table(config: ClipVisionConfig) -> Sequence[Rule]:
  """OpenCLIP's names: q, k and v in one matrix, the projection as a matrix of its own."""
  block, p = f'{_PICTURES}transformer.resblocks.{{layer}}', config.patch_size
  attention = [f'blocks.attention.{{}}_{part}' for part in 'qkv']
  return [Rule(f'{_PICTURES}class_embedding', 'whole'), Rule(f'{_PICTURES}positional_embedding', 'position'),
          Rule(f'{_PICTURES}conv1.weight', 'patch', patch(p, p)), Rule(f'{_PICTURES}proj', 'project'),
          *norm_rules(f'{_PICTURES}ln_pre', 'norm_in'), *norm_rules(f'{_PICTURES}ln_post', 'norm_out'),
          *norm_rules(f'{block}.ln_1', 'blocks.attention_norm'), *norm_rules(f'{block}.ln_2', 'blocks.mlp_norm'),
          Rule(f'{block}.attn.in_proj_weight', [name.format('w') for name in attention], LINEAR),
          Rule(f'{block}.attn.in_proj_bias', [name.format('b') for name in attention], FLAT),
          Rule(f'{block}.attn.out_proj.weight', 'blocks.attention.w_out', LINEAR_FROM_HEADS),
          Rule(f'{block}.attn.out_proj.bias', 'blocks.attention.b_out'),
          *unet_layers.weights(f'{block}.mlp.c_fc', 'blocks', LINEAR, 'w_up', 'b_up'),
          *unet_layers.weights(f'{block}.mlp.c_proj', 'blocks', LINEAR, 'w_down', 'b_down')]


def _unet_config(files: WeightFiles) -> Mapping[str, Any]:
  """svd and svd_xt differ in the frames that they were trained for, which their names alone tell."""
  return {'num_frames': 25 if any('xt' in path.stem for path in files.paths) else 14}


UNET = Original({}, unet_table, _unet_config, (UNET_KEYS,))
VAE = Original({}, vae_table, lambda files: {}, (f'{VAE_KEYS}decoder.', f'{_FIRST}encoder.', f'{_FIRST}quant_conv.'))
IMAGES = Original({}, image_table, lambda files: {
    'model_type': 'clip_vision_model', 'hidden_size': 1280, 'intermediate_size': 5120, 'num_hidden_layers': 32,
    'num_attention_heads': 16, 'patch_size': 14, 'projection_dim': 1024, 'hidden_act': 'gelu'}, (_PICTURES,))
