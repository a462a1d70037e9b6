"""The journal: one checksummed record a row, in files or in objects."""
