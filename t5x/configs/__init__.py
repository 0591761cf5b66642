"""Gin files that ship with t5x; a package so that gin finds them anywhere."""
