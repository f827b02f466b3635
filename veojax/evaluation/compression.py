"""What compression costs: video codecs of several compressions and widths, trained alike on the world, beside the tokens
that a clip then has.

    python -m veojax.evaluation.compression DATA OUTPUT [--num_steps=1500] [--num_clips=64]

DATA is a prepared world; OUTPUT keeps a run of every codec, goes on where it stopped, and gets compression.json. All
but what a variant names is that of configs/world/video_vae.py.
"""
import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np
from rich import console, table

from veojax.evaluation import round_trip, world_laws
from veojax.generation import codecs
from veojax.training import distortion, heldout, run

CONFIG = 'configs/world/video_vae.py'
# compressions of time and space, latent channels, widths of the stages
VARIANTS = {
    '4x8x8': (4, 8, 16, (64, 128)),
    '4x8x8 half as wide': (4, 8, 16, (32, 64)),
    '4x8x8, 8 channels': (4, 8, 8, (64, 128)),
    '4x16x16': (4, 16, 64, (64, 128, 128)),
    '8x32x32': (8, 32, 256, (64, 128, 128, 256)),
}
CROP = 17, 64  # frames and sides that every variant divides


def variant(name: str, data: str, num_steps: int):
  """The run of one variant, as `run.train` takes it."""
  temporal, spatial, channels, widths = VARIANTS[name]
  base = run.build(run.read_config(CONFIG))
  stages = len(widths)
  model = dataclasses.replace(
      base.model, temporal_compression=temporal, spatial_compression=spatial, latent_channels=channels, widths=widths,
      encoder_depths=(1,) * (stages - 1) + (2,), decoder_depths=(1,) * (stages - 1) + (2,))
  crop = dataclasses.replace(base.crop, num_frames=CROP[0], height=CROP[1], width=CROP[1])
  loop = dataclasses.replace(base.loop, num_steps=num_steps, batch_size=2, sample_every=0, save_every=500)
  overlap = max(base.overlap, spatial)  # of the tiles, in whole latents
  return dataclasses.replace(base, data=data, model=model, crop=crop, loop=loop, overlap=overlap)


def measure(codec, clips) -> dict:
  """Size of the codec, tokens of a clip, PSNR in dB, and of the world's laws (truth, made, low, high)."""
  made = [dataclasses.replace(clip, video=codec.reconstruct(clip.video)) for clip in clips]
  laws = [[world_laws.measure(clip, clip.info) for clip in side] for side in (clips, made)]
  scores = {}
  for name in laws[0][0]:
    both = np.array([[x.get(name, np.nan) for x in pair] for pair in zip(*laws)])
    both = both[np.isfinite(both).all(1)]
    if len(both):
      scores[name] = (*both.mean(0).tolist(), *round_trip.interval(both[:, 1]))
  t, h, w, channels = codec.latent_shape(*clips[0].video.shape[:3])
  return {'parameters': sum(x.size for x in jax.tree.leaves(codec.vae)), 'tokens': t * h * w, 'channels': channels,
          'scores': scores, 'psnr': distortion.psnr(round_trip.pictures(clips, made))}


def main(data: str, output: str, *options: str):
  from veojax import arguments, host
  host.keep_memory()
  host.enable_compilation_cache()
  given = arguments.parse(list(options))
  out = pathlib.Path(output)
  dataset = heldout.split(data)
  clips = [dataset[i] for i in range(min(len(dataset), int(given.get('num_clips', 64))))]
  results = {}
  for name in VARIANTS:
    folder = out / name.replace(' ', '_').replace(',', '')
    run.train(variant(name, data, int(given.get('num_steps', 1500))), folder)
    results[name] = measure(codecs.load(folder, 'video'), clips)
    (out / 'compression.json').write_text(json.dumps(results, indent=2))
  show(results, len(clips))


def show(results: dict, num_clips: int):
  laws = next(iter(results.values()))['scores']
  out = table.Table(title=f'{num_clips} held-out clips; the truth below, what the codecs keep of it above, with 95 % '
                          'intervals', title_justify='left')
  for column in ('codec', 'parameters', 'tokens', 'channels', 'PSNR', *laws):
    out.add_column(column)
  for name, row in results.items():
    kept = [f'{made:.3f} [{low:.3f}, {high:.3f}]' for _, made, low, high in row['scores'].values()]
    out.add_row(name, f'{row["parameters"] / 1e6:.2f}M', str(row['tokens']), str(row['channels']),
                f'{row["psnr"]:.2f} dB', *kept)
  out.add_row('truth', '', '', '', '', *(f'{truth:.3f}' for truth, *_ in laws.values()))
  console.Console(width=160).print(out)


if __name__ == '__main__':
  main(*sys.argv[1:])
