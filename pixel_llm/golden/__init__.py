"""Golden figures: our numbers against those of the original."""
