"""SeqIO tasks of PixelLLM; `import tasks` registers them all.

`python -m tasks.build` converts data and needs no TensorFlow, so importing
this package from there, or from its worker processes, registers nothing.
"""

import os
import sys

CONVERTER_VARIABLE = 'PIXEL_LLM_CONVERTER'


def _only_converting() -> bool:
  return 'tasks.build' in sys.orig_argv or CONVERTER_VARIABLE in os.environ


if not _only_converting():
  from tasks import registry as registry  # isort: skip
  from tasks import mixtures as mixtures  # Its tasks come first.  isort: skip
