"""What writers of scalars share: they leave everything else to TensorBoard.

This module imports CLU's writers, and with them TensorFlow: import it where a
writer is made.
"""

from clu import metric_writers


class ScalarWriter(metric_writers.MetricWriter):
  """A CLU writer that need only define `write_scalars`."""

  def write_summaries(self, step, values, metadata=None) -> None:
    """Leaves summaries to TensorBoard."""

  def write_images(self, step, images) -> None:
    """Leaves images to TensorBoard."""

  def write_videos(self, step, videos) -> None:
    """Leaves videos to TensorBoard."""

  def write_audios(self, step, audios, *, sample_rate) -> None:
    """Leaves audio to TensorBoard."""

  def write_texts(self, step, texts) -> None:
    """Leaves text to TensorBoard."""

  def write_histograms(self, step, arrays, num_buckets=None) -> None:
    """Leaves histograms to TensorBoard."""

  def write_hparams(self, hparams) -> None:
    """Leaves hyper-parameters to TensorBoard."""

  def flush(self) -> None:
    """Has nothing to write later."""

  def close(self) -> None:
    """Has nothing to close."""
