"""Where a simulator runs: in this process, in worker processes, on an executor, and in front of all a run archive."""
