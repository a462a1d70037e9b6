"""What a trajectory is, how it gets in, how it is kept."""
