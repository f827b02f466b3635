"""What needs no network, on clips of the world: the truth's own values, and the sound of others as a floor."""
import dataclasses

import numpy as np

from veojax.evaluation import basic
from veojax.evaluation.basic import Basic
from veojax.evaluation.benchmark import Subject
from veojax.types import Clip


def test_rows_of_the_truth():
  bench = Basic(num_clips=2).fitted(Subject('truth'))
  columns = bench.rows(Subject('truth'), 'truth', range(2))
  assert set(columns) == {'truth', 'shuffled'}
  for row in columns['truth']:
    assert .9 < row.values['steadiness'] < 1 and row.values['dynamic'] in (0, 1) and row.values['speed'] > 0
    assert -60 < row.values['level'] < 0 and row.values['clipped'] < .05 and 0 <= row.values['silence'] <= 1
  assert all(set(row.values) <= {'av_align'} for row in columns['shuffled'])
  assert bench.rows(Subject('truth'), 'truth', [1])['truth'][0] == columns['truth'][1]
  scores = bench.scores(columns)
  assert set(scores) <= set(bench.METRICS) and scores['level']['truth'].num_clips == 2


def test_halves_that_are_missing_are_left_out():
  silent = Clip(video=np.zeros((4, 32, 32, 3), np.uint8), fps=8.)
  assert set(basic.measure(silent)) == {'steadiness', 'smoothness', 'dynamic', 'speed'}
  assert basic.measure(silent)['steadiness'] == 1 and basic.measure(silent)['dynamic'] == 0
  sound = Clip(audio=np.ones((100, 1), np.float32), sample_rate=8000)
  assert basic.measure(sound) == {'level': 0, 'clipped': 1, 'silence': 0}
  image = dataclasses.replace(silent, video=silent.video[:1])
  assert basic.measure(image) == {}
