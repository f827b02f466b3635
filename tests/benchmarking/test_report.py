"""What `veojax benchmark` tells, on a model so small that it is soon told."""
import dataclasses
import importlib.util
import io
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
import rich.console

from veojax import cli
from veojax.benchmarking import inputs, kernels, peers, products, profile, report, table, timing
from veojax.compiling import model_flops
from veojax.compiling.program import Instruction
from veojax.data.packing import PackConfig
from veojax.models import attention
from veojax.training import run
from veojax.types import AUDIO, PADDING, TEXT, VIDEO

CONFIG = str(cli.pathlib.Path(__file__).resolve().parents[2] / 'configs' / 'quickstart.py')
SMALL = {'stage': 'transformer', 'video_codec': 'world', 'audio_codec': 'world', 'mesh': {'data': 2, 'fsdp': 4},
         'dit': {'width': 64, 'depth': 2, 'num_heads': 2, 'mlp_width': 128, 'dtype': 'float32',
                 'text': {'vocab_size': 64, 'width': 32, 'depth': 1, 'num_heads': 1, 'mlp_width': 32}},
         'pack': {'row_tokens': 96, 'text_tokens': 16, 'max_clips': 1, 'max_text': 16}, 'loop': {'batch_size': 8}}


@pytest.fixture(scope='module')
def small_products():
  """Products that take no time; one clock tick of them is enough for a test."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('veojax.benchmarking.products.SIZES', {'cpu': ((64, 64, 64), (128, 64, 128))})
    yield


@pytest.fixture(scope='module')
def trained(small_products):
  return report.benchmark(run.build(SMALL), 'train', steps=3, profiled=4)


def test_a_training_step_is_told_in_full(trained):
  measured, = trained.measured
  config = run.build(SMALL)
  assert measured.flops == 3 * 8 * sum(model_flops.forward(config.dit, 96).values())
  assert len(measured.seconds) == 3 and 0 < measured.best <= measured.median and measured.compile_seconds > 0
  assert 0 <= measured.waited < sum(measured.seconds)
  told = table.figures(trained, measured)
  assert float(told['tokens a second'].replace(',', '')) == pytest.approx(8 * 96 / measured.median, rel=1e-3)
  tree = json.loads(json.dumps(table.tree(trained)))['measured'][0]
  assert tree['mfu_of_product'] == pytest.approx(measured.flops / measured.median / max(trained.products.values()))
  assert tree['mfu_of_datasheet'] is None and trained.num_devices == jax.device_count()


def test_the_dearest_instructions_are_named_with_their_origin(trained):
  seconds = [value for _, value in trained.costs]
  assert len(seconds) == 4 and seconds == sorted(seconds, reverse=True) and seconds[-1] > 0
  x = jnp.ones((700, 700))
  program, _, _ = timing.compiled(lambda x: jnp.sin(x[0]) + (x @ x)[1], x)
  product = timing.Candidate('a product', lambda: jax.block_until_ready(program(x)), 0.0, {}, 0.0, text=program.as_text())
  (name, most), *rest = profile.costs(product)
  assert 'dot_general' in name and most > sum(value for _, value in rest)


@pytest.mark.parametrize('what', ['generate', 'decode'])
def test_what_is_compiled_ahead_is_timed_too(small_products, what):
  tree = SMALL | {'sampling': {'num_inference_steps': 2}} if what == 'generate' else {
      'stage': 'audio_vae', 'mesh': {'data': -1},
      'model': {'sample_rate': 800, 'hop': 32, 'strides': (2,), 'widths': (16, 16), 'depth': 1, 'latent_channels': 4}}
  measured, = report.benchmark(run.build(tree), what, steps=1).measured
  if what == 'decode':
    assert measured.units == {'seconds of sound': 64 * 32 / 800}
  assert measured.seconds[0] > 0 and measured.waited is None and set(measured.units.values()) - {0}


@pytest.mark.parametrize('codec', ['world', 'configs/world/video_vae.py'])
def test_decoding_is_told_of_the_whole_clip_too(codec):
  """In frames, by a trained codec and by a config's."""
  tree = SMALL | {'clip': {'num_frames': 5, 'height': 64, 'width': 80}, 'video_codec': codec}
  found = report.benchmark(run.build(tree), 'decode', steps=1, with_products=False)
  assert found.fine and not found.products
  tile, whole = found.measured
  (unit, frames), = tile.units.items()
  assert unit.startswith('frames of ') and frames % 4 == 0 and whole.units == {'frames of 64x80': 5}
  assert float(table.figures(found, whole)['frames of 64x80 a second']) == pytest.approx(5 / whole.median, rel=1e-3)


