"""Compiles small programs for eight CPU devices and counts them; prints JSON.

Run by `test_hlo_costs.py` in a process of its own: the number of devices is
fixed when JAX starts.
"""

import json
import math

from flax.core import spmd
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t5x import hlo_costs
from t5x import hlo_text
from t5x.examples.t5 import dense

MESH = jax.make_mesh(
    (4, 2), ('data', 'model'), axis_types=(AxisType.Auto, AxisType.Auto)
)


def placed(shape, *spec):
  sharding = NamedSharding(MESH, P(*spec))
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def costs(fn, *args, out=None):
  """Counts a compiled program."""
  with jax.set_mesh(MESH):
    sharding = None if out is None else NamedSharding(MESH, out)
    compiled = jax.jit(fn, out_shardings=sharding).lower(*args).compile()
  found = hlo_costs.count(compiled.as_text(), MESH.size)
  return {
      'flops': found.flops,
      'hbm_bytes': found.hbm_bytes,
      'unknown_loops': found.unknown_loops,
      'collectives': [
          {
              'kind': c.kind,
              'count': count,
              'bytes': c.num_bytes,
              'sent': c.sent_bytes,
              'axes': c.axes(dict(MESH.shape)),
          }
          for c, count in found.collectives
      ],
  }


def layer(x, w):
  """A product whose inner dimension is cut in two: a sum over `model`."""
  hidden = jax.lax.with_sharding_constraint(x, P('data', 'model'))
  return jnp.tanh(hidden @ w), None


def scanned(x, weights):
  return jax.lax.scan(layer, x, weights)[0]


def nested(x, weights):
  return jax.lax.scan(lambda c, w: (scanned(c, w), None), x, weights)[0]


def until_small(x, w):
  return jax.lax.while_loop(
      lambda x: jnp.max(x) > 1.0, lambda x: (x @ w) * 0.1, x
  )


def largest_lookup():
  """Elements of the largest array of a lookup whose table is cut over `data`."""
  embed = dense.Embed(64, 16, one_hot=True)
  rules = (('batch', 'data'), ('vocab', 'model'), ('embed', 'data'))

  def lookup(table, tokens):
    return embed.apply({'params': {'embedding': table}}, tokens)

  tokens = jax.ShapeDtypeStruct(
      (8, 32), jnp.int32, sharding=NamedSharding(MESH, P('data'))
  )
  table = placed((64, 16), 'model', 'data')
  with jax.set_mesh(MESH), spmd.logical_axis_rules(rules):
    compiled = jax.jit(lookup).lower(table, tokens).compile()
  module = hlo_text.parse(compiled.as_text())
  return max(
      math.prod(array.dims)
      for computation in module.computations.values()
      for instruction in computation.instructions.values()
      for array in instruction.arrays
  )


def main() -> None:
  """Prints the costs of each program."""
  x = placed((8, 16), 'data')
  whole, cut = P('data', None), P('data', 'model')
  report = {
      'matmul': costs(jnp.matmul, x, placed((16, 32)), out=whole),
      'gather': costs(lambda x: x * 2, x, out=P()),
      'reduce': costs(
          jnp.matmul,
          placed((8, 16), 'data', 'model'),
          placed((16, 32), 'model'),
          out=whole,
      ),
      'scanned': costs(scanned, x, placed((5, 16, 16), None, 'model'), out=cut),
      'nested': costs(
          nested, x, placed((3, 5, 16, 16), None, None, 'model'), out=cut
      ),
      'unknown': costs(until_small, x, placed((16, 16))),
  }
  permute = jax.shard_map(
      lambda x: jax.lax.ppermute(
          x, 'data', [(i, (i + 1) % 4) for i in range(4)]
      ),
      mesh=MESH,
      in_specs=P('data'),
      out_specs=P('data'),
  )
  report['permute'] = costs(permute, x)
  swap = jax.shard_map(
      lambda x: jax.lax.all_to_all(x, 'data', 1, 0, tiled=True),
      mesh=MESH,
      in_specs=P('data'),
      out_specs=P('data'),
  )
  report['all_to_all'] = costs(swap, placed((16, 16), 'data'))
  report['largest_lookup'] = largest_lookup()
  print(json.dumps(report))


if __name__ == '__main__':
  main()
