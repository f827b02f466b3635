"""A sweep on a small random model: the same table from any number of processes and after any number of kills."""
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from veojax import cli
from veojax.evaluation import evaluate, sweep, units, world_judge
from veojax.evaluation.benchmark import Subject
from veojax.generation import sampling
from veojax.generation.model import Model

ROOT = pathlib.Path(__file__).resolve().parents[2]
OPTIONS = {'num_clips': 3, 'levels': ('L2',)}
GRID = ['guidance_scale=2,3', 'num_inference_steps=2']
BATCH = 2
# Of eight cells one has no guidance, and so another program; the others fill two batches of 4 clips.
FEW = {'guidance_scale': [1, 2, 3, 4], 'seed': [0, 1], 'num_inference_steps': [1]}


def run(model, output, grid=GRID, **changes):
  return sweep.sweep([str(model)], sweep.parse_grid(grid), output, options=OPTIONS, batch=BATCH, show=False, **changes)


def run_few(model, output, grid=FEW, **changes):
  return sweep.sweep([str(model)], grid, output, options={**OPTIONS, 'num_clips': 1}, batch=4, show=False, **changes)


def rows(folder) -> dict:
  """Everything that was measured, by file, without how long it took."""
  return {str(path.relative_to(folder)): json.loads(path.read_text())['rows']
          for path in sorted(folder.glob('units/*/*.json'))}


@pytest.fixture(scope='module')
def whole(model_folder, tmp_path_factory):
  folder = tmp_path_factory.mktemp('whole')
  outcomes = run(model_folder, folder)
  return folder, outcomes


def test_every_cell_has_its_scores_costs_and_clips(whole):
  folder, outcomes = whole
  assert [o.calls for o in outcomes] == [4, 4] and not any(o.error for o in outcomes)
  for outcome in outcomes:
    assert [row.index for row in outcome.columns['made']] == list(range(3))
    assert set(outcome.columns) == {'made', 'truth', 'codec', 'shuffled'}
    assert outcome.scores['count_constancy']['truth'].value > .5 and outcome.scores['told']['made'].num_clips == 3
  # Two units of the truth and two of the codecs serve both cells.
  assert len(rows(folder)) == 2 * (2 + 2)
  report = json.loads((folder / 'report.json').read_text())
  assert [cell['settings']['guidance_scale'] for cell in report['cells']] == [2, 3]
  assert (folder / 'report.csv').read_text().count('\n') > 100 and '<table class="sortable">' in (
      folder / 'report.html').read_text()


def test_processes_share_the_work_and_give_the_same_table(model_folder, whole, tmp_path):
  for count in (2, 4):
    folder = tmp_path / str(count)
    results = [run(model_folder, folder, process_index=i, process_count=count) for i in range(count)]
    assert results[:-1] == [None] * (count - 1) and results[-1] is not None
    assert rows(folder) == rows(whole[0])
    for name in ('report.json', 'report.csv'):
      assert (folder / name).read_bytes() == (whole[0] / name).read_bytes()


@pytest.fixture
def calls(monkeypatch):
  """Of every call of the sampler the scales and seeds of its clips."""
  made, make = [], Model.make
  monkeypatch.setattr(Model, 'make', lambda self, wanted, *rest: made.append(
      {(w.options['guidance_scale'], w.seed) for w in wanted}) or make(self, wanted, *rest))
  return made


@pytest.fixture(scope='module')
def few(model_folder, tmp_path_factory):
  """Every cell alone: its folder, and the clips by their units."""
  folder = tmp_path_factory.mktemp('few')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Subject, 'mixes', False)
    clips = kept(patch)
    run_few(model_folder, folder)
  return folder, clips


def kept(patch) -> dict[str, bytes]:
  """The pixels and samples that a sweep shows, to be filled by it."""
  clips = {}
  patch.setattr(units.Store, '_keep', lambda self, unit, column, index, clip: clips.update(
      {unit.file: clip.video.tobytes() + clip.audio.tobytes()}))
  return clips


def test_cells_of_few_clips_share_batches_and_are_as_alone(model_folder, few, tmp_path, calls, monkeypatch):
  folder, alone = few
  clips = kept(monkeypatch)
  run_few(model_folder, tmp_path)
  assert calls == [{(scale, seed) for scale in scales for seed in (0, 1)} for scales in ((2, 3), (1,), (4,))]
  assert clips == alone and len(set(clips.values())) == 8
  assert rows(tmp_path) == rows(folder)
  assert (tmp_path / 'report.csv').read_bytes() == (folder / 'report.csv').read_bytes()


