"""What the trainer costs beside the steps themselves, on this machine.

In one run: how long `t5x.train` takes to import and to its first step, how fast
its loop is against a bare loop around `jax.jit` of the same step on the same
data, how long a save keeps the loop waiting, and how fast a state is restored.

    python benchmarks/trainer.py

prints a JSON object a line. `trainer.gin` is the run. Trainer and bare loop take
turns; figures are medians. The bare loop reads the same SeqIO pipeline, calls
the step and drops its metrics.
"""

import argparse
from collections.abc import Iterator, Sequence
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
GIN_FILE = str(HERE / 'trainer.gin')
# Two sizes of a step.
STEPS = ((), ('BATCH_SIZE = 2', 'LENGTH = 32'))
# A state whose writing takes long enough to be timed.
LARGE = (
    'WIDTH = 1024',
    'NUM_EMBEDDINGS = 32128',
    'BATCH_SIZE = 1',
    'LENGTH = 8',
)


def _environment() -> dict[str, str]:
  paths = [str(HERE), str(HERE.parent), os.environ.get('PYTHONPATH', '')]
  return {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}


# ---- Processes ---------------------------------------------------------------


def import_seconds(repeats: int) -> dict[str, float]:
  """Times `import t5x.train` in fresh processes, and an empty one."""

  def seconds(program: str) -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, '-c', program], env=_environment(), check=True
    )
    return time.perf_counter() - start

  return {
      name: statistics.median(seconds(program) for _ in range(repeats))
      for name, program in (
          ('python_seconds', 'pass'),
          ('import_seconds', 'import t5x.train'),
          ('import_loop_seconds', 'import t5x.loop'),
      )
  }


def first_step_seconds(repeats: int) -> dict[str, float]:
  """Times the script until its only step is done; parts by its own ledger."""
  whole, parts = [], []
  for _ in range(repeats):
    with tempfile.TemporaryDirectory() as directory:
      start = time.perf_counter()
      subprocess.run(
          [
              *(sys.executable, '-m', 't5x.train', f'--gin_file={GIN_FILE}'),
              f"--gin.MODEL_DIR='{directory}'",
              '--gin.utils.CheckpointConfig.save=None',
              '--verbosity=-1',
          ],
          env=_environment(),
          check=True,
      )
      whole.append(time.perf_counter() - start)
      ledger = pathlib.Path(directory, 'ledger.json').read_text()
      parts.append(json.loads(ledger)['seconds'])
  median = {
      name: statistics.median(part[name] for part in parts) for name in parts[0]
  }
  del median['closing']
  return {
      'first_step_seconds': sum(median.values()),
      'process_seconds': statistics.median(whole),
      **{f'{k}_seconds': v for k, v in median.items() if v > 0.01},
  }


# ---- This process ------------------------------------------------------------


def configure(bindings: Sequence[str] = ()) -> dict[str, Any]:
  """Returns the arguments of `loop.train`, as gin sets them."""
  import gin
  from t5x import loop
  from t5x import script

  gin.clear_config()
  script.parse_gin([GIN_FILE], ["MODEL_DIR = ''", *bindings])
  run = gin.get_bindings(gin.get_configurable(loop.train))
  return {**run, 'summarize_config_fn': lambda *_: None}


def trainer_loop(
    run: dict[str, Any], num_steps: int, stretches: int
) -> list[float]:
  """Returns seconds a step of each stretch after the first, of a whole run."""
  from t5x import checkpoint_config
  from t5x import loop

  with tempfile.TemporaryDirectory() as directory:
    loop.train(
        **{
            **run,
            'model_dir': directory,
            'total_steps': num_steps * (stretches + 1),
            'stats_period': num_steps,
            'checkpoint_cfg': checkpoint_config.CheckpointConfig(),
        }
    )
    lines = pathlib.Path(directory, 'train-metrics.jsonl').read_text()
  points = map(json.loads, lines.splitlines())
  return [p[k] for p in points if (k := 'timing/step_seconds') in p][1:]