UNET = {'widths': (8,), 'attention': (False,), 'depth': 1, 'groups': 4, 'condition_dim': 8}
PUBLISHED = {
    'train': {'stage': 'make_a_video', 'part': 'super_resolution', 'super_resolution': {
        'num_frames': 2, 'height': 16, 'width': 16, 'factor': 2, 'unet': UNET | {'given_channels': 3}},
        'loop': {'batch_size': 8, 'ema_decays': (0.0,)}},
    'decode': {'stage': 'animatediff', 'settings': {'height': 16, 'width': 16, 'chunk': 2}, 'vae': {
        'block_out_channels': (32, 32), 'down_block_types': ('DownEncoderBlock2D',) * 2,
        'up_block_types': ('UpDecoderBlock2D',) * 2}}}


@pytest.mark.parametrize('what', PUBLISHED)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_published_model_is_timed_in_its_own_precision(small_products, what, dtype):
  found = report.benchmark(run.build(PUBLISHED[what] | {'dtype': dtype}), what, steps=1)
  assert found.dtype == dtype and found.measured[0].seconds[0] > 0 and set(found.measured[0].units.values()) - {0}


@pytest.mark.parametrize('name, what, told', [
    ('mochi', 'forward', '--what train or generate'), ('svd', 'attention', '--what train or generate'),
    ('make_a_video', 'decode', 'has no codec')])
def test_what_a_model_has_not_is_refused(name, what, told):
  with pytest.raises(ValueError, match=told):
    report.benchmark(run.build(run.read_config(cli.pathlib.Path('configs') / f'{name}.py')), what)


def test_attention_is_timed_and_checked(small_products):
  found = report.benchmark(run.build(SMALL), 'attention', steps=1)
  names = [measured.name for measured in found.measured]
  assert len(found.errors) == 4 * 5 and {error.tensor for error in found.errors} == {'out', 'dq', 'dk', 'dv'}
  assert len(names) == len(set(names)) == 6 and found.fine
  one, four = found.measured[0], found.measured[1]
  assert one.flops == 2 * 2 * 96 ** 2 * 64 == 4 * four.flops


def test_a_wrong_attention_is_told_and_ends_with_1(monkeypatch):
  """Of every tensor by itself; and one that is not finite, in whatever tensor."""
  check = kernels.Check(16, 'float32', (20, 1, 30), padding=5)
  assert all(error.fine and error.largest < 1e-5 for error in kernels.errors_of(check))
  right = attention.attention
  monkeypatch.setattr(attention, 'attention', lambda q, k, v, *ids: right(q, k, v, *ids) + 0.01 * v)
  assert [error.fine for error in kernels.errors_of(check)] == [False, False, False, False]

  @jax.custom_vjp
  def spoilt(q, k, v, *ids):
    return right(q, k, v, *ids)
  spoilt.defvjp(lambda *operands: jax.vjp(right, *operands),
                lambda pull, do: (lambda dq, dk, dv, *ids: (dq, dk * jnp.nan, dv, *ids))(*pull(do)))
  monkeypatch.setattr(attention, 'attention', spoilt)
  errors = kernels.errors_of(check)
  assert {error.tensor for error in errors if not error.fine} == {'dk'}
  found = report.Report('a chip', 1, 'float32', None, errors=tuple(errors))
  assert not found.fine and 'nan' in printed(found)


def printed(found) -> str:
  console = rich.console.Console(width=table.WIDTH, file=io.StringIO())
  console.print(table.table(found))
  return console.file.getvalue()


