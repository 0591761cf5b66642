"""The reference T5 network: `network` (the model) and `layers` (its parts)."""
