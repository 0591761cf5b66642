"""`python -m tasks.build`: converts original downloads, looks at what it built.

Exit status of a conversion: 0 all fine; 1 failed, or something would have been
left out and the run is strict; 2 wrong arguments; 3 done, but something was
left out. Of `verify`: 0 all is whole, 1 something is not.
"""

import argparse
from collections.abc import Sequence
import sys

from tasks.build import conversions
from tasks.build import inspections


def main(argv: Sequence[str] | None = None) -> int:
  """Does what the arguments say; returns the exit status."""
  summary, _, rest = __doc__.partition('\n\n')
  parser = argparse.ArgumentParser(
      prog='python -m tasks.build', description=summary, epilog=rest
  )
  commands = parser.add_subparsers(dest='command', required=True)
  conversions.add_commands(commands)
  inspections.add_commands(commands)
  arguments = parser.parse_args(argv)
  return arguments.run(arguments)


if __name__ == '__main__':
  sys.exit(main())
