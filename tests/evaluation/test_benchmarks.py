"""Every benchmark that can be named: its metrics, and a whole evaluation of those that need no trained model."""
import dataclasses
import json
import types

import numpy as np
import pytest
import safetensors.numpy

from veojax import config as door
from veojax.data import prepare
from veojax.data.world import WorldConfig
from veojax.evaluation import clips, evaluate, fad, fvd, page, units
from veojax.evaluation.benchmark import COLUMNS, Benchmark, Metric, Subject


@pytest.mark.parametrize('name', list(evaluate.BENCHMARKS))
def test_what_a_benchmark_has(name):
  bench = evaluate.benchmark(name, {'num_clips': 7, 'seed': 3})
  assert dataclasses.is_dataclass(bench) and (bench.num_clips, bench.seed) == (7, 3)
  assert set(bench.MEANING) == set(COLUMNS) and isinstance(bench, Benchmark)
  assert bench.METRICS and all(isinstance(metric, Metric) for metric in bench.METRICS.values())
  assert set(bench.KEY) <= set(bench.METRICS) and (not bench.WORST or bench.WORST in bench.METRICS)
  assert door.build(type(bench), json.loads(json.dumps(door.to_tree(bench)))) == bench
  with pytest.raises(ValueError, match='num_clip'):
    evaluate.benchmark(name, {'num_clip': 7})


def test_a_distance_of_sets_has_a_report_too(tmp_path, monkeypatch):
  """With the mean and spread of an example's bands in place of the network."""
  def bands(network, examples):
    return np.concatenate([examples.mean(1), examples.std(1)], 1)[:, ::16]
  monkeypatch.setattr(fad, 'embeddings', bands)
  monkeypatch.setattr(fad, 'load', lambda weights, allow_unknown: None)
  path = tmp_path / 'vggish.safetensors'
  safetensors.numpy.save_file({'x': np.zeros(1, np.float32)}, path, {'sha256': '10086976' + 'ab' * 28})
  result = evaluate.evaluate('truth', 'fad', tmp_path / 'report', {'num_clips': 8, 'weights': str(path)}, show=False)
  assert list(result.scores) == ['fad/google/halves']  # of the truth alone there is the floor
  floor = result.scores['fad/google/halves']['truth']
  assert floor.low <= floor.value <= floor.high and floor.value > 0 and floor.num_clips == 4
  assert result.benchmark.network == '10086976' + 'ab' * 28
  assert (tmp_path / 'report' / 'report.json').exists() and (tmp_path / 'report' / 'report.csv').exists()
  told = json.loads((tmp_path / 'report' / 'report.json').read_text())
  assert not any('kept' in row for rows in told['clips'].values() for row in rows)
  shown = page.Report(tmp_path / 'report' / 'report.html')._repr_html_()
  assert shown.startswith('<iframe srcdoc="&lt;!doctype html&gt;') and 'fad/google' in shown
  assert 'no column is shuffled' in shown and 'by random halves of the sets' in shown


def test_a_data_set_is_counted_first_and_known_by_what_is_in_it(tmp_path):
  def prepared(seed):
    config = prepare.PrepareConfig(num_clips=4, seed=seed, world=WorldConfig(num_frames=5, height=16, width=16),
                                   vocab_size=400, validation_fraction=.5)
    prepare.prepare('world', tmp_path / 'data', config=config, workers=1, overwrite=True, progress=False)
    clips._dataset.cache_clear()
    clips._fingerprint.cache_clear()
    one, bench = evaluate.judged('truth', 'basic', {'num_clips': 2, 'data': str(tmp_path / 'data')})
    return [unit.key for unit in units.split('basic', bench, one)]
  first = prepared(0)
  assert first == prepared(0) != prepared(1)
  for name in ('basic', 'reconstruction'):
    with pytest.raises(ValueError, match='holds 2 clips to measure on, and 3 are asked for; set num_clips=2'):
      evaluate.judged('roundtrip', name, {'num_clips': 3, 'data': str(tmp_path / 'data')})


@pytest.mark.parametrize('name, options, message', [
    ('fvd', {'num_frames': 16, 'scenes': {'num_frames': 9}}, 'scenes.num_frames=9: clips too short for num_frames=16'),
    ('fad', {'scenes': {'num_frames': 9}}, 'scenes.num_frames=9, scenes.fps=16.0: sounds too short')])
def test_a_distance_of_clips_that_are_all_too_short_is_refused(name, options, message, tmp_path, monkeypatch):
  monkeypatch.setattr(fad, 'load', lambda weights, allow_unknown: None)
  monkeypatch.setattr(fvd, 'load', lambda weights, allow_unknown: None)
  path = tmp_path / 'weights.safetensors'
  safetensors.numpy.save_file({'x': np.zeros(1, np.float32)}, path, {'sha256': '10086976' + 'ab' * 28})
  with pytest.raises(ValueError, match=message):
    evaluate.judged('truth', name, {'weights': str(path), **options})
  if name == 'fad':
    silent = Subject('silent', types.SimpleNamespace(audio_codec=None))
    with pytest.raises(ValueError, match='silent makes no sound'):
      fad.FAD(weights=str(path)).fitted(silent)
