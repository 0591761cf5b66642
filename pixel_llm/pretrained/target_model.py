"""The model that weights are for: names and shapes of its parameters.

Read from a checkpoint, or from the gin files of a run. No array is made.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax

from t5x import checkpoint_reader
from t5x import checkpoints

# What a run's gin files call a model and the shape of its batch.
_GIN_TARGET = """
from __gin__ import dynamic_registration
from pixel_llm.pretrained import target_model

target_model.param_shapes:
  model = %MODEL
  task_feature_lengths = %TASK_FEATURE_LENGTHS
  batch_size = %BATCH_SIZE
"""


@dataclasses.dataclass(frozen=True)
class TargetModel:
  """The parameters of a model.

  Attributes:
    title: where they were read, for the report.
    params: shapes and types, nested by name.
  """

  title: str
  params: Mapping[str, Any]


def from_checkpoint(path: str) -> TargetModel:
  """Reads names and shapes of a checkpoint.

  Args:
    path: a run's directory, or one of its checkpoints.
  """
  tree = checkpoint_reader.read_tree(checkpoints.find_checkpoint(path))
  return TargetModel(path, _shapes(tree['target']))


def from_gin(
    gin_files: Sequence[str],
    gin_bindings: Sequence[str] = (),
    gin_search_paths: Sequence[str] = ('.',),
) -> TargetModel:
  """Builds the model of a run's gin files, abstractly.

  The gin config of this process is empty afterwards.

  Args:
    gin_files: paths of gin files.
    gin_bindings: gin statements, applied after the files.
    gin_search_paths: directories in which files are looked up.

  Raises:
    FileNotFoundError: if a file is in none of the search paths.
    ValueError: if gin knows a name not, or a value builds no model.
  """
  params = call_with_gin(
      param_shapes, _GIN_TARGET, gin_files, gin_bindings, gin_search_paths
  )
  return TargetModel(', '.join(gin_files), params)


def call_with_gin(
    function: Callable[..., Any],
    statements: str,
    gin_files: Sequence[str],
    gin_bindings: Sequence[str] = (),
    gin_search_paths: Sequence[str] = ('.',),
) -> Any:
  """Calls a function with what the gin files of a run say.

  The gin config of this process is empty afterwards.

  Args:
    function: what gin configures.
    statements: gin statements that bind its arguments to the run's macros.
    gin_files: paths of gin files.
    gin_bindings: gin statements, applied after the files.
    gin_search_paths: directories in which files are looked up.

  Raises:
    FileNotFoundError: if a file is in none of the search paths.
    ValueError: if gin knows a name not, or a value builds no model.
  """
  # Gin files of a run import SeqIO and with it TensorFlow.
  import gin
  from t5x import gin_utils
  from t5x import script

  gin.clear_config()
  try:
    script.parse_gin(gin_files, gin_bindings, gin_search_paths)
    gin.parse_config(statements)
    return gin.get_configurable(function)()
  except (AttributeError, ImportError, NameError, TypeError) as error:
    raise ValueError(
        gin_utils.without_addresses(gin_utils.explain(error))
    ) from error
  finally:
    gin.clear_config()


def batch_spec(
    model: Any, task_feature_lengths: Mapping[str, Any], batch_size: int
) -> Mapping[str, Any]:
  """Returns shapes and types of what a model reads.

  Args:
    model: a `t5x.models.BaseModel`.
    task_feature_lengths: length or shape of each task feature.
    batch_size: examples of a batch.

  Raises:
    ValueError: if the lengths do not tell the shape of every feature.
  """
  from t5x import batches

  converter = model.FEATURE_CONVERTER_CLS(pack=False)
  spec = batches.get_converter_spec(converter, task_feature_lengths, batch_size)
  if spec is None:
    raise ValueError(
        f'TASK_FEATURE_LENGTHS = {dict(task_feature_lengths)} does not give'
        f' every feature of {type(converter).__name__} a shape.'
    )
  return spec


def variable_shapes(model: Any, spec: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns shapes and types of all that a model initialises, and their axes.

  Args:
    model: a `t5x.models.BaseModel`.
    spec: what it reads, from `batch_spec`.
  """
  shapes = {name: feature.shape for name, feature in spec.items()}
  types = {name: feature.dtype for name, feature in spec.items()}
  return jax.eval_shape(
      lambda rng: model.get_initial_variables(rng, shapes, types),
      jax.random.key(0),
  )


def state_shapes(model: Any, spec: Mapping[str, Any]) -> Any:
  """Returns the train state that a run begins with, of shapes and types.

  Args:
    model: a `t5x.models.BaseModel`.
    spec: what it reads, from `batch_spec`.
  """
  from t5x import train_state

  return jax.eval_shape(
      lambda variables: train_state.FlaxOptimTrainState.create(
          model.optimizer_def, variables
      ),
      variable_shapes(model, spec),
  )


def param_shapes(
    model: Any, task_feature_lengths: Mapping[str, Any], batch_size: int
) -> Mapping[str, Any]:
  """Returns shapes and types of a model's parameters.

  Args:
    model: a `t5x.models.BaseModel`.
    task_feature_lengths: length or shape of each task feature.
    batch_size: examples of a batch.

  Raises:
    ValueError: if the lengths do not tell the shape of every feature.
  """
  spec = batch_spec(model, task_feature_lengths, batch_size)
  return _shapes(variable_shapes(model, spec)['params'])


def _shapes(tree: Any) -> Any:
  return jax.tree.map(
      lambda array: jax.ShapeDtypeStruct(tuple(array.shape), array.dtype), tree
  )
