"""Documents become splits and token ids."""