def test_a_cell_that_fails_takes_none_of_its_batch_along(model_folder, tmp_path, monkeypatch, calls):
  see, denoise = world_judge.see, sampling.denoise

  def see_some(clip):
    if clip.info.get('guidance_scale') == 3:
      raise RuntimeError('not to be looked at')
    return see(clip)

  def denoise_some(*args, configs, **given):
    if 4 in [config.guidance_scale for config in configs]:
      raise FloatingPointError('diverged')
    return denoise(*args, configs=configs, **given)
  errors = lambda *scales: [o.error.split(':')[0] for o in run_few(
      model_folder, tmp_path, {**FEW, 'guidance_scale': list(scales), 'seed': [0]})]
  monkeypatch.setattr(world_judge, 'see', see_some)
  assert errors(2, 3) == ['', 'RuntimeError'] and calls == [{(2, 0), (3, 0)}]
  monkeypatch.setattr(world_judge, 'see', see)
  monkeypatch.setattr(sampling, 'denoise', denoise_some)
  assert errors(2, 3, 4, 5) == ['', '', 'FloatingPointError', '']
  assert calls[1:] == [{(3, 0), (4, 0), (5, 0)}, {(3, 0)}, {(4, 0)}, {(5, 0)}]  # together, then each alone


def test_a_kill_within_a_batch_leaves_what_was_judged_of_it(model_folder, few, tmp_path, monkeypatch, calls):
  run_unit, done = units.Store.run, []

  def run_two(self, unit, subject, **rest):
    run_unit(self, unit, subject, **rest)
    done.extend([unit.file] * (unit.part == 'made'))
    if len(done) == 2:
      raise KeyboardInterrupt
  monkeypatch.setattr(units.Store, 'run', run_two)
  with pytest.raises(KeyboardInterrupt):
    run_few(model_folder, tmp_path)
  assert calls == [{(scale, seed) for scale in (2, 3) for seed in (0, 1)}]
  written = {path: path.stat().st_mtime_ns for path in tmp_path.glob('units/*/*.json')}
  monkeypatch.setattr(units.Store, 'run', run_unit)
  run_few(model_folder, tmp_path)
  assert calls[1:] == [{(3, 0), (3, 1), (4, 0), (4, 1)}, {(1, 0), (1, 1)}]
  assert all(path.stat().st_mtime_ns == when for path, when in written.items())
  assert rows(tmp_path) == rows(few[0])


def test_on_a_pod_the_processes_are_those_of_the_pod(tmp_path, monkeypatch):
  """--coordinator is no option of the cells: launch/tpu_pod.sh gives it to whatever it runs."""
  joined, swept = [], []
  monkeypatch.setattr(cli, '_host', lambda rows: None)
  monkeypatch.setattr('veojax.processes.join', lambda *given: joined.append(given))
  monkeypatch.setattr(sweep, 'sweep', lambda *args, **given: swept.append(given))
  argv = ['sweep', '--models', 'M', '--output', str(tmp_path), '--num_clips=3']
  for more in (['--coordinator', 'auto'], ['--process_index=1', '--process_count=4']):
    assert cli.main(argv + more) == 0
  assert joined == [('auto', None, None)]
  assert [given['options'] for given in swept] == [{'num_clips': 3}] * 2
  assert [(given['process_index'], given['process_count']) for given in swept] == [(None, None), (1, 4)]


def test_a_larger_grid_computes_only_what_is_new(model_folder, whole, tmp_path, monkeypatch):
  done, folder = [], shutil.copytree(whole[0], tmp_path / 'larger')
  monkeypatch.setattr(units.Store, 'run', lambda self, unit, subject, **rest: done.append(unit.part))
  run(model_folder, folder, ['guidance_scale=2,3,5', *GRID[1:]])
  assert done == ['made'] * 2


