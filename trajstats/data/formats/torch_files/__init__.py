"""torch checkpoints, read without torch."""
