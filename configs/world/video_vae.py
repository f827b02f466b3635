"""The world's video codec, shipped with the package as 'world': 4×8×8.

  veojax prepare --source world --output data/world --num_clips=3000 --validation_fraction=0.05 \
    --world.levels="('L1','L2','L3','L4','L5','L6','L7')"
  veojax train --config configs/world/video_vae.py --workdir runs/world/video_vae --config.data=data/world

and then a finer decoder alone, on other clips (--seed=11), whose latents stay what they are:

  veojax train --config configs/world/video_vae.py --workdir runs/world/video_decoder --config.data=data/more \
    --config.start=runs/world/video_vae --config.learn=decoder --config.motion_weight=0.06 \
    --config.model.decoder_patch_time=1 --config.model.decoder_patch_size=2 \
    --config.model.decoder_widths="(32,64,128)" --config.model.decoder_depths="(2,2,3)" --config.loop.num_steps=9000

and 6000 steps more from runs/world/video_decoder in the same way, with --config.motion_weight=0.1
--config.optimizer.learning_rate=3e-3.

Hardware: one core of a CPU, 34 minutes, 53 and 35. Expect a PSNR of 34 dB on held-out clips, and of 37 dB in the end.
"""
import ml_collections


def get_config():
  return ml_collections.ConfigDict({
      'stage': 'video_vae',
      'model': {'temporal_compression': 4, 'spatial_compression': 8, 'patch_time': 2, 'patch_size': 4,
                'latent_channels': 16, 'widths': (64, 128), 'encoder_depths': (1, 2), 'decoder_depths': (2, 3)},
      'crop': {'num_frames': 9, 'height': 40, 'width': 40},
      'l1_weight': 0.02,
      'kl_weight': 1e-5,
      'tile': 64,
      'evaluation_clips': 64,
      'optimizer': {'kind': 'muon', 'learning_rate': 5e-3, 'warmup_steps': 50, 'final_share': 0.01},
      'loop': {'num_steps': 9500, 'batch_size': 8, 'ema_decays': (0.99,), 'log_every': 100, 'evaluate_every': 0,
               'sample_every': 9500, 'save_every': 1000},
  })
