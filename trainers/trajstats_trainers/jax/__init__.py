"""Networks, curvature and training loops of JAX."""
