"""Adapters that make trajectories: torch, JAX and plain loops."""
