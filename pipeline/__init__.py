"""The work itself: raw text in, labelled Parquet out. Knows nothing of the orchestrator above it."""
