"""A job's file as a SLURM batch script, as a JobSet, and the images."""

import os
import pathlib
import re
import subprocess
import tomllib

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]

JOB = """
name = run
gin_file = gin/a.gin
gin_file = gin/mesh/gpu_8.gin
model_dir = {model_dir}
flag = --gin.NOTE="two words, 'quoted' \\ and: {{}}"
env = DATA=a b
secret = SECRET_KEY
max_restarts = 2
"""
SLURM = 'nodes = 1\ngpus_per_node = 2\nroot = {root}\n'
FLAG = '--gin.NOTE="two words, \'quoted\' \\ and: {}"'


def render(script, tmp_path, more, **variables):
  job = tmp_path / 'a.job'
  job.write_text(JOB.format(model_dir='gs://b/run') + more)
  return subprocess.run(
      [str(ROOT / 'launch' / script), str(job)],
      env={**os.environ, **variables},
      capture_output=True,
      text=True,
      check=False,
  )


# Two tasks of a step, then what the plan says of each.
_SRUN = """#!/bin/bash
shift
echo srun >>calls
for rank in 0 1; do
  SLURM_PROCID=$rank "$@" &
  echo $! >>pids
done
wait
exit 143
"""
_PYTHON = """#!/bin/bash
echo $$ >>pids
echo "$DATA|$SECRET_KEY|$*" >>"command-$SLURM_PROCID"
line=$(sed -n "$(grep -c srun calls)p" plan)
read -ra words <<<"$line"
word=${words[SLURM_PROCID]}
if [[ $word == *@* ]]; then
  sleep "${word#*@}" &
  trap 'kill $!; exit 75' TERM
  touch "waits-$SLURM_PROCID"
  wait $!
fi
exit "${word%@*}"
"""
# As SLURM does: every process of the step, the tasks' shells too.
_SCANCEL = """#!/bin/bash
echo "scancel $*" >>calls
kill -TERM $(cat pids)
"""
_SCONTROL = '#!/bin/bash\necho "scontrol $*" >>calls\n'


def start(tmp_path, plan):
  """Starts the batch script of a job, with stand-ins of SLURM's commands."""
  rendered = render('slurm.sh', tmp_path, SLURM.format(root=tmp_path))
  assert rendered.returncode == 0, rendered.stderr
  (tmp_path / 'launch').symlink_to(ROOT / 'launch')
  (tmp_path / '.venv/bin').mkdir(parents=True)
  (tmp_path / 'plan').write_text(plan)
  files = {
      'srun': _SRUN,
      'scancel': _SCANCEL,
      'scontrol': _SCONTROL,
      '.venv/bin/python': _PYTHON,
      'batch': rendered.stdout.replace('.venv/bin', f'{tmp_path}/.venv/bin'),
  }
  for name, text in files.items():
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  return subprocess.Popen(
      [str(tmp_path / 'batch')],
      cwd=tmp_path,
      env={
          **os.environ,
          'PATH': f'{tmp_path}:{os.environ["PATH"]}',
          'SLURM_JOB_ID': '7',
          'SLURM_NTASKS': '2',
          'SECRET_KEY': 'secret',
      },
      stdout=subprocess.PIPE,
      text=True,
  )


@pytest.mark.parametrize(
    'plan, status, starts',
    [
        ('0 0', 0, 1),
        ('75 75\n134 76\n0 0', 0, 3),
        # Higher than 1, and not what happened.
        ('1@0.2 134', 1, 1),
        ('74 76', 74, 1),
        ('75 75\n' * 5, 75, 3),
    ],
)
def test_slurm_starts_a_run_again_as_its_tasks_say(
    tmp_path, plan, status, starts
):
  process = start(tmp_path, plan)
  stdout, _ = process.communicate(timeout=60)
  assert process.returncode == status, stdout
  assert (tmp_path / 'calls').read_text().split() == ['srun'] * starts
  told = (tmp_path / 'command-1').read_text().splitlines()[0]
  assert told == (
      'a b|secret|-m t5x.train --gin_file=gin/a.gin'
      ' --gin_file=gin/mesh/gpu_8.gin --gin.MODEL_DIR="gs://b/run"'
      f' {FLAG} --multiprocess_gpu'
  )


def test_slurm_gets_the_job_back_when_its_time_is_over(tmp_path):
  process = start(tmp_path, '0@60 0@60')
  while len(list(tmp_path.glob('waits-*'))) < 2:
    assert process.poll() is None
  process.terminate()
  stdout, _ = process.communicate(timeout=60)
  assert process.returncode == 75, stdout
  assert (tmp_path / 'calls').read_text().splitlines() == [
      'srun',
      'scancel --signal=TERM 7',
      'scontrol requeue 7',
  ]


