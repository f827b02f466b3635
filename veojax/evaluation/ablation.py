"""What a choice of the recipe is worth: the quickstart's transformer trained once for each variant, alike in all else,
and its clips scored against their captions.

    python -m veojax.evaluation.ablation DATA OUTPUT [--num_steps=300] [--num_clips=48] [--variants="('flow','v')"]

DATA is a prepared world; OUTPUT keeps a run of every variant, goes on where it stopped, and gets ablation.json, of all
variants that were ever asked for. Differences to the first variant are of the same captions under the same noise, with
95 % intervals by bootstrap over the captions.
"""
import json
import pathlib
import shutil
import sys

import numpy as np
from rich import console, progress, table

from veojax import files
from veojax.evaluation import round_trip, world_score
from veojax.generation import model as models
from veojax.training import heldout, run

CONFIG = 'configs/quickstart.py'
BEFORE = {'loss': {'video_shift': 1.0}}  # the quickstart as it was before the table of variants changed it
VARIANTS = {  # keys of the config that differ from that
    'flow': {},
    'v': {'objective': {'process': 'vp_cosine_zero_snr', 'prediction': 'v'}},
    'v, min-SNR': {'objective': {'process': 'vp_cosine_zero_snr', 'prediction': 'v'}, 'loss': {'weighting': 'min_snr'}},
    'x0': {'objective': {'process': 'flow', 'prediction': 'x0'}},
    'flow, AdamW': {'optimizer': {'kind': 'adamw', 'learning_rate': 2e-3}},
    'flow, uniform timesteps': {'loss': {'timesteps': 'uniform'}},
    'flow, shift 2': {'loss': {'video_shift': 2.0}},
    'flow, tokens of 2x2 latents': {'video_patch': 2, 'dit': {'video_channels': 64}, 'pack': {'row_tokens': 128}},
    'flow, sound weighs 1': {'loss': {'audio_weight': 1.0}},
    'flow, 3 layers of 256': {'dit': {'depth': 3, 'width': 256, 'num_heads': 4, 'mlp_width': 704}},
    'flow, 12 layers of 128': {'dit': {'depth': 12, 'width': 128, 'num_heads': 2, 'mlp_width': 352}},
}
BATCH, RESULTS = 8, 'ablation.json'


def variant(name: str, data: str, num_steps: int):
  """The run of one variant, as `run.train` takes it."""
  tree = run.read_config(CONFIG).unlock()
  tree.data, tree.loop.num_steps = data, num_steps
  for part, values in (*BEFORE.items(), *VARIANTS[name].items()):
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
  settings = {'num_clips': len(texts), 'num_steps': int(given.get('num_steps', 300)), 'first': names[0]}
  results = kept(out / RESULTS, settings)
  first = variant(names[0], data, settings['num_steps'])
  for name in names:
    if name in results:
      continue
    folder, config = out / folder_of(name), variant(name, data, settings['num_steps'])
    if name != names[0] and config.video_patch == first.video_patch and not (folder / 'latents').exists():
      shutil.copytree(out / folder_of(names[0]) / 'latents', folder / 'latents')  # the same codecs
    run.train(config, folder)
    own, compared = scores(folder, texts)
    reference = own if not results else np.array(results[names[0]]['each'])
    low, high = round_trip.interval(own - reference)
    results[name] = {**{k: compared[k] for k in ('own', 'shuffled', 'difference', 'low', 'high', 'fields')},
                     'each': own.tolist(), 'against first': [float(np.mean(own - reference)), low, high]}
    files.write(out / RESULTS, json.dumps({'settings': settings, 'variants': results}, indent=2).encode())
  show(results, len(texts))


def kept(path: pathlib.Path, settings: dict) -> dict:
  """The variants that have been scored before. Raises ValueError where that was with other settings."""
  if not path.exists():
    return {}
  found = json.loads(path.read_text())
  if found['settings'] != settings:
    raise ValueError(f'{path} was made with {found["settings"]}, asked for is {settings}; give another folder')
  return found['variants']


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
