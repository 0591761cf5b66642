"""Lets the tests of this folder import what several of them need."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
