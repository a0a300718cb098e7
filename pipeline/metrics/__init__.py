"""Classification metrics, selective classification, significance and drift: NumPy and SciPy on plain arrays."""
