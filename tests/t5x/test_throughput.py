"""Examples, model FLOPs and their share of the peak, per second."""

import jax
import pytest
import tiny_regression

from t5x import chips
from t5x import partitioning
from t5x import throughput


def test_rates_follow_from_time_and_work():
  speed = throughput.Throughput(
      batch_size=32, num_devices=4, model_flops=8e12, peak_flops=10e12
  )
  assert speed.scalars(seconds=10.0, num_steps=5) == pytest.approx(
      {
          'timing/step_seconds': 2.0,
          'timing/examples_per_second': 16.0,
          'timing/model_flops_per_step': 8e12,
          'timing/tflops_per_second_per_device': 1.0,
          'timing/mfu': 0.1,
      }
  )


def test_what_is_not_known_is_not_written():
  speed = throughput.Throughput(8, 1, None, None)
  assert set(speed.scalars(1.0, 1)) == {
      'timing/step_seconds',
      'timing/examples_per_second',
  }


def _trainer(frozen, num_microbatches=None):
  model = tiny_regression.Regression(tiny_regression.optimizer(frozen))
  return tiny_regression.trainer(model, num_microbatches=num_microbatches)


@pytest.mark.parametrize('num_microbatches', [None, 4])
@pytest.mark.parametrize('frozen', [False, True])
def test_a_step_counts_all_its_matrices_and_traces_nothing_again(
    frozen, num_microbatches
):
  trainer = _trainer(frozen, num_microbatches)
  (batch,) = tiny_regression.batches(1)
  trainer.compile_train(batch)
  traces = trainer._model.num_traces

  speed = throughput.of_run(
      trainer, batch, partitioning.PjitPartitioner(num_partitions=1), 8
  )

  rows, columns = batch['x'].shape
  width = tiny_regression.WIDTH
  embedder = rows * columns * width
  hidden, head = rows * width * width, rows * width
  forward = embedder + hidden + head
  # Gradients of weights, and of what goes into `hidden` and `head`.
  backward = 2 * hidden + 2 * head + embedder
  if frozen:
    # No gradient of the embedder, and so none of what goes into `hidden`.
    backward -= embedder + hidden
  assert speed.model_flops == 2 * (forward + backward)
  assert trainer._model.num_traces == traces
  assert speed.num_devices == jax.device_count()
  trainer.close()


def test_a_device_without_published_peak_has_none():
  assert chips.peak_flops(jax.devices('cpu')[0]) is None
