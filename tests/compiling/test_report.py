"""Stages compiled for chips that are not here, and what is said where they do not fit."""
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from veojax import arguments, cli, config as door, sharding
from veojax.compiling import advice, chips, model_flops, report, stages, table
from veojax.models.dit import DiTConfig
from veojax.training import run, step

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / 'configs').rglob('*.py'))
GIB = 2 ** 30
HAS_GPU_COMPILER = any(importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13))
needs_libtpu = pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason="pip install 'veojax[aot]'")

SMALL = {  # two layers; rows over two chips
    'stage': 'transformer', 'video_codec': 'world', 'audio_codec': 'world',
    'dit': {'width': 256, 'depth': 2, 'num_heads': 2, 'mlp_width': 512, 'remat': 'attention',
            'text': {'vocab_size': 256, 'width': 128, 'depth': 1, 'num_heads': 1, 'mlp_width': 256}},
    'pack': {'row_tokens': 2048, 'text_tokens': 256, 'max_clips': 4},
    'loop': {'batch_size': 4}, 'mesh': {'data': 2, 'fsdp': 2, 'context': 2}}


ONE_CHIP = ' --config.mesh.data=1 --config.mesh.fsdp=1 --config.mesh.context=1'


@functools.cache
def compiled(topology):
  return report.compile_stage(run.build(SMALL), topology)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize('topology, changes', [
    ('v5e:2x4', {}), ('v5p:2x2x2', {'mesh': {**SMALL['mesh'], 'attention': 'ring'}}),
    ('v6e:2x4', {'dit': {**SMALL['dit'], 'remat': 'offload'}, 'optimizer': {'state_dtype': 'bfloat16'}}),
    ('v7x:2x2x1', {})],
    ids=['v5e, heads exchanged', 'v5p, a ring', 'v6e, activations in host memory, optimizer in bfloat16', 'v7x'])
def test_a_small_step_compiles_for_each_kind_of_chip(topology, changes):
  found = report.compile_stage(run.build(SMALL | changes), topology) if changes else compiled(topology)
  assert found.chip == topology.split(':')[0] and found.num_chips == 8
  assert bool(found.host) == ('dit' in changes)
  assert ('context', 'collective-permute') in {(t.axes, t.kind) for t in found.traffic} or 'mesh' not in changes
  assert found.fits and found.arguments < found.peak
  tokens, width, depth = 2048, 256, 2
  # Attention's kernels: 2 products forward, kept, and 5 backward, where the mathematics has 2 + 4; in the text encoder
  # too. Matrices: forward, again, and twice backward, where the mathematics has three.
  least = model_flops.forward(DiTConfig(width=width, depth=depth, mlp_width=512), tokens)
  assert found.executed_flops['attention'] == pytest.approx(7 / 2 * 4 * least['attention'] / 8, rel=0.05)
  assert 3 <= found.executed_flops['matrix'] / (4 * least['matrix'] / 8) <= 5
  assert {axis for t in found.traffic for axis in t.axes.split('+')} >= {'fsdp', 'context'}
  assert found.link_seconds == pytest.approx(sum(t.seconds for t in found.traffic)) and not any(
      t.across for t in found.traffic)
  assert 0 < found.mfu_estimated <= found.mfu_bound <= 1
  assert min(found.estimated_seconds[kind] for kind in ('matrix', 'elementwise', 'attention', 'collectives')) > 0
  assert dict(table.lines(found))['rows a step'] == '4'


@needs_libtpu
@pytest.mark.parametrize('stage', ['train', 'generate', 'encode', 'decode'])
def test_every_stage_is_lowered_for_chips_that_are_not_here(stage):
  config = run.build(SMALL)
  devices = chips.devices('v5e:2x4')
  work = stages.STAGES[stage](config, sharding.make_mesh(config.mesh, devices))
  with sharding.use(config.mesh, devices), work.under():
    work.function.trace(*work.arguments, **work.options).lower(lowering_platforms=('tpu',))


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize('clip, mesh', [
    ({'num_frames': 65}, {'tile': 1, 'time': 4, 'height': 1}),
    ({'height': 128, 'width': 128}, {'tile': 2, 'time': 1, 'height': 2})])
def test_a_clip_is_decoded_over_the_chips_of_one_host(clip, mesh):
  """As `VideoCodec` shares it out: each chip gets its neighbours' edges along what is split."""
  config = run.build(SMALL | {'clip': clip, 'mesh': {'data': 1, 'fsdp': 2, 'context': 2}})
  found = report.compile_stage(config, 'v5e:2x2', 'decode')
  assert found.num_chips == 4 and found.mesh == mesh and found.fits
  assert {t.axes for t in found.traffic} == {axis for axis in ('time', 'height') if mesh[axis] > 1}
  (unit, frames), = found.units.items()
  assert unit.startswith('frames of ') and frames == 4 * 5 * mesh['time'] * mesh['tile']


