"""Reads the gin files of runs, and writes their golden texts.

    PYTHONPATH=. python tests/gin/recipe_files.py

writes `tests/gin/golden/<name>.txt`, what gin makes of each run's file. Look at
the difference before you commit it: it is the change of the recipe.
"""

from collections.abc import Sequence
import pathlib

import gin
from pixel_llm import param_groups
from pixel_llm.pretrained import target_model
from t5x import script

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = pathlib.Path(__file__).parent / 'golden'
RUNS = sorted(path.stem for path in (ROOT / 'gin').glob('*.gin'))


def parse(
    name: str,
    *more: str,
    bindings: Sequence[str] = (),
    module: str = 't5x.train',
) -> None:
  """Reads a run's file, and the files after it, into an empty config."""
  gin.clear_config()
  files = [f'gin/{name}.gin', *more]
  script.parse_gin(files, bindings, [str(ROOT)], module)


def text() -> str:
  """Returns what was read as gin text, without the imports."""
  lines = gin.config_str(max_line_length=80).splitlines()
  return '\n'.join(line for line in lines if not line.startswith('import'))


def macro(name: str):
  """Returns the value of a macro, its references resolved."""
  value = gin.query_parameter(f'%{name}')
  while isinstance(value, gin.config.ConfigurableReference):
    value = value.scoped_configurable_fn()
  return value


def bindings() -> dict[str, str]:
  """Returns all that was read: name, scope included, to value."""
  # gin gives no public view of its bindings.
  return {
      f'{scope}/{selector}.{parameter}': repr(value)
      for (scope, selector), values in gin.config._CONFIG.items()
      for parameter, value in values.items()
  }


def macros() -> tuple[set[str], set[str]]:
  """Returns the names of the macros that are set, and of those that are read."""
  config = gin.config._CONFIG
  references = gin.config.iterate_references(
      config, gin.get_configurable(gin.config.macro)
  )
  return (
      {scope for scope, selector in config if selector == 'gin.macro'},
      {ref.scoped_selector.rpartition('/')[0] for ref in references},
  )


def build():
  """Builds the model that was read, abstractly.

  Returns:
    The model, and how each of its parameters trains.
  """
  model = macro('MODEL')
  shapes = target_model.param_shapes(
      model, macro('TASK_FEATURE_LENGTHS'), macro('BATCH_SIZE')
  )
  return model, model.optimizer_def.table(shapes)


def trained(rows: Sequence[param_groups.ParamRow]) -> dict[str, int]:
  """Returns the number of values that train, by part; 0 for a frozen part."""
  counts: dict[str, int] = {}
  for row in rows:
    part = row.name.split('/')[0]
    counts[part] = counts.get(part, 0) + row.count * row.trained
  return counts


if __name__ == '__main__':
  gin.config._LOCATION_PREFIXES[:] = ['']
  for run in RUNS:
    parse(run)
    (GOLDEN / f'{run}.txt').write_text(text() + '\n')
