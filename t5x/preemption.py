"""The notice that a run must stop: heard at any time, heeded after a batch.

One process hears SIGTERM by itself. Several processes hear it, or the notice
of their platform, through JAX's preemption service, which lets all of them stop
after the same batch (`multihost_utils.reached_preemption_sync_point`). Ctrl-C
counts as the same notice; a second one ends the process on the spot.
"""

from collections.abc import Iterator
import contextlib
import itertools
import signal
import threading
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils


class PreemptionError(Exception):
  """The machine goes away: save the state now, it is whole."""


# Signals belong to the process, and so do these.
_noticed = threading.Event()
_by_hand = threading.Event()
_heeding = threading.Event()
# The service tells calls apart by a number that grows by 1.
_calls = itertools.count()


def reached() -> bool:
  """Tells whether all processes are to stop here.

  Every process calls this equally often, after every batch: that is how they
  agree on one.
  """
  if _has_service():
    return multihost_utils.reached_preemption_sync_point(next(_calls))
  return _noticed.is_set()


def raise_if_reached() -> None:
  """Ends an evaluation within a run if all processes are to stop here.

  Called as `reached` is. Outside of `heeded` it does nothing: scripts that only
  evaluate have nothing to save.

  Raises:
    PreemptionError: if so.
  """
  if _heeding.is_set() and reached():
    raise PreemptionError('Asked to stop while evaluating.')


def by_hand() -> bool:
  """Tells whether someone at the terminal asked this process to stop."""
  return _by_hand.is_set()


@contextlib.contextmanager
def heeded() -> Iterator[None]:
  """Lets signals wait for the end of a batch while a run goes on.

  Outside of it SIGTERM and SIGINT do what they always do. JAX's service has its
  own handler of SIGTERM; that one stays.
  """
  _noticed.clear()
  _by_hand.clear()
  _heeding.set()
  try:
    with _handled():
      yield
  finally:
    _heeding.clear()


@contextlib.contextmanager
def _handled() -> Iterator[None]:
  if threading.current_thread() is not threading.main_thread():
    # Python lets no other thread handle signals.
    yield
    return
  handlers: dict[int, Any] = {signal.SIGINT: _on_interrupt}
  if not _has_service():
    handlers[signal.SIGTERM] = _on_notice
  before = {
      number: signal.signal(number, handlers[number]) for number in handlers
  }
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _has_service() -> bool:
  return (
      jax.distributed.is_initialized()
      and jax.config.jax_enable_preemption_service
  )


def _on_notice(number: int, frame: Any) -> None:
  del frame
  logging.warning(
      '%s: stopping after this batch, with a save.', signal.Signals(number).name
  )
  _noticed.set()


def _on_interrupt(number: int, frame: Any) -> None:
  if _by_hand.is_set():
    raise KeyboardInterrupt
  _by_hand.set()
  logging.warning('Ctrl-C again stops at once.')
  if _has_service():
    # Whose handler tells the other processes.
    signal.raise_signal(signal.SIGTERM)
  else:
    _on_notice(number, frame)