@pytest.mark.parametrize('stage', ['encode', 'decode'])
@pytest.mark.parametrize('name', ['mochi', 'svd', 'animatediff'])
def test_the_codec_of_a_published_model_has_its_stages(name, stage):
  """Of the sizes that its settings decode at once."""
  config = run.build(run.read_config(ROOT / 'configs' / f'{name}.py'))
  work = stages.STAGES[stage](config, sharding.make_mesh())
  assert work.mesh.size == 1
  with work.under():
    made, _ = jax.eval_shape(work.function, *work.arguments)
  settings, pixels = config.settings, made if stage == 'decode' else work.arguments[1]
  assert pixels.shape[2:] == (settings.height, settings.width, 3)
  frames = settings.chunk or settings.num_frames
  assert pixels.shape[1] == frames * config.vae.temporal_compression


@pytest.mark.slow
@needs_libtpu
def test_the_change_that_is_suggested_fits():
  whole = compiled('v5e:2x4')
  limit = whole.peak - whole.arguments / 4
  config = run.build(SMALL)
  remedy, *_ = advice.remedies(config, 'train', stages.train(config, topology_mesh('v5e:2x4', config)).arguments,
                               whole.mesh, whole.peak, limit)
  assert report.compile_stage(changed(config, remedy.options), 'v5e:2x4', hbm=limit).fits
  assert not dataclasses.replace(whole, hbm=limit).fits


def topology_mesh(topology, config):
  return sharding.make_mesh(config.mesh, chips.devices(topology))


@pytest.mark.aot_large
@needs_libtpu
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize('stage', ['train', 'generate', 'encode', 'decode'])
def test_every_shipped_config_compiles_for_its_smallest_topology(path, stage):
  """What its docstring says after `veojax compile` of this stage, or of another; where it says nothing, one chip of
  v5e."""
  if stage == 'generate' and 'vae' in path.stem:
    pytest.skip('a codec generates nothing')
  if stage in ('encode', 'decode') and 'make_a_video' in path.stem:
    pytest.skip('it makes pixels and has no codec')
  told = path.read_text().split('"""')[1].replace('\\\n', '')
  named = [line for line in re.findall(r'veojax compile (.*)', told) if 'h100' not in line]
  of_stage = [line for line in named if (f'--stage {stage}' in line or stage == 'train' and '--stage' not in line)]
  for line in of_stage or [f'{line} --stage {stage}' for line in named[:1]] or [
      f'--config {path} --topology v5e:1x1 --stage {stage}' + ONE_CHIP]:
    command = [sys.executable, '-m', 'veojax.cli', 'compile', *line.split()]
    assert subprocess.run(command, cwd=ROOT).returncode == 0, line


@pytest.mark.slow
@needs_libtpu
def test_with_the_least_effort_the_program_needs_about_the_same():
  whole, quick = compiled('v5e:2x4'), report.compile_stage(run.build(SMALL), 'v5e:2x4', quick=True)
  assert quick.arguments == whole.arguments and quick.peak == pytest.approx(whole.peak, rel=.25)
  assert sum(quick.executed_flops.values()) == pytest.approx(sum(whole.executed_flops.values()), rel=.05)
  assert {t.axes for t in quick.traffic} == {t.axes for t in whole.traffic}
  assert whole.estimated_seconds and not quick.estimated_seconds and quick.mfu_estimated is None and quick.mfu_bound
  assert 'compute by estimated cycles' not in dict(table.lines(quick))


@pytest.mark.slow
@needs_libtpu
def test_figures_are_told_as_json(tmp_path):
  config = tmp_path / 'small.py'
  config.write_text(f'def get_config():\n  return {SMALL!r}\n')
  told = subprocess.run([sys.executable, '-m', 'veojax.cli', 'compile', '--config', config, '--json', '--topology',
                         'v5e:1x1', '--stage', 'encode', *ONE_CHIP.split()], cwd=ROOT, capture_output=True, check=True)
  found = json.loads(told.stdout)
  assert found['chip'] == 'v5e' and found['stage'] == 'encode' and found['num_chips'] == 1
  assert 0 < found['arguments'] < found['peak'] < found['hbm'] == pytest.approx(15.75 * GIB)
  assert found['executed_flops']['matrix'] > 0 and not found['traffic']


