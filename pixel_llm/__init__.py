"""PixelLLM: vision-language models that point (arXiv 2312.09237)."""
