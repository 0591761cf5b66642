"""The boxes of PixelLLM's figure, one a file."""
