"""A night's labels: drift checks that hold or publish them, the facts of the morning's report, and backfill."""
