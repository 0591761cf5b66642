"""Gin files of whole runs."""
