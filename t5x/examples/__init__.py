"""Networks for the T5X trainer."""
