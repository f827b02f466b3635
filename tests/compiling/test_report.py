"""Stages compiled for chips that are not here, and what is said where they do not fit."""
import dataclasses
import importlib.util
import pathlib

import pytest

from veojax import cli, sharding
from veojax.compiling import advice, chips, model_flops, report, table
from veojax.models.dit import DiTConfig
from veojax.training import run

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIB = 2 ** 30
needs_libtpu = pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason="pip install 'veojax[aot]'")

SMALL = {  # two layers; rows over two chips
    'stage': 'transformer', 'video_codec': 'world', 'audio_codec': 'world',
    'dit': {'width': 256, 'depth': 2, 'num_heads': 2, 'mlp_width': 512, 'remat': 'attention',
            'text': {'vocab_size': 256, 'width': 128, 'depth': 1, 'num_heads': 1, 'mlp_width': 256}},
    'pack': {'row_tokens': 2048, 'text_tokens': 256, 'max_clips': 4},
    'loop': {'batch_size': 2}, 'mesh': {'fsdp': 2, 'context': 2}}


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize('topology', ['v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'])
def test_a_small_step_compiles_for_each_kind_of_chip(topology):
  found = report.compile_stage(run.build(SMALL), topology)
  assert found.fits and found.arguments < found.peak
  tokens, width, depth = 2048, 256, 2
  # Attention's kernels: 2 products forward, kept, and 5 backward, where the mathematics has 2 + 4; in the text encoder
  # too. Matrices: forward, again, and twice backward, where the mathematics has three.
  least = model_flops.forward(DiTConfig(width=width, depth=depth, mlp_width=512), tokens)
  assert found.executed_flops['attention'] == pytest.approx(7 / 2 * 2 * least['attention'] / 4, rel=0.05)
  assert 3 <= found.executed_flops['matrix'] / (2 * least['matrix'] / 4) <= 5
  assert {name.split()[0] for name in found.collectives} >= {'fsdp', 'context'}
  assert 0 < found.mfu_bound <= 1
  assert dict(table.lines(found))['rows a step'] == '2'


@pytest.mark.parametrize('topology', ['v5p', 'h200:8', 'v5p:4by4', 'v7:2x2x1'])
def test_a_topology_that_is_none_is_refused_with_examples(topology):
  with pytest.raises(ValueError, match='v5p:4x4x4'):
    chips.devices(topology)


def test_a_stage_that_is_none_is_refused():
  with pytest.raises(ValueError, match="did you mean 'train'"):
    report.compile_stage(run.build(SMALL), 'v5p:2x2x1', 'trains')


def test_the_compiler_s_refusal_is_read():
  message = 'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 101.25G of 95.74G hbm. Exceeded by 5.51G.'
  assert report.needed(message) == 101.25 * GIB
  message = 'the total memory required for HLO temporaries (640.25G) exceeds available HBM (15.75G).'
  assert report.needed(message) == 640.25 * GIB
  with pytest.raises(ValueError, match='Mosaic'):
    report.needed('INTERNAL: Mosaic failed to compile')


def does_not_fit():
  return report.Report(topology='v5e:2x2', chip='v5e', num_chips=4, mesh={'data': 1, 'fsdp': 2, 'context': 2,
                       'tensor': 1}, stage='train', parameters=10 ** 9, units={'rows a step': 2}, compile_seconds=3.0,
                       hbm=15 * GIB, peak=20 * GIB, suggestions=('half of it: about 6.0 GiB less',))


def test_what_does_not_fit_says_by_how_much_and_what_to_change():
  told = dict(table.lines(does_not_fit()))
  assert 'does not fit by 5.0 GiB' in told['HBM of a chip'] and 'half of it' in told['it would fit with']


def test_advice_saves_more_than_is_lacking_where_anything_does():
  config = run.build(run.read_config(ROOT / 'configs' / 't2va_14b.py'))
  config = dataclasses.replace(config, dit=dataclasses.replace(config.dit, remat='none'))
  mesh = {'data': 4, 'fsdp': 4, 'context': 4, 'tensor': 1}
  few, many = (advice.remedies(config, mesh, excess * GIB)[0] for excess in (5, 60))
  assert float(few.split()[-3]) >= 5 and float(many.split()[-3]) >= 60
  assert any('remat' in line for line in advice.remedies(config, mesh, 1.0))


def test_the_command_names_what_is_wrong(capsys):
  assert cli.main(['compile', '--config', str(ROOT / 'configs' / 'quickstart.py'), '--topology', 'v5p']) == 2
  assert 'v5p:4x4x4' in capsys.readouterr().err


@needs_libtpu
def test_axes_may_split_a_dim_of_the_torus():
  for topology, sizes in (('v6e:4x4', {'fsdp': 8, 'context': 2}), ('v5p:4x4x4', {'fsdp': 16, 'context': 4})):
    mesh = sharding.make_mesh(sharding.MeshConfig(**sizes), chips.devices(topology))
    assert {axis: mesh.shape[axis] for axis in sizes} == sizes
