"""Trajectories: their schema, how they are read in, and how they are stored."""