@pytest.mark.slow
@pytest.mark.skipif(not HAS_GPU_COMPILER, reason="pip install 'veojax[gpu]'")
def test_a_small_step_compiles_for_gpus(tmp_path):
  config = tmp_path / 'small.py'
  config.write_text(f'def get_config():\n  return {SMALL!r}\n')
  told = subprocess.run([sys.executable, '-m', 'veojax.cli', 'compile', '--config', config, '--json', '--topology',
                         'h100:1x2x4'], cwd=ROOT, env=os.environ | {'JAX_PLATFORMS': ''}, capture_output=True, check=True)
  found = json.loads(told.stdout)
  least = model_flops.forward(DiTConfig(width=256, depth=2, mlp_width=512), 2048)
  # Two products forward, kept, and seven in two kernels backward.
  assert found['executed_flops']['attention'] == pytest.approx(9 / 2 * 4 * least['attention'] / 8, rel=0.05)
  assert 3 <= found['executed_flops']['matrix'] / (4 * least['matrix'] / 8) <= 5
  # data runs over the two hosts, context within each.
  assert sum(t['across'] for t in found['traffic'] if 'data' in t['axes']) > 0
  assert not sum(t['across'] for t in found['traffic'] if t['axes'] == 'context')


@pytest.mark.skipif(HAS_GPU_COMPILER, reason='the compiler for GPUs is installed')
def test_without_the_compiler_for_gpus_the_remedy_is_named():
  with pytest.raises(ValueError, match=r"pip install 'veojax\[gpu\]'"):
    chips.devices('h100:1x2x8')


@pytest.mark.parametrize('topology', ['v5p', 'h200:8', 'v5p:4by4', 'v7:2x2x1', 'h100:8'])
def test_a_topology_that_is_none_is_refused_with_examples(topology):
  with pytest.raises(ValueError, match='v5p:4x4x4'):
    chips.devices(topology)


def test_a_stage_that_is_none_is_refused():
  with pytest.raises(ValueError, match="did you mean 'train'"):
    report.compile_stage(run.build(SMALL), 'v5p:2x2x1', 'trains')


@needs_libtpu
def test_rows_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match='batch_size=3 rows over data x fsdp = 4'):
    report.compile_stage(run.build(SMALL | {'loop': {'batch_size': 3}}), 'v5e:2x4')


def test_the_compiler_s_refusal_is_read():
  message = 'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 101.25G of 95.74G hbm. Exceeded by 5.51G.'
  assert report.needed(message) == 101.25 * GIB
  message = 'the total memory required for HLO temporaries (640.25G) exceeds available HBM (15.75G).'
  assert report.needed(message) == 640.25 * GIB
  with pytest.raises(ValueError, match='Mosaic'):
    report.needed('INTERNAL: Mosaic failed to compile')


def test_what_does_not_fit_says_by_how_much_and_what_to_change():
  remedy = advice.Remedy({'dit.remat': 'full'}, 6 * GIB, 'most is made again')
  found = report.Report(topology='v5e:2x2', chip='v5e', num_chips=4, mesh={'data': 1, 'fsdp': 2, 'context': 2,
                        'tensor': 1}, stage='train', parameters=10 ** 9, units={'rows a step': 2}, compile_seconds=3.0,
                        hbm=15 * GIB, peak=20 * GIB, suggestions=(remedy,))
  told = dict(table.lines(found))
  assert 'does not fit by 5.0 GiB' in told['HBM of a chip']
  assert told['it would fit with'].startswith('--config.dit.remat=full: about 6 GiB less') and '  or' not in told
  told = dict(table.lines(dataclasses.replace(found, more_chips='more chips')))
  assert told['  or'] == 'more chips'


@pytest.mark.parametrize('name, stage, keys', [
    ('mochi', 'train', {'transformer.remat', 'loop.batch_size'}), ('mochi', 'generate', {'mesh.tensor'}),
    ('svd', 'train', {'unet.remat', 'loop.batch_size'}), ('svd', 'generate', {'mesh.tensor'}),
    ('animatediff', 'train', {'unet.remat', 'loop.batch_size'}), ('make_a_video', 'generate', {'mesh.tensor'}),
    ('make_a_video', 'train', {'unet.remat', 'loop.batch_size'}), ('t2va_video_vae', 'train', {'loop.batch_size'}),
    ('mochi', 'decode', {'settings.tile', 'settings.chunk'}), ('svd', 'decode', {'settings.chunk'}),
    ('animatediff', 'encode', {'settings.chunk'}), ('t2va_video_vae', 'decode', {'tile'}),
    ('t2va_14b', 'decode', {'tile'})])
