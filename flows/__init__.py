"""When the work runs: Prefect flows, tasks, artifacts, and the command line. Thin over `pipeline`."""
