"""What all tests share: a compiler in a hurry.

Tests wait for XLA far more than for its programs, so it skips its expensive
passes; the processes that tests start inherit this. Set XLA_FLAGS to run the
tests with programs as a training run has them.
"""

import os

os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_backend_optimization_level=0'
    ' --xla_llvm_disable_expensive_passes=true',
)