def test_a_cell_that_fails_is_told_and_ends_nothing(model_folder, whole, tmp_path):
  outcomes = sweep.sweep([str(model_folder), str(tmp_path / 'nowhere')], {'sampler': ['euler', 'nonsense'], 'split': [
      'seen', 'count']}, tmp_path / 'out', options={**OPTIONS, 'num_clips': 2}, batch=BATCH, show=False)
  errors = {o.cell.name.split(' ', 1)[1]: o.error for o in outcomes[:4]}
  assert not errors['sampler=euler split=seen'] and 'four objects' in errors['sampler=euler split=count']
  assert 'nonsense' in errors['sampler=nonsense split=seen']
  assert all('no model' in o.error for o in outcomes[4:])
  page = (tmp_path / 'out' / 'report.html').read_text()
  assert 'four objects' in page and 'nowhere' in page


def test_what_fails_in_one_process_leaves_the_others_work_as_it_is(model_folder, tmp_path, monkeypatch):
  good = units.Store.run

  def run_some(self, unit, subject, **rest):
    if unit.part == 'made' and unit.first == 0:
      units.write(self._failure(unit), 'broken')
      raise RuntimeError('broken')
    good(self, unit, subject, **rest)
  monkeypatch.setattr(units.Store, 'run', run_some)
  results = [run(model_folder, tmp_path, process_index=i, process_count=2) for i in range(2)]
  assert [o.error for o in results[1]] == ['broken', 'broken']
  monkeypatch.undo()
  done = []
  monkeypatch.setattr(units.Store, 'run', lambda self, unit, subject, **rest: done.append((unit.part, unit.first)))
  run(model_folder, tmp_path)
  assert {part for part, _ in done} == {'made'} and (('made', 0) in done)  # all else was done


@pytest.fixture
def gone_in(monkeypatch):
  """Given a process's number: in it alone, the cell of guidance_scale=2 cannot be planned."""
  subject = evaluate.subject

  def gone(index):
    def of_some(name, options, *rest):
      if index == 1 and options['guidance_scale'] == 2:
        raise OSError('the store does not answer')
      return subject(name, options, *rest)
    monkeypatch.setattr(evaluate, 'subject', of_some)
  return gone


def test_a_cell_that_one_process_cannot_plan_leaves_the_others_whole(model_folder, whole, tmp_path, monkeypatch, gone_in):
  for index in (1, 0):
    gone_in(index)
    assert (run(model_folder, tmp_path, process_index=index, process_count=2) is None)
  every = {unit.file for unit in whole[1][1].units}
  assert every <= {path.removeprefix('units/').removesuffix('.json') for path in rows(tmp_path)}
  left = {unit.file for unit in whole[1][0].units} - every
  assert any(f'units/{file}.json' not in rows(tmp_path) for file in left)
  # As processes of one run they look again when all have done their part.
  monkeypatch.setattr('jax.process_count', lambda: 2)
  for told, error in (('process 1: OSError: no answer', 'process 1: OSError'), ('', 'units, such as .* start again')):
    monkeypatch.setattr('veojax.processes.agree', lambda problem: told)
    outcomes = run(model_folder, tmp_path, process_index=0, process_count=2)
    assert re.search(error, outcomes[0].error) and outcomes[1].scores == whole[1][1].scores
    report = json.loads((tmp_path / 'report.json').read_text())
    assert re.search(error, report['cells'][0]['error']) and report['cells'][1]['scores']


def test_units_are_shared_out_whole_and_evenly(whole):
  for count in (1, 2, 3):
    shares = [[unit.file for unit in sweep.mine(whole[1][0].units, 5, i, count)] for i in range(count)]
    assert sorted(sum(shares, [])) == sorted(unit.file for unit in whole[1][0].units)
    for part in ('made', 'truth', 'codec'):
      sizes = [sum(unit.part == part for unit in whole[1][0].units if unit.file in share) for share in shares]
      assert max(sizes) - min(sizes) <= 1


def test_whatever_a_cell_raises_ends_that_cell_alone(model_folder, whole, monkeypatch):
  subject = evaluate.subject

  def of_some(name, options, *rest):
    if options['guidance_scale'] == 3:
      raise AttributeError('nothing of the kind')
    return subject(name, options, *rest)
  monkeypatch.setattr(evaluate, 'subject', of_some)
  outcomes = run(model_folder, whole[0])
  assert outcomes[0].scores == whole[1][0].scores and outcomes[1].error.startswith('AttributeError: nothing of the kind')
  monkeypatch.undo()

  def broken(self, parts):
    raise FloatingPointError('no distance')
  monkeypatch.setattr(type(outcomes[0].benchmark), 'read', broken)
  assert all(o.error.startswith('FloatingPointError: no distance') for o in run(model_folder, whole[0]))
  assert 'no distance' in (whole[0] / 'report.html').read_text()
  monkeypatch.undo()
  run(model_folder, whole[0])


