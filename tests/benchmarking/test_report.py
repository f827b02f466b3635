"""What `veojax benchmark` tells, on a model so small that it is soon told."""
import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest

from veojax import cli
from veojax.benchmarking import inputs, peers, profile, report, table, timing
from veojax.compiling import model_flops
from veojax.data.packing import PackConfig
from veojax.training import run
from veojax.types import AUDIO, PADDING, TEXT, VIDEO

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
  assert measured.seconds[0] > 0 and measured.waited is None and set(measured.units.values()) - {0}


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
  assert len(names) == len(set(names)) == 6 and found.error < 1e-5
  one, four = found.measured[0], found.measured[1]
  assert one.flops == 2 * 2 * 96 ** 2 * 64 == 4 * four.flops


def test_full_rows_have_no_padding():
  pack = PackConfig(row_tokens=96, text_tokens=16, max_clips=1, max_text=16)
  row = inputs.FullRows(pack, 4, 8, 64)[3]
  assert set(row.modality) == {TEXT, AUDIO, VIDEO} and PADDING not in row.modality
  assert set(row.segment) == {1} and abs(row.latent).sum() > 0


def test_candidates_take_turns():
  order = []
  candidates = [timing.Candidate(name, lambda name=name: order.append(name), 0.0, {}, 0.0) for name in 'ab']
  measured = timing.measure(candidates, steps=2)
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


@pytest.mark.parametrize('options, told', [
    (['--what', 'trains'], "did you mean 'train'"), (['--peer', 'diffuser'], 'known: diffusers'),
    (['--peer', 'maxdiffusion'], 'not on PyPI'),
    (['--peer', 'diffusers', '--what', 'decode'], '--what train or forward')])
def test_the_command_names_what_is_wrong(capsys, options, told):
  config = str(cli.pathlib.Path(__file__).resolve().parents[2] / 'configs' / 'quickstart.py')
  assert cli.main(['benchmark', '--config', config, *options]) == 2
  assert told in capsys.readouterr().err
