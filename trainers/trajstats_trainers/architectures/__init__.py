"""The small networks of the papers."""
