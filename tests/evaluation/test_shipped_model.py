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
  told = {name: row['made'] for name, row in report['scores'].items() if 'made' in row}
  bench = door.build(World, report['setting'], 'world')
  subject = evaluate.subject('world', {})
  with evaluate.local_mesh():
    rows = {column: bench.rows(subject, column, range(bench.num_clips))[column] for column in ('made', 'truth')}
  scores = bench.scores(rows)
  assert {'told', 'permanence', 'gravity_error', 'f1', 'direction', 'fsd'} < set(told)
  outside = {}
  for name, own in told.items():
    now = scores.get(name, {}).get('made')
    # Where all clips that define a metric agree, the interval is a point, and rounding may change one of them.
    slack = 1 / (own['num_clips'] * own['coverage']) if own['low'] == own['high'] else 0
    if now is None or not own['low'] - slack <= now.value <= own['high'] + slack:
      outside[name] = own, now
  assert not outside
