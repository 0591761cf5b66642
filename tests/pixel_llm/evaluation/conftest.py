"""One METEOR for all tests: it takes seconds to start."""

import contextlib

import pytest

from pixel_llm.evaluation import meteor as meteor_lib


@pytest.fixture(scope='session')
def meteor():
  with meteor_lib.Meteor() as running:
    yield running


@pytest.fixture
def shared_meteor(meteor, monkeypatch):
  """Whoever starts METEOR gets the one that runs."""
  monkeypatch.setattr(
      meteor_lib, 'Meteor', lambda: contextlib.nullcontext(meteor)
  )
  return meteor
