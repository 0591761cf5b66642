"""Weights of other projects in, and ours out; no run needs this."""
