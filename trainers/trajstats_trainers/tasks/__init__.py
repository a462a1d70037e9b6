"""Small data sets: digits, chorales, generated problems."""
