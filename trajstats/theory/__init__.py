"""Reference curves and reference glasses."""
