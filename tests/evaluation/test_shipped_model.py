"""The model that comes with the package: small files, and on a fixed set of scenes the scores that its card tells."""
import json

import pytest

import veojax
from veojax import config as door
from veojax.evaluation import evaluate
from veojax.evaluation.world_benchmark import World
from veojax.models import weights

FOLDER = weights.SHIPPED / 'world'


def test_it_is_small():
  sizes = [path.stat().length for path in FOLDER.iterdir()]
  assert sum(sizes) <= 24e6 and max(sizes) < 2 ** 23


def test_it_knows_its_sizes_and_other_ones():
  model = veojax.load('world')
  assert (model.config.clip.num_frames, model.config.clip.height, model.config.clip.width) == (33, 64, 64)
  clip = model.generate('a small red ball', num_frames=17, height=48, width=80, fps=12, num_inference_steps=1)
  assert clip.video.shape == (17, 48, 80, 3) and clip.audio.shape == (round(17 / 12 * 16000), 2)


@pytest.mark.slow
def test_its_scores_on_a_fixed_set_stay_within_their_intervals():
  report = json.loads((FOLDER / 'scores.json').read_text())
  bench = door.build(World, report['setting'], 'world')
  with evaluate.local_mesh():
    rows = bench.rows(evaluate.subject('world', {}), 'made', range(bench.num_clips))
  scores = bench.scores(rows)
  for name in ('told', 'colour', 'size', 'count', 'permanence'):
    told = report['scores'][name]['made']
    one = 1 / told['num_clips']  # of clips that are all right the interval is a point, and rounding may change a clip
    assert told['low'] - one <= scores[name]['made'].value <= told['high'] + one, (name, told, scores[name]['made'])
