"""Runners: how to compute the arrays of each golden case.

A runner takes a `Case` and returns the computed arrays by full name
(`out/…`, `grad/…`). Each module here lists its runners in `RUNNERS`, by the
name of the case.
"""
