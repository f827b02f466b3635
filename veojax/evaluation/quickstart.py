"""The quickstart's last step: clips of the trained model, what was measured, and one page that shows it all.

    python -m veojax.evaluation.quickstart RUN DATA FOLDER PROMPT

writes FOLDER/clip.mp4, of the prompt, and FOLDER/report.html. All other captions are those of held-out scenes; every clip
is scored against its own caption and against the others'. FOLDER/first.mp4, where it is, is the same prompt's clip by the
model that comes with the package.
"""
import collections
import pathlib
import sys
import time

from rich import console, progress

from veojax import host
from veojax.data import media
from veojax.evaluation import page, round_trip, world_score
from veojax.generation import model as models
from veojax.training import distortion, heldout, journal

NUM_CLIPS = 48      # scored
SHOWN = 6           # of these on the page
BATCH = 8

NEXT = '''veojax generate --model {run} --prompt "a small blue ball bounces, moving to the right" --output mine.mp4

# longer training goes on from here: better shapes and motion
veojax train --config configs/quickstart.py --workdir {run} --config.data={data} --config.loop.num_steps=6000

# your own clips
veojax prepare --source FOLDER --output data/clips --fps=8 --height=48 --width=64 --sample_rate=16000 \\
  --channels=2 --loudness=-23 --max_seconds=2.125 --validation_fraction=0 --vocab_size=600
veojax train --config configs/clips.py --workdir runs/clips --config.data=data/clips'''


def main(run: str, data: str, folder: str, prompt: str):
  run, out = pathlib.Path(run), pathlib.Path(folder)
  host.enable_compilation_cache()
  model = models.load(run)
  dataset = heldout.split(data)
  texts = [dataset.text(i) for i in range(min(NUM_CLIPS, len(dataset)))]
  started, clips = time.perf_counter(), []
  with progress.Progress(*progress.Progress.get_default_columns(), progress.TimeElapsedColumn()) as bar:
    task = bar.add_task('generating', total=len(texts))
    for i in range(0, len(texts), BATCH):
      clips += model.generate(texts[i:i + BATCH], seed=i)
      bar.update(task, completed=len(clips))
  seconds = (time.perf_counter() - started) / len(clips)
  clip = model.generate(prompt)
  clip.save(out / 'clip.mp4')
  truth = [dataset[i] for i in range(len(texts))]
  codec = [round_trip.through(t, model.video_codec, model.audio_codec) for t in truth]
  scores = {'generated': world_score.compare(clips, texts),
            'ground truth through the codec': world_score.compare(codec, texts),
            'ground truth': world_score.compare(truth, texts)}
  write_page(out / 'report.html', run, data, model, [clip, *clips[:SHOWN - 1]], [prompt, *texts[:SHOWN - 1]], truth,
             codec, scores, seconds)
  generated = scores['generated']
  console.Console().print(f'captions: own {generated["own"]:.3f}, shuffled {generated["shuffled"]:.3f}; '
                          f'{out / "clip.mp4"} and {out / "report.html"} are written', highlight=False, soft_wrap=True)


def write_page(path, run, data, model, clips, texts, truth, codec, scores, seconds):
  report = page.Page('veojax quickstart', 'Video with sound from text, trained on this machine in the last minutes.')
  if (first := path.parent / 'first.mp4').exists():
    report.section('By the model that comes with the package')
    report.clips([media.read(first)], texts[:1])
  report.section('By the model that was trained here')
  report.clips(clips, texts)
  report.section('Held-out clips, and the same through the codecs')
  report.clips([truth[0], codec[0], truth[1], codec[1]], ['the clip', 'through the codecs'] * 2)
  report.section('Measured')
  report.table(['what', 'value'], [
      ['video codec, PSNR on held-out clips', f'{distortion.psnr(round_trip.pictures(truth, codec)):.1f} dB'],
      ['audio codec, signal to distortion on held-out clips',
       f'{distortion.sdr(round_trip.sounds(truth, codec)):.1f} dB'],
      ['transformer, held-out loss', f'{journal.read(run)[-1]["evaluation/loss"]:.3f}'],
      ['time to generate a clip, in batches', f'{seconds:.1f} s']])
  report.section('Do the clips follow their captions?')
  report.text('Mean share of what a caption says that is found in the clip, by a parser of pixels and sound, '
              f'over {len(truth)} held-out captions; the same clips against the captions of others are the floor.')
  report.table(['clips', 'own caption', 'shuffled captions', 'difference, 95 % interval'],
               [[name, f'{s["own"]:.3f}', f'{s["shuffled"]:.3f}',
                 f'{s["difference"]:.3f}  [{s["low"]:.3f}, {s["high"]:.3f}]']
                for name, s in scores.items()])
  fields = scores['generated']['fields']
  report.table(['field', 'own caption', 'shuffled captions'],
               [[n, f'{a:.2f}', f'{b:.2f}'] for n, (a, b) in fields.items()])
  report.section('Loss')
  report.plot(curves(run))
  times = run.parent / 'times.tsv'
  if times.exists():
    report.section('Time')
    total = collections.Counter()
    for line in times.read_text().splitlines():
      name, seconds = line.split('\t')
      total[name] += int(seconds)
    report.table(['step', 'seconds'], [*total.items(), ('in all', total.total())])
  report.section('Next')
  report.commands(NEXT.format(run=run, data=data))
  report.write(path)


def curves(run: pathlib.Path):
  import matplotlib
  matplotlib.use('agg')
  import matplotlib.pyplot as plt
  # Codecs that came with the package have no run inside this one.
  runs = {'video VAE': run / 'video_vae', 'audio VAE': run / 'audio_vae', 'transformer': run}
  runs = {name: lines for name, folder in runs.items() if (lines := journal.read(folder))}
  figure, axes = plt.subplots(1, len(runs), figsize=(4 * len(runs), 2.8), squeeze=False)
  for ax, (name, lines) in zip(axes[0], runs.items()):
    for key in ('loss', 'evaluation/loss'):
      points = [(line['step'], line[key]) for line in lines if key in line]
      if points:
        ax.plot(*zip(*points), label=key.replace('evaluation/', 'held-out '), marker='o' if len(points) < 8 else None)
    ax.set(title=name, xlabel='step', yscale='log')
    ax.legend()
    ax.grid(alpha=.3)
  return figure


if __name__ == '__main__':
  main(*sys.argv[1:])
