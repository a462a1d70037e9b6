"""Adapters for torch and JAX: networks, recorders, small tasks, the demo."""
