"""Runs a stack of equal layers, one after another or as one scanned layer.

Both forms compute the same. Unrolled, the compiler sees every layer: it takes
long, and may overlap neighbours. Scanned, it sees one layer in a loop, whose
parameters hold all layers along an axis named `layers` (RefA); `layer_layout`
converts the parameters.

Rematerialisation recomputes, in the backward pass, what a layer computed in the
forward pass, instead of keeping it (RefB).

RefA: google-research/t5x `examples/scalable_t5/network.py`; RefB: Chen et al.,
"Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174).
"""

from collections.abc import Callable, Sequence
import difflib
from typing import Any

from flax import linen as nn
from flax.linen import partitioning
import jax
import jax.numpy as jnp

# The logical axis of a scanned stack, and where it stands in a parameter: the
# second, as in T5X, so that a matrix keeps its minor axis.
LAYERS_AXIS_NAME = 'layers'
PARAMS_AXIS = 1
# The cache of T5X's decoders: `cache_offset` tells its readers.
CACHE_AXIS = 0

_policies = jax.checkpoint_policies
# What is kept of a layer besides its input.
_REMAT_POLICIES = {
    'full': _policies.nothing_saveable,
    # T5X's word. Attention weights are matrix products with batch axes: they
    # are large, and cheap to compute again.
    'minimal': _policies.dots_with_no_batch_dims_saveable,
    'nothing_saveable': _policies.nothing_saveable,
    'dots_saveable': _policies.dots_saveable,
    'dots_with_no_batch_dims_saveable': (
        _policies.dots_with_no_batch_dims_saveable
    ),
    'everything_saveable': _policies.everything_saveable,
}
NO_REMAT = 'none'
REMAT_POLICIES = (NO_REMAT, *_REMAT_POLICIES)

# (layer, carry, inputs of this layer) -> (carry, outputs of this layer).
Body = Callable[..., tuple[Any, Any]]


def rematerialized(body: Body, policy: str, *, in_scan: bool = False) -> Body:
  """Makes a body recompute in the backward pass what a policy does not keep.

  Args:
    body: takes a layer first.
    policy: `none` (keep all), `full` (keep the layer's input only), `minimal`
      (keep matrix products without batch axes), or the name of one of
      `jax.checkpoint_policies`.
    in_scan: whether the body runs in a scan, where the compiler cannot undo
      the recomputation and needs not be kept from it.

  Returns:
    The body.

  Raises:
    ValueError: if there is no such policy.
  """
  if policy == NO_REMAT:
    return body
  if policy not in _REMAT_POLICIES:
    near = difflib.get_close_matches(str(policy), REMAT_POLICIES, n=1, cutoff=0)
    raise ValueError(
        f'Unknown remat_policy {policy!r}; known are {REMAT_POLICIES}. Did you'
        f' mean {near[0]!r}?'
    )
  return nn.remat(body, policy=_REMAT_POLICIES[policy], prevent_cse=not in_scan)


def repeat(tree: Any, *, num_layers: int, scan_layers: bool) -> Any:
  """Gives every layer the same arrays, in the form that `run` takes."""
  if not scan_layers:
    return [tree] * num_layers
  return jax.tree.map(
      lambda x: jnp.broadcast_to(x[None], (num_layers, *x.shape)), tree
  )


def run(
    body: Body,
    layers: nn.Module | Sequence[nn.Module],
    carry: Any,
    *per_layer: Any,
    num_layers: int,
    remat_policy: str = NO_REMAT,
) -> tuple[Any, Any]:
  """Passes `carry` through a stack.

  What differs from layer to layer goes in and comes out in the stack's own
  form: a sequence of trees for an unrolled stack, trees of arrays with the
  layers as first axis for a scanned one. What all layers share is a closure of
  `body`.

  Args:
    body: `(layer, carry, *inputs) -> (carry, outputs)`.
    layers: a module a layer, or one module that is scanned.
    carry: what the layers hand on; it keeps its shapes and types.
    *per_layer: inputs of each layer.
    num_layers: the number of layers.
    remat_policy: see `rematerialized`.

  Returns:
    The last carry, and the outputs of each layer.
  """
  if isinstance(layers, nn.Module):
    scanned = partitioning.scan_with_axes(
        rematerialized(body, remat_policy, in_scan=True),
        variable_axes={'params': PARAMS_AXIS, 'cache': CACHE_AXIS},
        split_rngs={'params': True, 'dropout': True},
        length=num_layers,
        axis_name=LAYERS_AXIS_NAME,
    )
    return scanned(layers, carry, *per_layer)
  assert len(layers) == num_layers, (len(layers), num_layers)
  body = rematerialized(body, remat_policy)
  outputs = []
  for i, layer in enumerate(layers):
    carry, output = body(layer, carry, *(inputs[i] for inputs in per_layer))
    outputs.append(output)
  return carry, outputs
