"""Every benchmark that can be named: its metrics, and a whole evaluation of those that need no trained model."""
import dataclasses
import json
import pathlib
import types

import numpy as np
import pytest

import veojax
from veojax import config as door
from veojax.data import prepare
from veojax.data.world import WorldConfig
from veojax.evaluation import benchmark, clips, evaluate, fad, fvd, loaded, page, sweep, units
from veojax.evaluation.benchmark import COLUMNS, Benchmark, Metric, Subject
from veojax.generation.model import Model
from veojax.generation.wanted import Wanted
from veojax.training import heldout
from veojax.zoo import origin


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


def test_a_key_changes_with_the_code_that_measures(tmp_path, monkeypatch):
  package = pathlib.Path(units.__file__).parent.parent
  for pattern in units.MEASURING:
    for path in package.glob(pattern):
      copy = tmp_path / path.relative_to(package)
      copy.parent.mkdir(exist_ok=True)
      copy.write_bytes(path.read_bytes())
    assert list(package.glob(pattern)), pattern
  read = units.code.__wrapped__
  assert read(tmp_path) == read(package) == units.code()
  (tmp_path / 'data' / 'mixing.py').write_text('')  # measures nothing
  assert read(tmp_path) == units.code()
  found = {units.code()}
  for name in ('evaluation/world_parser.py', 'data/world_scene.py', 'data/caption_grammar.py', 'zoo/i3d.py'):
    with (tmp_path / name).open('a') as file:
      file.write('# another\n')
    found.add(read(tmp_path))
  assert len(found) == 5
  of_truth = lambda: units.key('basic', evaluate.benchmark('basic', {}), Subject('truth'), 'truth')
  key = of_truth()
  assert key == of_truth()
  monkeypatch.setattr(units, 'code', lambda: 'other')
  assert key != of_truth()


def test_a_distance_of_sets_has_a_report_too(tmp_path, monkeypatch):
  """With the mean and spread of an example's bands in place of the network."""
  def bands(network, examples):
    return np.concatenate([examples.mean(1), examples.std(1)], 1)[:, ::16]
  monkeypatch.setattr(fad, 'embeddings', bands)
  monkeypatch.setattr(fad, 'load', lambda weights, allow_unknown: None)
  path = tmp_path / 'vggish.safetensors'
  origin.write({'x': np.zeros(1, np.float32)}, path, {'sha256': '10086976' + 'ab' * 28})
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
    loaded.forget()
    one, bench = evaluate.judged('truth', 'basic', {'num_clips': 2, 'data': str(tmp_path / 'data')})
    return [unit.key for unit in units.split('basic', bench, one)]
  first = prepared(0)
  assert first == prepared(0) != prepared(1)
  assert evaluate.judged('truth', 'basic', {'num_clips': 2, 'data': str(tmp_path / 'data')})[1].data_hash.startswith(
      'validation ')
  for name in ('basic', 'reconstruction'):
    with pytest.raises(ValueError, match='holds 2 clips to measure on, and 3 are asked for; set num_clips=2'):
      evaluate.judged('roundtrip', name, {'num_clips': 3, 'data': str(tmp_path / 'data')})


@pytest.mark.parametrize('name, options, message', [
    ('fvd', {'num_frames': 16, 'scenes': {'num_frames': 9}},
     'scenes.num_frames=9, scenes.fps=16.0: clips too short for num_frames=16'),
    ('fad', {'scenes': {'num_frames': 9}}, 'scenes.num_frames=9, scenes.fps=16.0: sounds too short')])
def test_a_distance_of_clips_that_are_all_too_short_is_refused(name, options, message, weights):
  with pytest.raises(ValueError, match=message):
    evaluate.judged('truth', name, {'weights': weights, **options})
  if name == 'fad':
    silent = Subject('silent', types.SimpleNamespace(audio_codec=None))
    with pytest.raises(ValueError, match='silent makes no sound'):
      fad.FAD(weights=weights).fitted(silent)


@pytest.mark.parametrize('name', ['fvd', 'fad'])
def test_fewer_clips_than_halves_are_made_of_are_refused(name, weights):
  for num_clips in (0, 1, 3):
    with pytest.raises(ValueError, match=f'num_clips={num_clips}; .*give at least 4'):
      evaluate.judged('truth', name, {'weights': weights, 'num_clips': num_clips})
  assert evaluate.judged('truth', name, {'weights': weights, 'num_clips': 4})[1].num_clips == 4