def test_slurm_script_tells_its_resources_and_no_secret(tmp_path):
  text = render(
      'slurm.sh', tmp_path, SLURM.format(root='/shared'), SECRET_KEY='wxyz'
  ).stdout
  assert 'wxyz' not in text
  options = re.findall(r'^#SBATCH --(.*)$', text, re.MULTILINE)
  assert options[:4] == [
      *('job-name=run', 'nodes=1', 'ntasks-per-node=2', 'gres=gpu:2')
  ]


@pytest.mark.parametrize(
    'topology, selector, size, hosts, chips',
    [
        ('v4:2x2x4', 'tpu-v4-podslice', '2x2x4', 4, 4),
        ('v5e:2x4', 'tpu-v5-lite-podslice', '2x4', 1, 8),
        ('v5e:8x8', 'tpu-v5-lite-podslice', '8x8', 16, 4),
        ('v5p:4x4x8', 'tpu-v5p-slice', '4x4x8', 32, 4),
        ('v6e:16x16', 'tpu-v6e-slice', '16x16', 64, 4),
    ],
)
def test_jobset_asks_for_the_hosts_of_a_topology(
    tmp_path, topology, selector, size, hosts, chips
):
  more = (
      f'topology = {topology}\nimage = a:1\nslices = 2\nprovisioning = spot\n'
  )
  rendered = render('gke.sh', tmp_path, more, SECRET_KEY='wxyz')
  assert rendered.returncode == 0, rendered.stderr
  assert 'wxyz' not in rendered.stdout
  jobset = yaml.safe_load(rendered.stdout)
  assert jobset['kind'] == 'JobSet'
  assert jobset['metadata']['name'] == 'run'
  policy = jobset['spec']['failurePolicy']
  assert policy['maxRestarts'] == 2
  assert policy['rules'][0]['onJobFailureReasons'] == ['PodFailurePolicy']
  (slices,) = jobset['spec']['replicatedJobs']
  assert slices['replicas'] == 2
  job = slices['template']['spec']
  assert job['completions'] == job['parallelism'] == hosts
  (rule,) = job['podFailurePolicy']['rules']
  assert rule['onExitCodes']['values'] == [1, 74, 130]
  pod = job['template']['spec']
  assert pod['nodeSelector'] == {
      'cloud.google.com/gke-tpu-accelerator': selector,
      'cloud.google.com/gke-tpu-topology': size,
      'cloud.google.com/gke-spot': 'true',
  }
  (container,) = pod['containers']
  assert container['name'] == rule['onExitCodes']['containerName']
  assert container['resources']['limits'] == {'google.com/tpu': chips}
  assert container['command'] == [
      *('python', '-m', 't5x.train', '--gin_file=gin/a.gin'),
      *('--gin_file=gin/mesh/gpu_8.gin', '--gin.MODEL_DIR="gs://b/run"', FLAG),
  ]
  env, secret = container['env']
  assert env == {'name': 'DATA', 'value': 'a b'}
  assert secret['valueFrom']['secretKeyRef'] == {
      'name': 'run',
      'key': 'SECRET_KEY',
  }


@pytest.mark.parametrize('topology', ['v5e:4x16', 'v4:4x4', 'v3:4x4', 'v5e:8'])
def test_a_shape_that_no_slice_has_is_refused(tmp_path, topology):
  rendered = render('gke.sh', tmp_path, f'topology = {topology}\nimage = a:1\n')
  assert rendered.returncode == 1
  assert f'topology = {topology}' in rendered.stderr


@pytest.mark.parametrize('kind', ['tpu', 'gpu'])
def test_an_image_holds_what_the_package_is_made_of(kind):
  lines = (ROOT / f'launch/Dockerfile.{kind}').read_text().splitlines()
  copied = [
      word
      for line in lines
      if line.startswith('COPY')
      for word in line.split()[1:-1]
  ]
  assert all((ROOT / name).exists() for name in copied)
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
  packages = project['tool']['setuptools']['packages']['find']['include']
  assert {name.rstrip('*') for name in packages} <= set(copied)
  wanted = re.search(r'\[(.*)\]', lines[-1])[1].split(',')
  assert set(wanted) <= set(project['project']['optional-dependencies'])
  # What is copied is not left out of the build's context.
  ignored = (ROOT / '.dockerignore').read_text().splitlines()
  assert {f'!{name}' for name in copied} <= set(ignored)
