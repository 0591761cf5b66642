"""Lets the tests of `t5x` import the tiny model that stands beside them."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
