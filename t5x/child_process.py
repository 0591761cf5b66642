"""This command once more as a child process, for native code that may crash.

What crashes takes its process along, and no message can be left. The parent
lives on, and says what became of the child.
"""

import os
import signal
import subprocess
import sys
import threading
import time

from t5x import exit_status

# Holds the process id of the parent that waits for this process.
_PARENT = 'T5X_PARENT_PROCESS'

# What a process does to itself by an error in native code.
_CRASHES = (
    signal.SIGSEGV,
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGILL,
    signal.SIGFPE,
)

# Seconds between two looks whether the parent is there.
_PERIOD = 0.5


def is_child() -> bool:
  """Tells whether this process was started by `run`."""
  return os.environ.get(_PARENT) == str(os.getppid())


def run() -> int:
  """Runs this process's command line as a child, and waits for its end.

  Returns:
    Its exit status; minus the number of the signal that ended it.
  """
  return subprocess.run(
      [sys.executable, *sys.orig_argv[1:]],
      env={**os.environ, _PARENT: str(os.getpid())},
      check=False,
  ).returncode


def end_with_parent() -> None:
  """Lets the child end when its parent is gone: nobody would hear from it."""
  parent = os.getppid()

  def watch() -> None:
    while os.getppid() == parent:
      time.sleep(_PERIOD)
    os._exit(exit_status.ERROR)

  threading.Thread(target=watch, daemon=True).start()


def describe_signal(number: int, culprit: str, mend: str) -> str:
  """Says what a signal that ended the child means.

  Args:
    number: of the signal.
    culprit: the native code that may have crashed.
    mend: what to do if it has, a sentence.
  """
  told = f'signal {number} ({signal.strsignal(number)})'
  if number in _CRASHES:
    return f'{culprit} crashed: {told}. {mend}'
  if number == signal.SIGKILL:
    return (
        f'killed: {told}. If nobody did it, this machine has too little memory'
        ' for it: take one with more.'
    )
  return f'stopped: {told}.'
