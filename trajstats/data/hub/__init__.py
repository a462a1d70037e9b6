"""Caches of a model hub: which revision each name stands for."""