def test_a_part_that_fails_loses_nothing_else(small_products, monkeypatch, tmp_path):
  """A kernel that does not compile, one that fails in its third step, products and the profile."""
  steps = iter(range(3))
  make = lambda name, step: lambda: timing.Candidate(name, step, 1.0, {'tokens': 3}, 0.0)
  monkeypatch.setattr(kernels, 'candidates', lambda config: {
      'fine': make('fine', lambda: None), 'never': lambda: jnp.zeros(3) @ jnp.zeros(4),
      'not for long': make('not for long', lambda: [None for _ in [next(steps)]][0])})
  monkeypatch.setattr(kernels, 'CHECKS', (kernels.Check(32, 'float32', (20,)),))
  monkeypatch.setattr(products, 'best', lambda *_: 1 / 0)
  monkeypatch.setattr(profile, 'costs', lambda candidate: 1 / 0)
  path = tmp_path / 'results.jsonl'
  parts = list(report.parts(run.build(SMALL), 'attention', steps=3, profiled=2))
  assert [part.done for part in parts] == [False, False, False, True]
  for name in ('first', 'second', 'first'):
    found = table.kept(parts, str(path), name)
  assert [m.name for m in found.measured] == ['fine'] and len(found.errors) == 4 and not found.fine
  assert set(found.failures) == {'never', 'not for long', 'products', 'profile'}
  text = printed(found)
  assert 'ZeroDivisionError' in text and 'unknown chip' in text and 'MFU of the best product' not in text
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert [line['name'] for line in lines] == ['second', 'first'] and all(line['done'] for line in lines)
  assert len(lines[0]['measured'][0]['seconds']) == 3
  table.kept(parts[:2], str(path), 'first')  # as far as it has come
  assert '{"name": "first", "done": false' in path.read_text()


def test_nothing_of_a_table_is_cut(capsys):
  row = timing.Measured('forward and backward, blocks of 128 x 128, 8 warps, 2 stages', (0.123, 0.124), 0.3, 0.1, 1e13,
                        {'tokens a step': 32768}, 61.2, 2e10, 3e10)
  found = report.Report('NVIDIA H200', 1, 'bfloat16', 989.4e12, {'8192 x 8192 x 8192': 7e14}, (row,) * 18,
                        (('fusion.1: ' + 'a very long path/' * 30, 0.1),))
  table.show(found)
  text = capsys.readouterr().out
  assert '…' not in text and text.count('2 stages') == 18 and text.count('very long') == 30
  assert text.count(f'{1e13 / 0.124 / 7e14:.1%}') == 18


class Trace(NamedTuple):
  """A plane, a line or an event of a profile."""
  name: str
  planes: tuple = ()
  lines: tuple = ()
  events: tuple = ()
  stats: tuple = ()
  duration_ns: float = 0.0


def test_kernels_without_an_instruction_go_by_their_own_name():
  event = lambda name, ns, *stats: Trace(name, stats=stats, duration_ns=ns)
  stream = Trace('Stream #7', events=(event('gemm', 5e9), event('kernel', 3e9, ('hlo_op', 'fusion.1')),
                                      event('graph', 9e9, ('hlo_op', 'while.2'))))
  host = Trace('/host:CPU', lines=(Trace('python', events=(event('a call', 1e9),)),))
  program = {'fusion.1': Instruction('fusion.1', 'f32[2]', 'fusion', ''), 'while.2': Instruction('', '', 'while', '')}
  gpu = Trace('/device:GPU:0', lines=(Trace('Steps', events=(event('step', 8e9),)), stream))
  assert profile.seconds(Trace('', planes=(gpu, host)), program) == {'gemm': 5.0, 'fusion.1': 3.0}
  assert not profile.seconds(Trace('', planes=(host,)), program)


def test_a_trace_without_the_program_is_told():
  program, _, _ = timing.compiled(jnp.sin, jnp.ones(3))
  idle = timing.Candidate('idle', lambda: None, 0.0, {}, 0.0, text=program.as_text())
  with pytest.raises(ValueError, match='planes and lines: .* / '):
    profile.costs(idle)


