"""The command `trajstats demo`."""
