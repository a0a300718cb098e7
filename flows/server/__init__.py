"""The Prefect server: setting it up, keeping it running, automations, backfill."""
