"""Counts the matrix work of a traced program, loops multiplied out.

A product of an m×k and a k×n matrix is 2·m·k·n floating-point operations (a
multiplication and an addition each); a convolution is the same for every pair
of output element and kernel element that meets a real input element, as XLA
counts it. Nothing else is counted: this is the work that a chip's peak rate
is about, and what model FLOPs utilisation (RefA) is measured in.

Only shapes are needed. XLA's own cost analysis counts the body of a loop once,
so a scanned stack of layers looks as cheap as one layer; here a scan counts
`length` times.

Rematerialisation computes parts of the forward pass again during the backward
pass. A run's *model FLOPs* leave these out, so that a policy that recomputes
more does not look better. JAX marks what it recomputes: the equations stand in
a scope called `rematted_computation`, in every policy, nested or scanned. What
a hand-written `custom_vjp` recomputes is not marked, and counts.

RefA: PaLM, arXiv 2204.02311, Appendix B.
RefB: XLA `hlo_cost_analysis.cc`, HandleConvolution.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import jax
from jax.extend import core
from jax.extend import source_info_util
from jax.interpreters import partial_eval
import numpy as np

# The scope in which JAX puts what a checkpointed function computes again.
_RECOMPUTED_SCOPE = 'rematted_computation'

# Matrix work that hides inside: it is told, not guessed.
_OPAQUE = ('pallas_call', 'ragged_dot_general', 'ffi_call', 'pure_callback')


@dataclasses.dataclass(frozen=True)
class MatmulFlops:
  """Matrix work of one run of a program, over all its devices.

  Attributes:
    total: FLOPs that are executed.
    recomputed: the part of `total` that repeats the forward pass.
    unknown: what could not be counted in full, a line each: loops whose number
      of trips is known only at run time (counted once), opaque kernels
      (counted 0).
  """

  total: float = 0.0
  recomputed: float = 0.0
  unknown: tuple[str, ...] = ()

  @property
  def model(self) -> float:
    """FLOPs without what is computed again."""
    return self.total - self.recomputed

  def __add__(self, other: 'MatmulFlops') -> 'MatmulFlops':
    return MatmulFlops(
        self.total + other.total,
        self.recomputed + other.recomputed,
        tuple(dict.fromkeys((*self.unknown, *other.unknown))),
    )

  def times(self, factor: int) -> 'MatmulFlops':
    """Returns the work of `factor` runs."""
    return MatmulFlops(
        self.total * factor, self.recomputed * factor, self.unknown
    )


def count(fn: Callable[..., Any], *args, recomputation: bool = False) -> float:
  """Returns the matrix FLOPs of a call, without computing anything.

  Args:
    fn: what to call; jitted, differentiated or scanned functions are fine.
    *args: arrays, or `jax.ShapeDtypeStruct`s in their place.
    recomputation: whether to count what rematerialisation computes again.
  """
  flops = count_jaxpr(jax.make_jaxpr(fn)(*args))
  return flops.total if recomputation else flops.model


def count_jaxpr(closed: core.ClosedJaxpr) -> MatmulFlops:
  """Returns the matrix FLOPs of a traced program.

  What no result depends on is left out, as the compiler leaves it out.

  Args:
    closed: as from `jax.make_jaxpr(fn)(*args)` or
      `jax.jit(fn).trace(*args).jaxpr`.
  """
  jaxpr = closed.jaxpr
  needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _count(needed)


def _count(jaxpr: core.Jaxpr) -> MatmulFlops:
  return sum((_count_equation(eqn) for eqn in jaxpr.eqns), MatmulFlops())


def _count_equation(eqn: core.JaxprEqn) -> MatmulFlops:
  name = eqn.primitive.name
  if name in _LEAVES:
    flops = MatmulFlops(_LEAVES[name](eqn))
  elif name in _OPAQUE:
    where = source_info_util.summarize(eqn.source_info)
    return MatmulFlops(unknown=(f'{name} at {where} counts as 0',))
  else:
    flops = _INNER.get(name, _sum_of_bodies)(eqn)
  if _RECOMPUTED_SCOPE in str(eqn.source_info.name_stack).split('/'):
    return dataclasses.replace(flops, recomputed=flops.total)
  return flops


# ---- Products ---------------------------------------------------------------


def _dot_general(eqn: core.JaxprEqn) -> float:
  (lhs_contracting, _), _ = eqn.params['dimension_numbers']
  lhs = eqn.invars[0].aval.shape
  contracted = math.prod(lhs[d] for d in lhs_contracting)
  return 2.0 * contracted * math.prod(eqn.outvars[0].aval.shape)


def _conv_general_dilated(eqn: core.JaxprEqn) -> float:
  params = eqn.params
  dims = params['dimension_numbers']
  lhs, rhs = (v.aval.shape for v in eqn.invars)
  out = eqn.outvars[0].aval.shape
  pairs = 1
  for i, (lhs_dim, rhs_dim, out_dim) in enumerate(
      zip(dims.lhs_spec[2:], dims.rhs_spec[2:], dims.out_spec[2:])
  ):
    pairs *= meeting_pairs(
        lhs[lhs_dim],
        rhs[rhs_dim],
        out[out_dim],
        params['window_strides'][i],
        params['padding'][i][0],
        params['lhs_dilation'][i],
        params['rhs_dilation'][i],
    )
  batch, features = out[dims.out_spec[0]], out[dims.out_spec[1]]
  # The kernel's input features are those of one group already.
  return 2.0 * pairs * batch * features * rhs[dims.rhs_spec[1]]


@functools.cache
def meeting_pairs(
    size: int,
    kernel: int,
    out: int,
    stride: int,
    padding: int,
    dilation: int,
    kernel_dilation: int,
) -> int:
  """Counts (output, kernel) positions along one axis that meet real input.

  Padding and the holes of a dilated input meet none (RefB).
  """
  place = (
      np.arange(out)[:, None] * stride
      + np.arange(kernel)[None, :] * kernel_dilation
      - padding
  )
  real = (place >= 0) & (place <= (size - 1) * dilation)
  return int(np.sum(real & (place % dilation == 0)))


_LEAVES = {
    'dot_general': _dot_general,
    'conv_general_dilated': _conv_general_dilated,
}


# ---- What holds other programs ----------------------------------------------


def _sum_of_bodies(eqn: core.JaxprEqn) -> MatmulFlops:
  """Work of everything an equation calls once: jit, remat, custom_vjp, …"""
  bodies = core.jaxprs_in_params(eqn.params)
  return sum((_count(body) for body in bodies), MatmulFlops())


def _scan(eqn: core.JaxprEqn) -> MatmulFlops:
  return _count(eqn.params['jaxpr'].jaxpr).times(eqn.params['length'])


def _cond(eqn: core.JaxprEqn) -> MatmulFlops:
  """The branch with the most work."""
  branches = [_count(branch.jaxpr) for branch in eqn.params['branches']]
  most = max(branches, key=lambda flops: flops.total)
  unknown = sum(branches, MatmulFlops()).unknown
  return dataclasses.replace(most, unknown=unknown)


def _shard_map(eqn: core.JaxprEqn) -> MatmulFlops:
  """A body that sees one shard, on every device of the axes it is manual in."""
  mesh = eqn.params['mesh']
  copies = math.prod(
      mesh.shape[axis] for axis in eqn.params['newly_manual_axes']
  )
  return _sum_of_bodies(eqn).times(copies)


def _while(eqn: core.JaxprEqn) -> MatmulFlops:
  body = _count(eqn.params['body_jaxpr'].jaxpr)
  body += _count(eqn.params['cond_jaxpr'].jaxpr)
  trips = _trip_count(eqn)
  if trips is not None:
    return body.times(trips)
  if not body.total:
    return body
  where = source_info_util.summarize(eqn.source_info)
  return body + MatmulFlops(
      unknown=(
          f'while at {where} counts as one trip, of {body.total:.4g} FLOPs',
      )
  )


def _trip_count(eqn: core.JaxprEqn) -> int | None:
  """Trips of a loop `while i < n: …; i += c` with constants; else None."""
  params = eqn.params
  cond, body = params['cond_jaxpr'].jaxpr, params['body_jaxpr'].jaxpr
  consts, skipped = params['cond_nconsts'], params['body_nconsts']
  initial = [*eqn.invars[:consts], *eqn.invars[consts + skipped :]]
  test = _equation_of(cond, cond.outvars[0])
  if test is None or test.primitive.name not in ('lt', 'le'):
    return None
  index, bound = test.invars
  if index not in cond.invars[consts:]:
    return None
  start = _integer(initial[cond.invars.index(index)])
  if bound in cond.invars[:consts]:
    bound = initial[cond.invars.index(bound)]
  place = cond.invars.index(index) - consts
  step = _step(body, place, skipped)
  end = _integer(bound)
  if start is None or end is None or step is None:
    return None
  end += test.primitive.name == 'le'
  return max(0, -(-(end - start) // step))


def _step(body: core.Jaxpr, place: int, skipped: int) -> int | None:
  """What a loop's body adds to the value it carries at `place`."""
  add = _equation_of(body, body.outvars[place])
  if add is None or add.primitive.name != 'add':
    return None
  if add.invars[0] is not body.invars[skipped + place]:
    return None
  step = _integer(add.invars[1])
  return step if step is not None and step > 0 else None


def _equation_of(jaxpr: core.Jaxpr, var: Any) -> core.JaxprEqn | None:
  return next((e for e in jaxpr.eqns if var in e.outvars), None)


def _integer(atom: Any) -> int | None:
  is_constant = isinstance(atom, core.Literal) and np.ndim(atom.val) == 0
  if not is_constant or not np.issubdtype(
      np.asarray(atom.val).dtype, np.integer
  ):
    return None
  return int(atom.val)


_INNER: dict[str, Callable[[core.JaxprEqn], MatmulFlops]] = {
    'scan': _scan,
    'cond': _cond,
    'while': _while,
    'shard_map': _shard_map,
}
