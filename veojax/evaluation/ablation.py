"""What a choice of the recipe is worth: the quickstart's transformer trained once for each variant, alike in all else,
and its clips scored against their captions.

    python -m veojax.evaluation.ablation DATA OUTPUT [--num_steps=300] [--num_clips=48] [--variants="('flow','v')"]

DATA is a prepared world; OUTPUT keeps a run of every variant, goes on where it stopped, and gets ablation.json. Differences
to the first variant are of the same captions under the same noise, with 95 % intervals by bootstrap over the captions.
"""
import json
import pathlib
import shutil
import sys

import numpy as np
from rich import console, progress, table

from veojax.evaluation import round_trip, world_score
from veojax.generation import model as models
from veojax.training import heldout, run

CONFIG = 'configs/quickstart.py'
VARIANTS = {  # keys of the config that differ from it
    'flow': {},
    'v': {'objective': {'process': 'vp_cosine_zero_snr', 'prediction': 'v'}},
    'v, min-SNR': {'objective': {'process': 'vp_cosine_zero_snr', 'prediction': 'v'}, 'loss': {'weighting': 'min_snr'}},
    'x0': {'objective': {'process': 'flow', 'prediction': 'x0'}},
    'flow, AdamW': {'optimizer': {'kind': 'adamw', 'learning_rate': 2e-3}},
    'flow, uniform timesteps': {'loss': {'timesteps': 'uniform'}},
    'flow, shift 2': {'loss': {'video_shift': 2.0}},
    'flow, tokens of 2x2 latents': {'video_patch': 2, 'dit': {'video_channels': 64}, 'pack': {'row_tokens': 128}},
}
BATCH = 8


def variant(name: str, data: str, num_steps: int):
  """The run of one variant, as `run.train` takes it."""
  tree = run.read_config(CONFIG).unlock()
  tree.data, tree.loop.num_steps = data, num_steps
  for part, values in VARIANTS[name].items():
    tree[part] = {**tree.get(part, {}), **values} if isinstance(values, dict) else values
  return run.build(tree)


def folder_of(name: str) -> str:
  return name.replace(',', '').replace(' ', '_')


def scores(folder: pathlib.Path, texts: list[str]) -> tuple[np.ndarray, dict]:
  """(each clip's score of its own caption, float[n]; what `world_score.compare` says of them)."""
  model, clips = models.load(folder), []
  for i in progress.track(range(0, len(texts), BATCH), folder.name):
    clips += model.generate(texts[i:i + BATCH], seed=i)
  own = np.array([world_score.caption_score(clip, text)['overall'] for clip, text in zip(clips, texts)])
  return own, world_score.compare(clips, texts)


def main(data: str, output: str, *options: str):
  from veojax import arguments, host
  host.keep_memory()
  host.enable_compilation_cache()
  given = arguments.parse(list(options))
  dataset, out = heldout.split(data), pathlib.Path(output)
  texts = [dataset.text(i) for i in range(min(len(dataset), int(given.get('num_clips', 48))))]
  names = tuple(given.get('variants', VARIANTS))
  first, results = None, {}
  for name in names:
    folder = out / folder_of(name)
    config = variant(name, data, int(given.get('num_steps', 300)))
    if first is not None and config.video_patch == first.video_patch and not (folder / 'latents').exists():
      shutil.copytree(out / folder_of(names[0]) / 'latents', folder / 'latents')  # the same codecs
    first = first or config
    run.train(config, folder)
    own, compared = scores(folder, texts)
    reference = own if not results else np.array(results[names[0]]['each'])
    low, high = round_trip.interval(own - reference)
    results[name] = {**{k: compared[k] for k in ('own', 'shuffled', 'difference', 'low', 'high', 'fields')},
                     'each': own.tolist(), 'against first': [float(np.mean(own - reference)), low, high]}
    (out / 'ablation.json').write_text(json.dumps(results, indent=2))
  show(results, len(texts))


def show(results: dict, num_clips: int):
  first = next(iter(results))
  out = table.Table(title=f'{num_clips} held-out captions, 95 % intervals', title_justify='left')
  for column in ('variant', 'own captions', 'shuffled', 'own - shuffled', f'own, against {first}'):
    out.add_column(column)
  for name, row in results.items():
    mean, low, high = row['against first']
    out.add_row(name, f'{row["own"]:.3f}', f'{row["shuffled"]:.3f}',
                f'{row["difference"]:.3f} [{row["low"]:.3f}, {row["high"]:.3f}]',
                '' if name == first else f'{mean:+.3f} [{low:+.3f}, {high:+.3f}]')
  console.Console(width=140).print(out)


if __name__ == '__main__':
  main(*sys.argv[1:])
