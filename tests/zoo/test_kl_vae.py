"""The autoencoder of latent diffusion against diffusers' own, through the folders that it reads."""
import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.zoo import parity
from tests.zoo import small_folders as small
from veojax.zoo import kl_vae, weight_table
from veojax.zoo.kl_vae import KLVAE, KLVAEConfig
from veojax.zoo.published import Part

PART = Part('AutoencoderKL', KLVAEConfig, lambda config, rngs: KLVAE(config, rngs=rngs), kl_vae.table,
            kl_vae.IGNORED, on_mesh=False)
CONFIG = dict(in_channels=3, out_channels=3, down_block_types=['DownEncoderBlock2D'] * 2,
              up_block_types=['UpDecoderBlock2D'] * 2, block_out_channels=[32, 64], layers_per_block=1, act_fn='silu',
              latent_channels=4, norm_num_groups=32, sample_size=32, scaling_factor=0.18215, force_upcast=True)
DEEPER = {**CONFIG, 'down_block_types': ['DownEncoderBlock2D'] * 3, 'up_block_types': ['UpDecoderBlock2D'] * 3,
          'block_out_channels': [32, 32, 48], 'layers_per_block': 2, 'norm_num_groups': 16, 'latent_channels': 3}


@pytest.mark.parametrize('config', [CONFIG, DEEPER], ids=['two stages', 'three stages'])
def test_the_autoencoder_is_diffusers(config, tmp_path):
  torch, diffusers = parity.libraries()
  module = small.write_part(tmp_path / 'a', PART, config, 'diffusion_pytorch_model', 5)
  theirs, report = diffusers.AutoencoderKL.from_pretrained(tmp_path / 'a', output_loading_info=True)
  assert not report['missing_keys'] and not report['unexpected_keys']
  pixels = parity.normal(1, 2, 2, 24, 16, 3)
  with jax.default_matmul_precision('highest'), torch.no_grad():
    mean, logvar = jax.jit(KLVAE.encode)(module, pixels)
    latent = parity.normal(2, *mean.shape)
    decoded = jax.jit(KLVAE.decode)(module, latent)
    posterior = theirs.encode(parity.frames_first(torch, pixels)).latent_dist
    errors = [parity.relative(ours, parity.frames_last(z, pixels)) for ours, z in (
        (mean, posterior.mean), (logvar, posterior.logvar),
        (decoded, theirs.decode(parity.frames_first(torch, latent)).sample))]
  print('mean, log variance, pixels: largest relative differences', *(f'{e:.2e}' for e in errors))
  assert max(errors) < 1e-5


def test_older_names_of_the_attention_are_read(tmp_path):
  module = small.write_part(tmp_path / 'a', PART, CONFIG, 'diffusion_pytorch_model', 5)
  path = tmp_path / 'a' / 'diffusion_pytorch_model.safetensors'
  older = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
  tensors = {}
  for key, value in safetensors.numpy.load_file(path).items():
    for new, old in older.items():
      key = key.replace(f'attentions.0.{new}.', f'attentions.0.{old}.')
    tensors[key] = value
  safetensors.numpy.save_file(tensors, path)
  config = PART.read_config(tmp_path / 'a' / 'config.json')
  again = weight_table.load(tmp_path / 'a', PART.table(config), PART.shapes(config))
  jax.tree.map(np.testing.assert_array_equal, again, module)


@pytest.mark.parametrize('change, message', [
    ({'block_out_channels': [32, 60]}, 'multiples of 32'), ({'up_block_types': ['UpDecoderBlock2D']}, '1 up'),
    ({'use_quant_conv': False}, 'use_quant_conv'), ({'shift_factor': 0.1}, 'shift_factor')])
def test_configs_of_other_autoencoders_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    PART.build({**CONFIG, **change}, 'config.json')
