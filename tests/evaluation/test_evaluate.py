"""An evaluation of a small random model: the report opens, holds all it shows, and is not computed twice."""
import csv
import html.parser
import json
import re

import pytest

from veojax import cli
from veojax.evaluation import evaluate, units
from veojax.generation.cascade import Cascade
from veojax.generation.published_model import PublishedModel


class Reader(html.parser.HTMLParser):

  def __init__(self):
    super().__init__()
    self.sources, self.words, self.tags = [], [], []

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.sources += [value for name, value in attributes if name in ('src', 'href')]

  def handle_data(self, data):
    self.words.append(data)


@pytest.fixture(scope='module')
def made(model_folder, tmp_path_factory):
  folder = tmp_path_factory.mktemp('report')
  options = {'num_clips': 4, 'levels': ('L2', 'L4'), 'given': 'first_frame', 'num_inference_steps': 1}
  return folder, options, evaluate.evaluate(str(model_folder), 'world', folder, options, batch=4, show=False)


def test_the_report_opens_and_holds_everything(made):
  folder, _, result = made
  reader = Reader()
  reader.feed((folder / 'report.html').read_text())
  assert all(source.startswith('data:') for source in reader.sources)
  assert reader.tags.count('video') == 4 and reader.tags.count('table') == 2
  words = ' '.join(reader.words)
  shown = re.fullmatch('<iframe srcdoc="([^"]*)".*</iframe>', result._repr_html_(), re.DOTALL)
  assert html.unescape(shown[1]) == (folder / 'report.html').read_text()
  assert all(metric in words for metric in result.scores)
  assert all(row.text in words for row in result.columns['made'])
  told = json.loads((folder / 'report.json').read_text())
  assert told['options']['num_inference_steps'] == 1 and told['setting']['num_frames'] == 9
  assert set(told['scores']['count']) == {'made', 'truth', 'codec', 'shuffled'}
  read = lambda name: list(csv.DictReader((folder / name).read_text().splitlines()))
  lines = read('report.csv')
  assert {(line['metric'], line['column']) for line in lines} == {
      (metric, column) for metric, row in result.scores.items() for column in row}
  assert len(read('clips.csv')) == 4 * 4


def test_going_on_computes_nothing_twice(made, model_folder, monkeypatch):
  folder, options, result = made

  def never(self, unit, subject, **rest):
    raise AssertionError(unit)
  monkeypatch.setattr(units.Store, 'run', never)
  again = evaluate.evaluate(str(model_folder), 'world', folder, options, batch=4, show=False)
  assert again.scores == result.scores


def test_errors_against_the_record_are_of_clips_whose_frames_were_given(made):
  _, _, result = made
  for name in ('position_error', 'velocity_error'):
    assert name in result.columns['made'][0].kept and name in result.scores


@pytest.mark.parametrize('argv, message', [
    (['--model', 'truth', '--benchmark', 'wrld'], "did you mean 'world'"),
    (['--model', 'truth', '--num_clip=3'], "did you mean 'num_clips'"),
    (['--model', 'truth', '--benchmark', 'basic', '--num_frames=5'], "did you mean 'scenes.num_frames'"),
    (['--model', 'truth', '--benchmark', 'basic', '--num_clips=0'], 'num_clips=0; give at least 1'),
    (['--model', 'truth', '--batch=0'], 'batch=0; give at least 1'),
    (['--model', 'truth', '--seed=-2'], 'seed=-2; give at least 0'),
    (['--model', 'truth', '--guidance_scale=3'], 'makes nothing'),
    (['--model', 'truth', '--split=sen'], 'seen'),
    (['--model', 'nowhere'], 'no model'),
])
def test_what_cannot_be_is_refused_in_one_line(argv, message, capsys, tmp_path, monkeypatch):
  monkeypatch.setattr(cli, '_host', lambda rows: __import__('veojax.host').host)
  assert cli.main(['evaluate', *argv, '--output', str(tmp_path)]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1


def test_an_option_of_neither_is_refused_with_the_nearest_of_both(model_folder):
  for name, option, nearest in (('world', 'num_clip', 'num_clips'), ('basic', 'num_frames', 'scenes.num_frames'),
                                ('basic', 'guidance', 'guidance_scale')):
    with pytest.raises(ValueError, match=f"unknown option {option}=5; did you mean '{nearest}'"):
      evaluate.judged(str(model_folder), name, {option: 5})


@pytest.mark.parametrize('kind', [PublishedModel, Cascade])
def test_what_needs_the_transformer_refuses_other_models(kind):
  with pytest.raises(ValueError, match='some is no model that something could surprise here'):
    evaluate.benchmark('surprise', {}).fitted(evaluate.Subject('some', object.__new__(kind)))


@pytest.mark.parametrize('index', [0, 1])
def test_folders_that_the_processes_do_not_share_are_told(index, tmp_path, monkeypatch):
  monkeypatch.setattr('jax.process_count', lambda: 2)
  monkeypatch.setattr('jax.process_index', lambda: index)
  monkeypatch.setattr('veojax.processes.wait', lambda: None)
  with pytest.raises(ValueError, match='1 of 2 units.*that the hosts of all processes share'):
    evaluate.evaluate('truth', 'world', tmp_path, {'num_clips': 2, 'num_frames': 5}, batch=1, show=False)
  assert not (tmp_path / 'report.json').exists()


def test_on_a_mesh_the_scores_are_the_same(model_folder, tmp_path, monkeypatch):
  monkeypatch.setattr(cli, '_host', lambda rows: __import__('veojax.host').host)
  scores = []
  for i, mesh in enumerate(([], ['--mesh.data=2', '--mesh.context=4'])):
    assert cli.main(['evaluate', '--model', str(model_folder), '--benchmark', 'basic', '--num_clips=4', '--batch=4',
                     '--num_inference_steps=1', '--output', str(tmp_path / str(i)), *mesh]) == 0
    told = json.loads((tmp_path / str(i) / 'report.json').read_text())
    scores.append({name: columns['made'][0] if isinstance(columns['made'], list) else columns['made']['value']
                   for name, columns in told['scores'].items()})
  assert scores[0].keys() == scores[1].keys() and len(scores[0]) > 5
  for name, value in scores[0].items():
    assert value == pytest.approx(scores[1][name], rel=0.02, abs=1e-3, nan_ok=True)
