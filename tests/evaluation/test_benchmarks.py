"""Every benchmark that can be named: its metrics, and a whole evaluation of those that need no trained model."""
import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from veojax import config as door
from veojax.evaluation import evaluate, fad, page
from veojax.evaluation.benchmark import COLUMNS, Benchmark, Metric


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