def test_every_kind_of_config_is_advised_and_takes_the_advice(name, stage, keys):
  """Each change makes a config that builds, of as many rows; in a compiled program no more is saved than it needs."""
  config = run.build(run.read_config(ROOT / 'configs' / f'{name}.py'))
  key, network = advice.trained(config)
  again = [f'--config.{key}.remat=none'] if hasattr(network, 'remat') else []
  config = changed(config, ['--config.loop.batch_size=16', *again])
  mesh = jax.sharding.AbstractMesh((4, 1, 1, 1), sharding.AXES, (jax.sharding.AxisType.Explicit,) * 4)
  model = jax.ShapeDtypeStruct((2 ** 14, 2 ** 14), 'float32', sharding=sharding.named(mesh, sharding.D_F))
  compiled_for = step.State(*[None] * 4, model, (model,), (model, model)) if stage == 'train' else model
  found = advice.remedies(config, stage, (compiled_for,), dict(mesh.shape), 40 * GIB, 16 * GIB)
  assert keys <= {key for remedy in found for key in remedy.changes}
  for remedy in found:
    old = run.build(run.read_config(ROOT / remedy.file)) if remedy.file else config
    new = changed(old, remedy.options)
    assert new.loop.batch_size * new.loop.accumulate == old.loop.batch_size * old.loop.accumulate
    assert 0 < remedy.saves and remedy.file in str(remedy)
    assert stage != 'decode' or remedy.saves < 40 * GIB


@pytest.mark.parametrize('name, stage, told', [
    ('mochi', 'train', 'mesh.context'), ('svd', 'generate', 'mesh.tensor'), ('t2va_video_vae', 'train', 'mesh.data'),
    ('t2va_14b', 'decode', None), ('make_a_video', 'train', 'mesh.fsdp')])
def test_more_chips_are_named_where_they_help(name, stage, told):
  config = run.build(run.read_config(ROOT / 'configs' / f'{name}.py'))
  found = advice.more_chips(config, stage, {'data': 1, 'fsdp': 1, 'context': 1, 'tensor': 1})
  assert told in found if told else not found


def changed(config, options):
  """The run with these options of the command line."""
  tree = door.to_tree(config)
  arguments.merge(tree, arguments.parse(options)['config'])
  return run.build(tree)


def test_advice_saves_what_is_lacking_and_keeps_the_chips_and_the_rows():
  config = run.build(run.read_config(ROOT / 'configs' / 't2va_14b.py'))
  config = dataclasses.replace(config, dit=dataclasses.replace(config.dit, remat='none'),
                               mesh=sharding.MeshConfig(data=2, fsdp=4, context=4))
  mesh = jax.sharding.AbstractMesh((2, 4, 4, 1), sharding.AXES, (jax.sharding.AxisType.Explicit,) * 4)
  model = jax.ShapeDtypeStruct((1024, 1024), 'float32', sharding=sharding.named(mesh, sharding.D_F))
  state = step.State(*[None] * 4, model, (model,), (model, model))
  for excess in (1e6, 5 * GIB, 60 * GIB):
    remedy, *_ = advice.remedies(config, 'train', (state,), dict(mesh.shape), excess, 0.0)
    new = changed(config, remedy.options)
    assert remedy.saves >= excess
    assert new.loop.batch_size * new.loop.accumulate == 16
    assert new.mesh.data * new.mesh.fsdp * new.mesh.context == 32
    assert new.loop.batch_size % (new.mesh.data * new.mesh.fsdp) == 0


def test_the_command_names_what_is_wrong(capsys):
  assert cli.main(['compile', '--config', str(ROOT / 'configs' / 'quickstart.py'), '--topology', 'v5p']) == 2
  assert 'v5p:4x4x4' in capsys.readouterr().err


@needs_libtpu
def test_what_a_slice_sends_another_goes_over_the_network():
  devices = chips.devices('v5e:2x2*2')
  assert [chips.domain(device) for device in devices] == [0] * 4 + [1] * 4


@needs_libtpu
def test_axes_may_split_a_dim_of_the_torus():
  for topology, sizes in (('v6e:4x4', {'fsdp': 8, 'context': 2}), ('v5p:4x4x4', {'fsdp': 16, 'context': 4})):
    mesh = sharding.make_mesh(sharding.MeshConfig(**sizes), chips.devices(topology))
    assert {axis: mesh.shape[axis] for axis in sizes} == sizes


@needs_libtpu
def test_data_runs_over_slices_first():
  devices = chips.devices('v5e:2x2*2')
  assert len(devices) == 8
  mesh = sharding.make_mesh(sharding.MeshConfig(context=4), devices)
  assert [{device.slice_index for device in part} for part in mesh.devices.reshape(2, 4)] == [{0}, {1}]
