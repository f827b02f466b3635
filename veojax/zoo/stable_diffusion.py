"""Stable Diffusion 1.5 as its makers published it (Rombach et al. 2022): one file with the U-Net, the autoencoder and
the text encoder, each under a prefix. Sizes, schedule and tokenizer are not in it.

Layers of the U-Net are numbered through, those between two stages with them: with n layers a stage, layer j of stage i
is block 1 + i (n + 1) + j on the way down and i (n + 1) + j on the way up. The autoencoder's decoder counts its stages
from fine to coarse.
"""
import dataclasses
from collections.abc import Sequence

from veojax.zoo import clip_text, unet_layers
from veojax.zoo.animatediff_unet import ImageUNetConfig
from veojax.zoo.clip_text import ClipTextConfig
from veojax.zoo.kl_vae import KLVAEConfig
from veojax.zoo.published import Original
from veojax.zoo.transforms import LINEAR, pointwise
from veojax.zoo.unet_layers import conv_rules, linear_rules, norm_rules
from veojax.zoo.weight_table import Rule

_UNET, _VAE, _TEXT = 'model.diffusion_model.', 'first_stage_model.', 'cond_stage_model.transformer.'
# Keys of what is no part of the model: averages from training beside what is used, and the schedule.
BESIDE = r'model_ema\..+|betas|\w*alphas_cumprod\w*|posterior_\w+|logvar|scale_factor'


def unet_table(config: ImageUNetConfig) -> Sequence[Rule]:
  projection = LINEAR if config.use_linear_projection else pointwise(2)
  rules = [*conv_rules(f'{_UNET}input_blocks.0.0', 'conv_in'), *linear_rules(f'{_UNET}time_embed.0', 'time.linear_1'),
           *linear_rules(f'{_UNET}time_embed.2', 'time.linear_2'), *norm_rules(f'{_UNET}out.0', 'norm_out'),
           *conv_rules(f'{_UNET}out.2', 'conv_out'), *_timed_residual(f'{_UNET}middle_block.0', 'mid.resnets.0'),
           *unet_layers.transformer_rules(f'{_UNET}middle_block.1', 'mid.attentions.0', projection),
           *_timed_residual(f'{_UNET}middle_block.2', 'mid.resnets.1')]
  for side, blocks, kinds, extra in (('down', 'input_blocks', config.down_block_types, 0),
                                     ('up', 'output_blocks', config.up_block_types, 1)):
    for i, kind in enumerate(kinds):
      first, attends = i * (config.layers_per_block + 1) + 1 - extra, kind.startswith('CrossAttn')
      for j in range(config.layers_per_block + extra):
        block = f'{_UNET}{blocks}.{first + j}'
        rules += _timed_residual(f'{block}.0', f'{side}.{i}.resnets.{j}')
        if attends:
          rules += unet_layers.transformer_rules(f'{block}.1', f'{side}.{i}.attentions.{j}', projection)
      sample = f'{_UNET}{blocks}.{first + config.layers_per_block}'
      rules += conv_rules(f'{sample}.0.op' if side == 'down' else f'{sample}.{1 + attends}.conv', f'{side}.{i}.sample')
  return rules


def _timed_residual(source: str, target: str) -> list[Rule]:
  return [*norm_rules(f'{source}.in_layers.0', f'{target}.norm1'),
          *conv_rules(f'{source}.in_layers.2', f'{target}.conv1'),
          *linear_rules(f'{source}.emb_layers.1', f'{target}.time'),
          *norm_rules(f'{source}.out_layers.0', f'{target}.norm2'),
          *conv_rules(f'{source}.out_layers.3', f'{target}.conv2'),
          *unet_layers.weights(f'{source}.skip_connection', f'{target}.shortcut', pointwise(2))]


def vae_table(cfg: KLVAEConfig) -> Sequence[Rule]:
  last, rules = len(cfg.block_out_channels) - 1, []
  for name in ('quant', 'post_quant'):
    rules += unet_layers.weights(f'{_VAE}{name}_conv', name, pointwise(2))
  for side, stage, sample in (('encoder', 'down', 'downsample'), ('decoder', 'up', 'upsample')):
    source, middle = f'{_VAE}{side}', f'{side}.middle'
    rules += [*conv_rules(f'{source}.conv_{{end:in|out}}', f'{side}.conv_{{end}}'),
              *norm_rules(f'{source}.norm_out', f'{side}.norm_out'),
              *_residual(f'{source}.mid.block_1', f'{middle}.resnets.0'),
              *_residual(f'{source}.mid.block_2', f'{middle}.resnets.1'),
              *norm_rules(f'{source}.mid.attn_1.norm', f'{middle}.attention.norm'),
              *unet_layers.weights(f'{source}.mid.attn_1.{{part:[qkv]}}', f'{middle}.attention.{{part}}', pointwise(2)),
              *unet_layers.weights(f'{source}.mid.attn_1.proj_out', f'{middle}.attention.out', pointwise(2))]
    for i in range(last + 1):
      theirs, ours = f'{source}.{stage}.{i if side == "encoder" else last - i}', f'{side}.stages.{i}'
      rules += [*_residual(f'{theirs}.block.{{j}}', f'{ours}.resnets.{{j}}'),
                *conv_rules(f'{theirs}.{sample}.conv', f'{ours}.sample')]
  return rules


def _residual(source: str, target: str) -> list[Rule]:
  return [*norm_rules(f'{source}.norm{{n:[12]}}', f'{target}.norm{{n}}'),
          *conv_rules(f'{source}.conv{{n:[12]}}', f'{target}.conv{{n}}'),
          *unet_layers.weights(f'{source}.nin_shortcut', f'{target}.shortcut', pointwise(2))]


def text_table(config: ClipTextConfig) -> Sequence[Rule]:
  return [dataclasses.replace(rule, source=_TEXT + rule.source) for rule in clip_text.table(config)]


UNET = Original({}, unet_table, lambda files: {}, _UNET)
VAE = Original({}, vae_table, lambda files: {
    'down_block_types': ['DownEncoderBlock2D'] * 4, 'up_block_types': ['UpDecoderBlock2D'] * 4,
    'block_out_channels': [128, 256, 512, 512], 'layers_per_block': 2}, _VAE)
TEXT = Original({}, text_table, lambda files: {
    'model_type': 'clip_text_model', 'hidden_size': 768, 'intermediate_size': 3072, 'num_hidden_layers': 12,
    'num_attention_heads': 12}, _TEXT)
