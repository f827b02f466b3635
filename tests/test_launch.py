"""The files in launch/ against their languages' own checkers, where these are installed."""
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from veojax import cli, host
from veojax.benchmarking import report

LAUNCH = pathlib.Path(__file__).resolve().parent.parent / 'launch'


@pytest.mark.parametrize('path', sorted([*LAUNCH.glob('*.sh'), *LAUNCH.glob('*.sbatch')]), ids=lambda p: p.name)
def test_shell_scripts_pass_shellcheck(path):
  beside_python = str(pathlib.Path(sys.executable).parent)  # where pip puts it
  shellcheck = shutil.which('shellcheck', path=os.pathsep.join([beside_python, os.environ['PATH']]))
  if not shellcheck:
    pytest.skip("shellcheck is not installed (pip install 'veojax[pod]')")
  out = subprocess.run([shellcheck, '-x', str(path)], capture_output=True, text=True, cwd=LAUNCH.parent)
  assert not out.stdout and not out.returncode, out.stdout


@pytest.fixture(scope='module')
def jobset():
  yaml = pytest.importorskip('yaml')
  return yaml.safe_load((LAUNCH / 'gke_jobset.yaml').read_text())


def test_the_jobs_of_the_jobset_are_jobs_of_kubernetes(jobset):
  validate = pytest.importorskip('kubernetes_validate')
  for replicated in jobset['spec']['replicatedJobs']:
    job = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': replicated['name']}, **replicated['template']}
    validate.validate(job, validate.latest_version(), strict=True)


def test_the_jobset_starts_all_pods_of_a_slice_again_and_hears_sigterm(jobset):
  job = jobset['spec']['replicatedJobs'][0]['template']['spec']
  pod = job['template']['spec']
  assert job['completions'] == job['parallelism'] and job['completionMode'] == 'Indexed' and job['backoffLimit'] == 0
  sizes = pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')
  chips = int(sizes[0]) * int(sizes[1]) * int(sizes[2])
  assert job['completions'] * pod['containers'][0]['resources']['limits']['google.com/tpu'] == chips
  assert pod['containers'][0]['args'][0].startswith('exec veojax train') and pod['terminationGracePeriodSeconds'] >= 60
  rule = job['podFailurePolicy']['rules'][0]
  assert rule['onExitCodes']['containerName'] == pod['containers'][0]['name']
  assert 2 in rule['onExitCodes']['values'] and 75 not in rule['onExitCodes']['values']
  assert {r['action'] for r in jobset['spec']['failurePolicy']['rules']} == {'FailJobSet'}


def again(tmp_path, command, **environment):
  """What launch/again.sh makes of a command that counts its starts in a file."""
  script = f'echo >> {tmp_path}/starts; n=$(wc -l < {tmp_path}/starts); {command}'
  out = subprocess.run(['bash', str(LAUNCH / 'again.sh'), 'bash', '-c', script], capture_output=True, text=True,
                       env={'PATH': '/usr/bin:/bin', 'PAUSE': '0', **environment}, timeout=60)
  return out.returncode, len((tmp_path / 'starts').read_text().splitlines())


@pytest.mark.parametrize('command, code, starts', [
    ('exit 0', 0, 1), ('exit 2', 2, 1), ('exit 130', 130, 1),
    ('[ $n -ge 3 ] || exit 75', 0, 3), ('[ $n -ge 2 ] || kill -9 $$', 0, 2), ('exit 75', 75, 3)])
def test_a_process_is_started_again_where_there_is_use_in_it(tmp_path, command, code, starts):
  assert again(tmp_path, command, RESTARTS='2') == (code, starts)