def test_a_benchmark_that_is_none_is_refused_before_any_cell(tmp_path):
  with pytest.raises(ValueError, match="no benchmark 'wrold'; did you mean 'world'"):
    sweep.sweep(['world'], {}, tmp_path / 'out', benchmark='wrold')
  assert not (tmp_path / 'out').exists()


def test_a_folder_that_cannot_be_written_to_ends_the_sweep(tmp_path, monkeypatch):
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match='file is a file; give a folder'):
    sweep.sweep(['truth'], {}, tmp_path / 'file', show=False)

  def full(path, text):
    raise OSError('no space left')
  monkeypatch.setattr(units, 'write', full)
  with pytest.raises(OSError, match='no space left'):
    sweep.sweep(['truth'], {}, tmp_path / 'out', options={**OPTIONS, 'num_clips': 1, 'num_frames': 5}, show=False)


def test_a_grid_names_each_option_once_and_options_of_options_too(tmp_path):
  with pytest.raises(ValueError, match='grid .seed=1., and seed has values already; give all at once'):
    sweep.parse_grid(['seed=0', 'seed=1'])
  options = {'num_clips': 1, 'scenes': {'num_frames': 5, 'height': 32, 'width': 32}}
  outcomes = sweep.sweep(['truth'], sweep.parse_grid(['scenes.split=seen,pairs', 'scenes.fps=8']), tmp_path,
                         benchmark='basic', options=options, show=False)
  assert [o.benchmark.scenes.split for o in outcomes] == ['seen', 'pairs'] and not any(o.error for o in outcomes)
  assert all((o.benchmark.scenes.num_frames, o.benchmark.scenes.fps) == (5, 8) for o in outcomes)
  assert options == {'num_clips': 1, 'scenes': {'num_frames': 5, 'height': 32, 'width': 32}}


def test_models_of_one_name_are_told_apart():
  cells = sweep.cells(['one/world', 'two/world', 'two/other', 'two/other'], {'seed': [0, 1]})
  assert [cell.name for cell in cells] == [f'{name} seed={seed}' for name in ('one/world', 'two/world', 'other')
                                           for seed in (0, 1)]


def test_seconds_are_those_of_the_models_own_clips(whole):
  folder, outcomes = whole
  for outcome in outcomes:
    told = [json.loads((folder / 'units' / f'{unit.file}.json').read_text())['seconds']
            for unit in outcome.units if unit.part == 'made']
    assert len(told) == 2 and min(told) > 0 and outcome.seconds == pytest.approx(sum(told))


@pytest.mark.slow
def test_a_sweep_killed_at_any_point_and_resumed_equals_one_left_alone(model_folder, whole, tmp_path):
  command = [sys.executable, '-c', f'''
import jax
jax.config.update('jax_num_cpu_devices', 8)
from veojax.evaluation import sweep
sweep.sweep([{str(model_folder)!r}], sweep.parse_grid({GRID!r}), {str(tmp_path)!r}, options={OPTIONS!r}, batch={BATCH},
            show=False)''']
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  seed = int.from_bytes(os.urandom(4), 'big')
  print(f'killed at points drawn with the seed {seed}')  # shown where this fails
  rng = random.Random(seed)
  written, kills = {}, 0
  for want in sorted(rng.sample(range(len(rows(whole[0])) - 1), 2)):  # files at which it is killed, or soon after
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    while process.poll() is None and len(list(tmp_path.glob('units/*/*.json'))) < want:
      time.sleep(.01)
    time.sleep(rng.choice((0, rng.expovariate(5), rng.uniform(0, 10 if want == 0 else .1))))
    if process.poll() is None:
      process.send_signal(signal.SIGKILL)
      kills += 1
    process.wait()
    now = {path: path.stat().st_mtime_ns for path in tmp_path.glob('units/*/*.json')}
    assert all(now[path] == when for path, when in written.items())  # nothing was computed twice
    written = now
  assert kills  # the second may come too late
  subprocess.run(command, env=environment, cwd=ROOT, check=True)
  assert all(path.stat().st_mtime_ns == when for path, when in written.items())
  assert rows(tmp_path) == rows(whole[0])
  assert (tmp_path / 'report.json').read_bytes() == (whole[0] / 'report.json').read_bytes()
