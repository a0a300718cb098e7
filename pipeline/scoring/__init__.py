"""Documents and a model version in, labels out; and how fast."""
