"""Exact binomial (Clopper-Pearson) confidence bounds.

Clopper and Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial", 1934.
`scipy.special` is imported on use: it takes most of a second, and `scipy.stats` three.
"""


def clopper_pearson_lower(successes: int, n: int, alpha: float = 0.05) -> float:
    """Return the one-sided lower bound of a binomial proportion at confidence `1 - alpha`."""
    from scipy.special import betaincinv

    return float(betaincinv(successes, n - successes + 1, alpha)) if successes else 0.0


def clopper_pearson_upper(successes: int, n: int, alpha: float = 0.05) -> float:
    """Return the one-sided upper bound of a binomial proportion at confidence `1 - alpha`."""
    from scipy.special import betaincinv

    return float(betaincinv(successes + 1, n - successes, 1 - alpha)) if successes < n else 1.0