@pytest.mark.parametrize('send', [os.killpg, os.kill], ids=['terminal', 'kill'])
@pytest.mark.parametrize('pause', [False, True])
def test_ctrl_c_ends_what_runs_and_is_the_last_thing(tmp_path, send, pause):
  """A terminal's reaches the process itself too, which does not listen in any way of its own; and in a pause."""
  script = f'echo $$ >> {tmp_path}/starts; {"exit 75" if pause else "exec sleep 60"}'
  command = ['bash', str(LAUNCH / 'again.sh'), 'bash', '-c', script]
  with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE,
                        env={'PATH': '/usr/bin:/bin', 'PAUSE': '2'}) as process:
    if pause:
      process.stderr.readline()  # that it starts again
    while not (tmp_path / 'starts').exists() or not (tmp_path / 'starts').read_text():
      time.sleep(0.01)
    send(process.pid, signal.SIGINT)
    assert process.wait(30) == 130
  started = (tmp_path / 'starts').read_text().split()
  assert len(started) == 1 and not pathlib.Path(f'/proc/{started[0]}').exists()


@pytest.mark.parametrize('commands, code, starts', [
    (['exit 0', 'exit 0'], 0, 1), (['exit 75', 'exit 75'], 75, 3), (['exit 75', 'exit 2'], 2, 1),
    (['exit 0', 'exec sleep 60'], 75, 3), (['kill -9 $$', 'exec sleep 60'], 75, 3)])
def test_a_local_pod_ends_and_starts_as_one(tmp_path, commands, code, starts):
  """Of two processes; where one ends the other is ended too, after a grace."""
  script = ('echo >> "$0/$JAX_PROCESS_ID"; case $JAX_PROCESS_ID in '
            + ' '.join(f'{i}) {command};;' for i, command in enumerate(commands)) + ' esac')
  out = subprocess.run(['bash', str(LAUNCH / 'local_pod.sh'), '2', 'bash', '-c', script, str(tmp_path)], timeout=60,
                       capture_output=True, text=True, env={'PATH': '/usr/bin:/bin', 'RESTARTS': '2', 'GRACE': '1'})
  assert out.returncode == code, out.stderr
  assert [len((tmp_path / str(i)).read_text().splitlines()) for i in range(2)] == [starts, starts]


def test_an_environment_is_made_once_with_its_extras(tmp_path):
  """By a Python that only writes down what it is told; without extras too, and anew for others."""
  python, said = tmp_path / 'python', tmp_path / 'said'
  python.write_text(f'#!/bin/bash\necho "$@" >> {said}\n'
                    '[ "$2" != venv ] || { mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; }\n')
  python.chmod(0o755)

  def installed(*extras):
    said.write_text('')
    subprocess.run(['bash', '-euo', 'pipefail', '-c', 'source launch/environment.sh && environment "$@"', 'sh',
                    str(tmp_path / 'venv'), *extras], cwd=LAUNCH.parent, check=True,
                   env={'PATH': '/usr/bin:/bin', 'PYTHON': str(python)})
    return [line.split('--editable ')[1] for line in said.read_text().splitlines() if '--editable' in line]
  assert installed('') == ['.'] and installed() == [] and installed('') == []
  assert installed('gpu') == ['.[gpu]'] and installed('gpu') == [] and installed() == ['.']


@pytest.mark.parametrize('name', ['world_model', 'quickstart'])
def test_what_trains_can_be_installed_for_an_accelerator(name):
  text = (LAUNCH / f'{name}.sh').read_text()
  assert 'environment .venv "${EXTRAS:-}"' in text and re.search('^# .*EXTRAS=gpu or EXTRAS=tpu', text, re.MULTILINE)


