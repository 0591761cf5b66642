"""Metrics, predictions files and the report: numpy only, no network."""