class BareLoop:
  """The same steps on the same data, and nothing else."""

  def __init__(self, run: dict[str, Any]):
    """Opens the data and initializes the state."""
    import jax

    import gin
    from t5x import datasets
    from t5x import initializer
    from t5x import trainer

    model, partitioner = run['model'], run['partitioner']
    cfg = run['train_dataset_cfg']
    layout = partitioner.get_data_layout(cfg.batch_size)
    self._dataset = datasets.get_dataset(
        cfg, layout.shard_id, layout.num_shards, model.FEATURE_CONVERTER_CLS
    )
    spec = self._dataset.element_spec
    self._state = initializer.TrainStateInitializer(
        optimizer_def=model.optimizer_def,
        init_fn=model.get_initial_variables,
        input_shapes={k: tuple(v.shape) for k, v in spec.items()},
        input_types={k: v.dtype.as_numpy_dtype for k, v in spec.items()},
        partitioner=partitioner,
    ).from_scratch(jax.random.PRNGKey(0))
    rng = jax.random.PRNGKey(1)
    learning_rate = gin.get_bindings('trainer.Trainer')['learning_rate_fn']

    def train_step(state, batch):
      key = jax.random.fold_in(rng, state.step)
      rate = learning_rate(state.step)
      return trainer.train_with_lr(state, batch, rate, key, model, None)

    self._step = jax.jit(train_step, donate_argnums=0)

  def __call__(self, num_steps: int, stretches: int) -> list[float]:
    """Returns seconds a step of each stretch after the first."""
    import jax

    batches = iter(self._dataset.as_numpy_iterator())
    found = []
    for _ in range(stretches + 1):
      start = time.perf_counter()
      for _ in range(num_steps):
        self._state, _ = self._step(self._state, next(batches))
      jax.block_until_ready(self._state)
      found.append((time.perf_counter() - start) / num_steps)
    return found[1:]


def loop_speed(
    num_steps: int, rounds: int, bindings: Sequence[str]
) -> dict[str, float]:
  """Compares trainer and bare loop, which take turns."""
  run = configure(bindings)
  bare = BareLoop(run)
  trainer_seconds, bare_seconds = [], []
  for _ in range(rounds):
    trainer_seconds += trainer_loop(run, num_steps, 3)
    bare_seconds += bare(num_steps, 3)
  ours, rival = map(statistics.median, (trainer_seconds, bare_seconds))
  return {
      'trainer_steps_per_second': 1 / ours,
      'bare_steps_per_second': 1 / rival,
      'ratio': rival / ours,
      'trainer_adds_ms_per_step': 1e3 * (ours - rival),
  }


def checkpoint_speed(saves: int) -> dict[str, float]:
  """Times saves in a real run, and restoring the last one."""
  import jax

  from t5x import checkpoint_config
  from t5x import loop
  from t5x import orbax_manager

  blocked, whole = [], []

  class Timed(orbax_manager.OrbaxCheckpointManagerInterface):
    """Notes when a save lets the loop go on, and when it is done."""

    def save(self, *args, **kwargs):
      start = time.perf_counter()
      saved = super().save(*args, **kwargs)
      blocked.append(time.perf_counter() - start)
      self.wait_until_finished()
      whole.append(time.perf_counter() - start)
      return saved

  run = configure(LARGE)
  with tempfile.TemporaryDirectory() as directory:
    save = checkpoint_config.SaveCheckpointConfig(
        period=1, checkpoint_manager_cls=Timed, keep=2
    )
    _, state = loop.train(
        **{
            **run,
            'model_dir': directory,
            'total_steps': saves,
            'checkpoint_cfg': checkpoint_config.CheckpointConfig(save=save),
        }
    )
    manager = orbax_manager.OrbaxCheckpointManagerInterface(
        directory, state, run['partitioner'], read_only=True
    )
    size = sum(x.nbytes for x in jax.tree.leaves(state.state_dict()))
    seconds = []
    for _ in range(3):
      start = time.perf_counter()
      jax.block_until_ready(manager.restore(saves))
      seconds.append(time.perf_counter() - start)
    manager.close()
  # The first save makes directories and threads.
  block, total = (statistics.median(x[1:]) for x in (blocked, whole))
  return {
      'state_mb': size / 1e6,
      'save_seconds': total,
      'save_blocks_seconds': block,
      'save_blocks_share': block / total,
      'restore_mb_per_second': size / 1e6 / statistics.median(seconds),
  }


def measurements(args: argparse.Namespace) -> Iterator[dict[str, float]]:
  yield import_seconds(args.repeats)
  yield first_step_seconds(args.repeats)
  for bindings in STEPS:
    yield loop_speed(args.steps, args.rounds, bindings)
  yield checkpoint_speed(args.saves)


def main() -> None:
  # Gin imports the task from here.
  sys.path.insert(0, str(HERE))
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--repeats', type=int, default=3, help='of processes')
  parser.add_argument('--steps', type=int, default=100, help='of a stretch')
  parser.add_argument('--rounds', type=int, default=2, help='of both loops')
  parser.add_argument('--saves', type=int, default=5)
  for row in measurements(parser.parse_args()):
    row = {name: round(value, 4) for name, value in row.items()}
    print(json.dumps(row), flush=True)


if __name__ == '__main__':
  main()
