"""Pretraining on text without labels: document vectors and a language model, kept as an encoder."""
