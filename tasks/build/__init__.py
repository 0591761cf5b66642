"""Converters from the original downloads to ArrayRecord shards.

Nothing in here imports TensorFlow.
"""
