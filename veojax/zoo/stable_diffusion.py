"""Stable Diffusion 1.5 as its makers published it (Rombach et al. 2022): one file with the U-Net, the autoencoder and
the text encoder, each under a prefix. Sizes, schedule and tokenizer are not in it.

Layers of the U-Net are numbered through, those between two stages with them: with n layers a stage, layer j of stage i
is block 1 + i (n + 1) + j on the way down and i (n + 1) + j on the way up. The autoencoder's decoder counts its stages
from fine to coarse.
"""
import dataclasses
import functools
from collections.abc import Callable, Sequence

from veojax.zoo import clip_text, unet_layers
from veojax.zoo.animatediff_unet import ImageUNetConfig
from veojax.zoo.clip_text import ClipTextConfig
from veojax.zoo.kl_vae import KLVAEConfig
from veojax.zoo.published import Original
from veojax.zoo.transforms import LINEAR, pointwise
from veojax.zoo.unet_layers import conv_rules, linear_rules, norm_rules
from veojax.zoo.weight_table import Rule

UNET_KEYS, VAE_KEYS, _TEXT_KEYS = 'model.diffusion_model.', 'first_stage_model.', 'cond_stage_model.transformer.'
# Keys of what is no part of the model: averages from training beside what is used, and the schedule.
BESIDE = r'model_ema\..+|betas|\w*alphas_cumprod\w*|posterior_\w+|logvar|scale_factor'

Rules = Callable[[str, str], Sequence[Rule]]  # of a layer, by the names of source and target


def unet_table(config: ImageUNetConfig) -> Sequence[Rule]:
  transformer = functools.partial(unet_layers.transformer_rules,
                                  projection=LINEAR if config.use_linear_projection else pointwise(2))
  return [*mlp_rules(f'{UNET_KEYS}time_embed', 'time'), *end_rules(),
          *timed_residual(f'{UNET_KEYS}middle_block.0', 'mid.resnets.0'),
          *transformer(f'{UNET_KEYS}middle_block.1', 'mid.attentions.0'),
          *timed_residual(f'{UNET_KEYS}middle_block.2', 'mid.resnets.1'),
          *stages(config.down_block_types, config.up_block_types, config.layers_per_block, timed_residual, transformer,
                  'attentions')]


def end_rules() -> list[Rule]:
  return [*conv_rules(f'{UNET_KEYS}input_blocks.0.0', 'conv_in'), *norm_rules(f'{UNET_KEYS}out.0', 'norm_out'),
          *conv_rules(f'{UNET_KEYS}out.2', 'conv_out')]


def mlp_rules(source: str, target: str) -> list[Rule]:
  """Of an Embedding: its products are the first and the third of a sequence."""
  return [*linear_rules(f'{source}.0', f'{target}.linear_1'), *linear_rules(f'{source}.2', f'{target}.linear_2')]


def stages(down: Sequence[str], up: Sequence[str], depth: int, residual: Rules, transformer: Rules, attentions: str
           ) -> list[Rule]:
  """Of the layers on both ways, by the kinds of their stages; `attentions` is what we call the transformers."""
  rules = []
  for side, blocks, kinds, extra in (('down', 'input_blocks', down, 0), ('up', 'output_blocks', up, 1)):
    for i, kind in enumerate(kinds):
      first, attends = i * (depth + 1) + 1 - extra, kind.startswith('CrossAttn')
      for j in range(depth + extra):
        block = f'{UNET_KEYS}{blocks}.{first + j}'
        rules += residual(f'{block}.0', f'{side}.{i}.resnets.{j}')
        if attends:
          rules += transformer(f'{block}.1', f'{side}.{i}.{attentions}.{j}')
      sample = f'{UNET_KEYS}{blocks}.{first + depth}'
      rules += conv_rules(f'{sample}.0.op' if side == 'down' else f'{sample}.{1 + attends}.conv', f'{side}.{i}.sample')
  return rules


def timed_residual(source: str, target: str) -> list[Rule]:
  return [*norm_rules(f'{source}.in_layers.0', f'{target}.norm1'),
          *conv_rules(f'{source}.in_layers.2', f'{target}.conv1'),
          *linear_rules(f'{source}.emb_layers.1', f'{target}.time'),
          *norm_rules(f'{source}.out_layers.0', f'{target}.norm2'),
          *conv_rules(f'{source}.out_layers.3', f'{target}.conv2'),
          *unet_layers.weights(f'{source}.skip_connection', f'{target}.shortcut', pointwise(2))]


def vae_table(cfg: KLVAEConfig) -> Sequence[Rule]:
  num = len(cfg.block_out_channels)
  return [*unet_layers.weights(f'{VAE_KEYS}{{name:quant|post_quant}}_conv', '{name}', pointwise(2)),
          *vae_side('encoder', VAE_KEYS, num, residual), *vae_side('decoder', VAE_KEYS, num, residual)]


def vae_side(side: str, prefix: str, num_stages: int, residual: Rules) -> list[Rule]:
  """Of 'encoder' or 'decoder', whose keys begin with the prefix."""
  source, middle = f'{prefix}{side}', f'{side}.middle'
  stage, sample = ('down', 'downsample') if side == 'encoder' else ('up', 'upsample')
  rules = [*conv_rules(f'{source}.conv_{{end:in|out}}', f'{side}.conv_{{end}}'),
           *norm_rules(f'{source}.norm_out', f'{side}.norm_out'),
           *residual(f'{source}.mid.block_1', f'{middle}.resnets.0'),
           *residual(f'{source}.mid.block_2', f'{middle}.resnets.1'),
           *norm_rules(f'{source}.mid.attn_1.norm', f'{middle}.attention.norm'),
           *unet_layers.weights(f'{source}.mid.attn_1.{{part:[qkv]}}', f'{middle}.attention.{{part}}', pointwise(2)),
           *unet_layers.weights(f'{source}.mid.attn_1.proj_out', f'{middle}.attention.out', pointwise(2))]
  for i in range(num_stages):
    theirs, ours = f'{source}.{stage}.{i if side == "encoder" else num_stages - 1 - i}', f'{side}.stages.{i}'
    rules += [*residual(f'{theirs}.block.{{j}}', f'{ours}.resnets.{{j}}'),
              *conv_rules(f'{theirs}.{sample}.conv', f'{ours}.sample')]
  return rules


def residual(source: str, target: str) -> list[Rule]:
  return [*norm_rules(f'{source}.norm{{n:[12]}}', f'{target}.norm{{n}}'),
          *conv_rules(f'{source}.conv{{n:[12]}}', f'{target}.conv{{n}}'),
          *unet_layers.weights(f'{source}.nin_shortcut', f'{target}.shortcut', pointwise(2))]


def text_table(config: ClipTextConfig) -> Sequence[Rule]:
  return [dataclasses.replace(rule, source=_TEXT_KEYS + rule.source) for rule in clip_text.table(config)]


UNET = Original({}, unet_table, lambda files: {}, (UNET_KEYS,))
VAE = Original({}, vae_table, lambda files: {
    'down_block_types': ['DownEncoderBlock2D'] * 4, 'up_block_types': ['UpDecoderBlock2D'] * 4,
    'block_out_channels': [128, 256, 512, 512], 'layers_per_block': 2}, (VAE_KEYS,))
TEXT = Original({}, text_table, lambda files: {
    'model_type': 'clip_text_model', 'hidden_size': 768, 'intermediate_size': 3072, 'num_hidden_layers': 12,
    'num_attention_heads': 12}, (_TEXT_KEYS,))
