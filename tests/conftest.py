"""What all tests share: a compiler in a hurry, and repeatable examples.

Tests wait for XLA far more than for its programs, so it skips its expensive
passes and emits fusions the old way, which takes half of the time; the processes
that tests start inherit this. Set XLA_FLAGS to run the tests with programs as a
training run has them.
"""

import os
import pathlib
import sys

import hypothesis

os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_backend_optimization_level=0'
    ' --xla_llvm_disable_expensive_passes=true'
    ' --xla_cpu_use_fusion_emitters=false'
    ' --xla_cpu_parallel_codegen_split_count=1',
)

# Tests share modules that stand here. Last: `tests/t5x` is not the package.
sys.path.append(str(pathlib.Path(__file__).parent))

# The same examples every time, so that a failure is a change's and not the
# draw's. `--hypothesis-profile=default` searches further.
hypothesis.settings.register_profile('repeatable', derandomize=True)
hypothesis.settings.load_profile('repeatable')

# Files of a minute and more. One that starts last keeps a single core busy.
_LONG = (
    'test_main_job.py',
    'test_network.py',
    'test_every_mesh.py',
    'test_local_pod.py',
    'test_models.py',
    'test_t5_scripts.py',
    'test_survival.py',
    'test_killed_pods.py',
    'test_gin_files.py',
    'test_dense_captions.py',
)


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.name not in _LONG)
