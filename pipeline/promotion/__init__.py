"""A new version against the champion: compare both on the same test texts, decide, register."""