def test_full_rows_have_no_padding():
  pack = PackConfig(row_tokens=96, text_tokens=16, max_clips=1, max_text=16)
  row = inputs.FullRows(pack, 4, 8, 64)[3]
  assert set(row.modality) == {TEXT, AUDIO, VIDEO} and PADDING not in row.modality
  assert set(row.segment) == {1} and abs(row.latent).sum() > 0


def test_candidates_take_turns():
  order = []
  candidates = [timing.Candidate(name, lambda name=name: order.append(name), 0.0, {}, 0.0) for name in 'ab']
  measured = timing.measure(candidates, 2, {})
  assert ''.join(order) == 'ababab' and [m.name for m in measured] == ['a', 'b']


@pytest.mark.parametrize('tokens', [96, 2048, 32768, 34816, 32760])
def test_a_peers_grid_has_the_tokens(tokens):
  t, h, w = peers.grid(tokens)
  assert t * h * w == tokens and max(t, h, w) <= peers.LONGEST


def test_the_peers_mlp_makes_the_flops_equal():
  dit = run.build(SMALL | {'dit': SMALL['dit'] | {'width': 1536, 'num_heads': 12, 'mlp_width': 7040}}).dit
  ours = sum(model_flops.forward(dit, 32768).values())
  assert peers.flops(dit, 32768, 0) == pytest.approx(ours)


@pytest.mark.slow
@pytest.mark.skipif(not all(map(importlib.util.find_spec, ('torch', 'diffusers'))),
                    reason="pip install 'veojax[parity]'")
@pytest.mark.filterwarnings('ignore')  # PyTorch's own
def test_a_peer_runs_beside(small_products):
  tree = SMALL | {'mesh': {'data': -1}, 'loop': {'batch_size': 8}}
  ours, theirs = report.benchmark(run.build(tree), 'forward', steps=2, peer='diffusers').measured
  assert ours.units == theirs.units and theirs.flops == pytest.approx(ours.flops, rel=0.2) and theirs.best > 0


def test_the_command_keeps_what_it_measured(monkeypatch, tmp_path, capsys):
  """And ends with 1 where a part fails, such as a peer that is not here; our own side is measured all the same."""
  whole = report.Report('a chip', 1, 'float32', None, done=True)
  monkeypatch.setattr(report, 'parts', lambda *_, **options: [whole])
  for name in ('keep_memory', 'enable_compilation_cache', 'one_device_a_core'):
    monkeypatch.setattr(f'veojax.host.{name}', lambda *_: None)
  command = ['benchmark', '--config', CONFIG, '--output', str(tmp_path / 'results.jsonl'), '--name', 'mine']
  assert cli.main(command) == 0 and 'a chip' in capsys.readouterr().out
  whole = dataclasses.replace(whole, failures={'diffusers': 'not here'})
  assert cli.main(command) == 1 and 'not here' in capsys.readouterr().out
  line, = map(json.loads, (tmp_path / 'results.jsonl').read_text().splitlines())
  assert line['name'] == 'mine' and line['failures'] == {'diffusers': 'not here'}


def test_a_peer_that_is_not_here_is_told(small_products, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match='parity'):
    peers.diffusers(run.build(SMALL), 'train')
  monkeypatch.setattr('veojax.benchmarking.candidates.STAGES', {
      'forward': lambda *_: timing.Candidate('ours', lambda: None, 1.0, {}, 0.0)})
  found = report.benchmark(run.build(SMALL), 'forward', steps=1, peer='diffusers')
  assert [m.name for m in found.measured] == ['ours'] and 'parity' in found.failures['diffusers'] and not found.fine


@pytest.mark.parametrize('options, told', [
    (['--what', 'trains'], "did you mean 'train'"), (['--peer', 'diffuser'], 'known: diffusers'),
    (['--peer', 'maxdiffusion'], 'not on PyPI'),
    (['--peer', 'diffusers', '--what', 'decode'], '--what train or forward')])
def test_the_command_names_what_is_wrong(capsys, options, told):
  assert cli.main(['benchmark', '--config', CONFIG, *options]) == 2
  assert told in capsys.readouterr().err
