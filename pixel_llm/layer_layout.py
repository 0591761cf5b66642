"""Scanned and unrolled parameters of the towers and language models.

Released parameters, golden figures and patterns of a recipe (such as `FROZEN`)
use the unrolled names; a full-size network may hold its stacks scanned. This
says which stacks there are, and converts; `t5x.layer_layout` tells how.

    unrolled                                    scanned
    git_backbone/blocks.7/attn/proj/kernel      git_backbone/blocks/attn/…
    sam_backbone/blocks.13/attn/qkv/kernel      sam_backbone/blocks/blocks.5/…
    textual/t5_module/encoder/layers_3/mlp/…    …/encoder/encoder/mlp/…
    textual/transformer/encoder/layer.2/output  …/encoder/layer/output/…
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from t5x import layer_layout

LAYOUT = layer_layout.Layout(
    stacks=(
        *layer_layout.T5_STACKS,
        layer_layout.StackNames('blocks.{}', 'blocks'),
        layer_layout.StackNames('layer.{}', 'layer', parent='encoder'),
    )
)


def to_unrolled(tree: Any) -> Any:
  """Gives every layer its own arrays, as released checkpoints have them.

  Args:
    tree: parameters, or a state dict that holds some, in either form.

  Returns:
    The tree with all stacks unrolled.
  """
  return LAYOUT.unroll(tree)


def to_layout_of(tree: Any, target: Any) -> Any:
  """Brings parameters into the form that a network holds them in.

  Args:
    tree: parameters, or a state dict that holds some, in either form.
    target: the network's parameters, or the state dict of a train state, such
      as shapes from `jax.eval_shape`; only the names matter.

  Returns:
    The tree; each stack is scanned if it is in `target`.

  Raises:
    ValueError: if a layer is missing or layers of a stack do not match.
  """
  return LAYOUT.match(tree, target)


def layer_names(params: Any) -> dict[str, tuple[str, ...]]:
  """Names every parameter as the unrolled form does, one name a layer.

  Args:
    params: parameters or their shapes, in either form.

  Returns:
    Name of each leaf to its unrolled names: its own, or one for each layer of a
    scanned parameter.
  """
  return LAYOUT.layer_names(params)


def per_layer(values: Sequence[float], param: Array) -> Array:
  """Shapes a number a layer so that it multiplies a scanned parameter."""
  shape = [1] * param.ndim
  shape[min(LAYOUT.axis, param.ndim - 1)] = len(values)
  return jnp.asarray(values, param.dtype).reshape(shape)


def restore_layout(
    stored: Mapping[str, Any],
    target: Mapping[str, Any],
    *,
    is_resuming: bool = False,
) -> Mapping[str, Any]:
  """Lets a run start from a checkpoint of either form.

  One of the `state_transformation_fns` of `RestoreCheckpointConfig`. It stands
  before an assignment map, whose patterns are the model's own names.

  Args:
    stored: state dict of the checkpoint, not yet read.
    target: state dict of the run.
    is_resuming: True returns the checkpoint unchanged: it is the run's own.

  Returns:
    The checkpoint under the run's names.
  """
  return stored if is_resuming else to_layout_of(stored, target)