def measured_on_a_gpu(tmp_path, *names, memory='132', **environment):
  """(exit code, [(XLA_FLAGS, arguments)]) of what launch/benchmark_gpu.sh gives a Python that only writes down what it
  is told, and leaves a result."""
  python = tmp_path / 'python'
  python.write_text('#!/bin/bash\nif [ "$1" = -c ]; then echo "$MEMORY"; exit "${NO_GPU:-0}"; fi\n'
                    '{ echo "${XLA_FLAGS:-}"; printf "%s\\n" "$@"; echo; } >> "$SAID"\n'
                    'echo "{\\"name\\": \\"${@: -1}\\", \\"done\\": true}" >> "$OUT/results.jsonl"\n')
  python.chmod(0o755)
  said = tmp_path / 'said'
  said.write_text('')
  out = subprocess.run(['bash', str(LAUNCH / 'benchmark_gpu.sh'), *names], capture_output=True, text=True, timeout=60,
                       env={'PATH': '/usr/bin:/bin', 'PYTHON': str(python), 'OUT': str(tmp_path / 'out'),
                            'SAID': str(said), 'MEMORY': memory, **environment})
  calls = (call.split('\n') for call in said.read_text().split('\n\n') if call)
  return out.returncode, [(flags.strip(), arguments) for flags, *arguments in calls]


@pytest.fixture(scope='module')
def gpu_commands(tmp_path_factory):
  code, calls = measured_on_a_gpu(tmp_path_factory.mktemp('gpu'))
  assert code == 0
  return calls


def test_what_is_measured_on_a_gpu_can_be_measured(gpu_commands, monkeypatch):
  """Options, keys of configs and what goes together; names tell results apart, and so do options and flags."""
  calls = []
  monkeypatch.setattr(report, 'parts', lambda *what, **options: calls.append((what, options)) or [whole])
  whole = report.Report('a GPU', 1, 'bfloat16', None, done=True)
  for name in ('keep_memory', 'enable_compilation_cache', 'one_device_a_core'):
    monkeypatch.setattr(host, name, lambda *_: None)
  monkeypatch.chdir(LAUNCH.parent)
  for _, (module, name, *arguments) in gpu_commands:
    output = arguments.index('--output')
    assert (module, name) == ('-m', 'veojax.cli') and cli.main(arguments[:output] + arguments[output + 2:]) == 0
  assert len(calls) == len(gpu_commands) >= 10
  for (config, what), options in calls:
    report.check(config, what, options['peer'])
  names = [arguments[-1] for _, arguments in gpu_commands]
  assert names[:2] == ['attention', 'train_2b'] and len(set(names)) == len(names)
  assert len({(flags, *arguments[:-1]) for flags, arguments in gpu_commands}) == len(names)


def test_the_flags_that_are_compared_are_flags_of_xla(gpu_commands):
  flags = ' '.join(flags for flags, _ in gpu_commands if flags)
  assert 'latency_hiding' in flags
  subprocess.run([sys.executable, '-c', 'import jax; jax.devices()'], check=True, capture_output=True,
                 env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'})


def test_a_measurement_on_a_gpu_goes_on_where_it_stopped(tmp_path):
  names = lambda calls: [arguments[-1] for _, arguments in calls]
  code, calls = measured_on_a_gpu(tmp_path, 'train_2b', 'attention')
  assert code == 0 and names(calls) == ['attention', 'train_2b']
  assert names(measured_on_a_gpu(tmp_path, 'train_2b', 'generate_2b')[1]) == ['generate_2b']
  assert names(measured_on_a_gpu(tmp_path, 'train_2b', AGAIN='1')[1]) == ['train_2b']
  rest = names(measured_on_a_gpu(tmp_path, memory='75')[1])
  assert 'remat_full' in rest and not {'remat_dots', 'attention', 'train_2b', 'generate_2b'} & set(rest)
  assert {path.name for path in (tmp_path / 'out').iterdir()} == {'results.jsonl', 'tables.txt', 'errors.txt'}


def test_nothing_is_measured_where_there_is_no_gpu(tmp_path):
  assert measured_on_a_gpu(tmp_path, NO_GPU='1') == (2, [])


def test_each_file_says_what_it_needs():
  for path in LAUNCH.iterdir():
    head = path.read_text().split('\n\n')[0] if path.suffix == '.yaml' else path.read_text()[:1500]
    assert re.search(r'^# .{20,}', head, re.MULTILINE), path
