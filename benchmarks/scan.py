"""What scanning and rematerialisation cost and save, on this machine.

Compiles the training step of a tower (loss and gradients of all parameters) in
both forms and under several policies, without running it:

    python benchmarks/scan.py --depth 24 --width 256

`trace` and `compile` are seconds on one process; `temporary` is the memory that
the compiler sets aside beside parameters and results
(`compiled.memory_analysis()`).
"""

import argparse
from collections.abc import Iterator
import time

import jax
import jax.numpy as jnp

from pixel_llm.modules import eva02_vit
from pixel_llm.modules import sam_image_encoder

ROWS = (
    (False, 'none'),
    (False, 'full'),
    (True, 'none'),
    (True, 'minimal'),
    (True, 'full'),
)


def towers(depth: int, width: int, image_size: int):
  yield 'EVA02', eva02_vit.Eva02Vit(
      patch_size=16,
      embed_dim=width,
      depth=depth,
      num_heads=width // 32,
      pretrain_image_size=image_size,
  )
  yield 'SAM', sam_image_encoder.SamImageEncoder(
      image_size=image_size,
      embed_dim=width,
      depth=depth,
      num_heads=width // 32,
      window_size=7,
      global_block_indexes=range(depth // 4 - 1, depth, depth // 4),
  )


def measure(tower, images) -> tuple[float, float, float]:
  """Seconds to trace, seconds to compile, temporary MiB."""

  def loss(params, images):
    y = tower.apply({'params': params}, images)
    return jnp.mean(jnp.square(y.astype(jnp.float32)))

  params = jax.eval_shape(tower.init, jax.random.key(0), images)['params']
  start = time.perf_counter()
  lowered = jax.jit(jax.grad(loss)).lower(params, images)
  traced = time.perf_counter()
  compiled = lowered.compile()
  done = time.perf_counter()
  memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
  return traced - start, done - traced, memory


def table(args: argparse.Namespace) -> Iterator[str]:
  """Yields the rows of a Markdown table."""
  yield '| tower | form | remat | trace s | compile s | temporary MiB |'
  yield '| --- | --- | --- | ---: | ---: | ---: |'
  shape = (args.batch, args.image_size, args.image_size, 3)
  images = jax.ShapeDtypeStruct(shape, jnp.float32)
  for name, tower in towers(args.depth, args.width, args.image_size):
    for scanned, policy in ROWS:
      tower = tower.clone(scan_layers=scanned, remat_policy=policy)
      trace, compile_, memory = measure(tower, images)
      form = 'scanned' if scanned else 'unrolled'
      yield (
          f'| {name} | {form} | {policy} | {trace:.1f} | {compile_:.1f} |'
          f' {memory:,.0f} |'
      )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
  parser.add_argument('--depth', type=int, default=24, help='of both towers')
  parser.add_argument('--width', type=int, default=256, help='multiple of 32')
  parser.add_argument('--image_size', type=int, default=224, help='in pixels')
  parser.add_argument('--batch', type=int, default=8, help='images')
  for line in table(parser.parse_args()):
    print(line, flush=True)


if __name__ == '__main__':
  main()
