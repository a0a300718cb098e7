"""Hyperparameter search with Optuna, within a budget."""
