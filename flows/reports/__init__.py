"""Reports as Markdown, a module each: for a run's page in the UI, the terminal, and files."""