@pytest.mark.parametrize('name', ['world', 'fvd'])
def test_a_model_of_sound_alone_is_refused_before_it_makes_anything(name, weights, model_folder):
  whole = veojax.load(model_folder)
  sound = Model(whole.config, whole.dit, None, whole.audio_codec, whole.tokenizer)
  bench = evaluate.benchmark(name, {'weights': weights} if name == 'fvd' else {})
  with pytest.raises(ValueError, match='some makes no pictures to measure'):
    bench.fitted(Subject('some', sound))
  assert evaluate.benchmark('basic', {}).fitted(Subject('some', sound)).scenes.num_frames == 9
  published = types.SimpleNamespace(clip_sizes=whole.clip_sizes | {'num_frames': 17}, video_codec=None)
  assert bench.fitted(Subject('some', published)).num_frames


@pytest.fixture
def weights(tmp_path, monkeypatch):
  """A file of no network, which nothing reads."""
  for module in (fad, fvd):
    monkeypatch.setattr(module, 'load', lambda weights, allow_unknown: None)
  path = tmp_path / 'weights.safetensors'
  origin.write({'x': np.zeros(1, np.float32)}, path, {'sha256': '10086976' + 'ab' * 28})
  return str(path)


def of_sizes(monkeypatch, num_frames: int, rate: int = 8000, split: str = 'validation'):
  """Every data set has clips of so many frames at 8 a second, and of as long a sound."""
  index = {'num_frames': np.full(9, num_frames), 'num_samples': np.full(9, num_frames * rate // 8),
           'sample_rate': np.full(9, rate)}
  dataset = type('Data', (), {'index': index, 'split': split, 'info': {}, 'text': str, '__len__': lambda self: 9})()
  monkeypatch.setattr(heldout, 'split', lambda data: dataset)
  loaded.forget()


def making(num_frames: int, options: dict = {}) -> Subject:
  sizes = {'num_frames': num_frames, 'height': 32, 'width': 32, 'fps': 8.}
  return Subject('model', types.SimpleNamespace(audio_codec='some', clip_sizes=sizes), options=options)


@pytest.mark.parametrize('bench, least', [(fvd.FVD(num_frames=10, stride=2), 19), (fad.FAD(), 8)])
def test_what_a_data_set_or_the_model_has_too_short_is_refused_before_it_is_made(bench, least, weights, monkeypatch):
  bench = dataclasses.replace(bench, num_clips=4, data='some', weights=weights, allow_unknown_weights=True)
  of_sizes(monkeypatch, least - 1)
  with pytest.raises(ValueError, match='some: .* too short for'):
    bench.fitted(Subject('truth'))
  of_sizes(monkeypatch, least)
  assert bench.fitted(Subject('truth')) == bench.fitted(making(least)) == bench.fitted(making(2, {'num_frames': least}))
  with pytest.raises(ValueError, match=f'model with clip.num_frames={least - 1}, clip.fps=8.0: .* too short for'):
    bench.fitted(making(least - 1))


def test_clips_of_a_data_sets_captions_have_the_sizes_that_are_asked_for(model_folder, monkeypatch):
  of_sizes(monkeypatch, 9)
  options = {'num_clips': 4, 'data': 'some', 'num_inference_steps': 1}
  judged = lambda **more: evaluate.judged(str(model_folder), 'basic', options | more)
  (own, bench), (one, same) = judged(), judged(clip={'num_frames': 5, 'height': 16})
  assert bench == same and own.sizes == {}
  assert one.sizes == {'num_frames': 5, 'height': 16} == {name: units.settings(one)[name] for name in one.sizes}
  keys = {part: units.key('basic', bench, own, part) == units.key('basic', bench, one, part)
          for part in ('made', 'truth', 'codec')}
  assert keys == {'made': False, 'truth': True, 'codec': True}
  wanted = [Wanted('a red ball bounces')]
  assert [subject.make(wanted)[0].video.shape for subject in (own, one)] == [(9, 32, 32, 3), (5, 16, 32, 3)]
  assert benchmark.together([(one, wanted)])[0][0].video.shape == (5, 16, 32, 3)


@pytest.mark.parametrize('name, options, message', [
    ('basic', {'num_frames': 5, 'data': 'some'}, "unknown option num_frames=5; did you mean 'clip.num_frames'"),
    ('basic', {'clip': {'num_frame': 5}, 'data': 'some'}, "clip.num_frame=5; did you mean 'clip.num_frames'"),
    ('basic', {'clip': {'num_frames': 0}, 'data': 'some'}, 'num_frames=0; give a positive whole number'),
    ('basic', {'clip': {'num_frames': 5}}, "unknown option clip.num_frames=5; did you mean 'scenes.num_frames'"),
    ('basic', {'clip': 5, 'data': 'some'}, 'unknown option clip=5'),
    ('world', {'clip': {'num_frames': 5}}, "unknown option clip.num_frames=5; did you mean 'num_frames'"),
    ('fvd', {'num_frames': 10, 'data': 'some', 'clip': {'num_frames': 8}},
     'clip.num_frames=8, clip.fps=8.0: clips too short for num_frames=10'),
    ('reconstruction', {'clip': {'num_frames': 5}, 'data': 'some'}, 'clip.num_frames with .* nothing made; leave it')])
def test_sizes_that_nothing_is_made_in_are_refused(name, options, message, model_folder, weights, monkeypatch):
  of_sizes(monkeypatch, 10)
  options = {'num_clips': 4, **({'weights': weights} if name == 'fvd' else {}), **options}
  with pytest.raises(ValueError, match=message):
    evaluate.judged(str(model_folder), name, options)
  if name == 'basic' and options.get('clip') != 5:
    with pytest.raises(ValueError, match="with the model 'truth', which makes nothing"):
      evaluate.judged('truth', name, options)


def test_the_split_that_is_measured_is_told(monkeypatch):
  bench = evaluate.benchmark('basic', {'num_clips': 4, 'data': 'some'})
  hashes = []
  for split in ('validation', 'train'):
    of_sizes(monkeypatch, 5, split=split)
    hashes.append(bench.fitted(Subject('truth')).data_hash.split(' '))
  assert [split for split, _ in hashes] == ['validation', 'train'] and hashes[0][1] == hashes[1][1]


@pytest.mark.parametrize('options, message', [
    ({'scenes': {'seed': 3}}, 'scenes.seed=3: .*give seed=3'),
    ({'scenes': {'num_clips': 5}}, 'scenes.num_clips=5: .*give num_clips=5'),
    ({'scenes': {'levels': ('L1',)}, 'data': 'some'}, "scenes.levels=.* with data='some'.*leave it out")])
@pytest.mark.parametrize('name', ['basic', 'reconstruction'])
def test_what_would_not_count_of_the_scenes_is_refused(name, options, message):
  codecs = Subject('codecs', codecs=('some', None))
  with pytest.raises(ValueError, match=message):
    evaluate.benchmark(name, options).fitted(codecs)
  with pytest.raises(ValueError, match="scenes.given='sound'.*leave it out"):
    evaluate.benchmark('reconstruction', {'scenes': {'given': 'sound'}}).fitted(codecs)


def test_the_model_is_shown_of_a_scene_what_was_asked_for():
  sizes = {'num_frames': 5, 'height': 32, 'width': 32}
  for seed in (0, 3):
    options = {'seed': seed, 'num_clips': 2, 'scenes': {'given': 'first_frame', **sizes}}
    bench = evaluate.benchmark('basic', options).fitted(Subject('truth'))
    assert dataclasses.replace(bench).fitted(Subject('truth')) == bench
    for i, wanted in enumerate(bench.wanted(range(2))):
      truth = clips.truth(bench, i)
      assert (wanted.prompt, wanted.seed, wanted.index, wanted.options) == (truth.text, seed, i, {**sizes, 'fps': 16.})
      np.testing.assert_array_equal(wanted.given.image, truth.video[0])


def test_what_lies_under_a_name_is_read_anew_by_every_evaluation_and_once_by_each(tmp_path, monkeypatch):
  read = []
  monkeypatch.setattr(evaluate.models, 'load', read.append)

  def judged(model, *rest):
    evaluate._loaded(model)
    raise ValueError('it goes no further')
  monkeypatch.setattr(evaluate, 'judged', judged)
  for count in (1, 2):
    with pytest.raises(ValueError, match='no further'):
      evaluate.evaluate('model', 'basic', tmp_path, show=False)
    assert len(read) == 2 * count - 1
    sweep.sweep(['model'], {'seed': [0, 1]}, tmp_path, show=False)
    assert len(read) == 2 * count
