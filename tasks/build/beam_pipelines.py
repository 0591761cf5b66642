"""Writes shards as an Apache Beam pipeline, on as many machines as its runner.

An element is a shard, so the shards are the same, byte for byte, as those of
processes on one machine; each is renamed by the worker that wrote it. What goes
into a shard lies in a file beside it while the pipeline runs, since runners
take little with the pipeline itself. What a pipeline that was cut off has
finished is kept by the next run. The process that
starts the pipeline then checks every shard and writes the manifest. Pictures
and output lie on a file system that all workers see under the same path.

`apache_beam` is imported when a pipeline starts, and never otherwise.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import importlib.util
import pathlib
import pickle
import shlex

from tasks.build import shard_files
from tasks.build import workers


class BeamError(Exception):
  """Beam is not there, or its pipeline did not do all; says what to do."""


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """How a pipeline runs.

  Attributes:
    runner: of Beam, such as DirectRunner or DataflowRunner.
    flags: further flags of Beam, as on its own command line.
  """

  runner: str
  flags: str = ''

  def check_installed(self) -> None:
    """Refuses a run that asks for what is not installed.

    Raises:
      BeamError: if there is no `apache_beam`.
    """
    if not importlib.util.find_spec('apache_beam'):
      raise BeamError(
          f'--runner={self.runner} needs apache-beam, which is not installed.'
          " Install '.[beam]' in an environment of its own (it wants older"
          ' packages than training), or leave --runner out.'
      )

  def write_all(
      self,
      jobs: Sequence[shard_files.Job],
      progress: Callable[[int], None],
  ) -> Iterator[shard_files.Shard]:
    """Runs a pipeline that writes shards and renames them.

    Args:
      jobs: the shards.
      progress: called with a number of units that are done, at the end.

    Yields:
      The shards, whole and under their names.

    Raises:
      BeamError: if one is not there once the pipeline is done.
    """
    import apache_beam as beam  # pyright: ignore[reportMissingImports]

    files = [_store(job) for job in jobs]
    options = beam.options.pipeline_options.PipelineOptions(
        [f'--runner={self.runner}', *shlex.split(self.flags)]
    )
    with workers.converter_environment():
      with beam.Pipeline(options=options) as pipeline:
        _ = (
            pipeline
            | 'Shards' >> beam.Create(files)
            | 'Spread' >> beam.Reshuffle()
            | 'Write' >> beam.Map(write_and_finish)
        )
    for job in jobs:
      shard = shard_files.kept_shard(job)
      if shard is None:
        raise BeamError(
            f'The pipeline is done, but {job.path} is not there as it was'
            ' written. Do all workers see this folder under this path?'
        )
      progress(len(job.units))
      yield shard


def _store(job: shard_files.Job) -> str:
  """Puts a job into a file that the end of the conversion removes."""
  path = shard_files.temporary_name(job.path)
  path.write_bytes(pickle.dumps(job))
  return str(path)


def write_and_finish(file: str) -> str:
  """Writes a shard and renames it.

  Args:
    file: what goes in, from the process that started the pipeline.

  Returns:
    The name of the shard.
  """
  job: shard_files.Job = pickle.loads(pathlib.Path(file).read_bytes())
  shard = shard_files.write_shard(job, lambda: None)
  shard_files.finish_shard(job.directory, shard)
  return shard.file
