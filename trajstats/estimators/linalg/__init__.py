"""Lanczos iterations and orthogonalisation."""
