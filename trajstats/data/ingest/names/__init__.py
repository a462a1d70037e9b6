"""What the names in a series say: steps, stages, tensors that were renamed."""
