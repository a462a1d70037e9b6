"""One plot per result; each takes and returns matplotlib Axes."""
