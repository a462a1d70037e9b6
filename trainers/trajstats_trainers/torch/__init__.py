"""Networks, curvature and training loops of torch."""
