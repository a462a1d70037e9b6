"""How a task runs: threads, memory, dask clusters."""
