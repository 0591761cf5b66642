"""Lets the tests here import their shared module, and gives each a clean gin."""

import pathlib
import sys

import pytest

import gin

sys.path.append(str(pathlib.Path(__file__).parent))


@pytest.fixture(autouse=True)
def _clean_gin(monkeypatch):
  monkeypatch.setattr(gin.config, '_LOCATION_PREFIXES', [''])
  gin.clear_config()
  yield
  gin.clear_config()
