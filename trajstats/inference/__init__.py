"""The eager boundary: fits with honest intervals."""
