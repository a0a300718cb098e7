"""Bounds of a proportion are those of the exact binomial test."""

import pytest
from scipy.stats import binomtest

from pipeline.metrics.intervals import clopper_pearson_lower, clopper_pearson_upper
from pipeline.review.precision import PrecisionEstimate

CASES = [(0, 10), (10, 10), (95, 100), (59, 59), (1, 1), (0, 1), (4711, 5000)]


@pytest.mark.parametrize(("successes", "n"), CASES)
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_one_sided_bounds_are_those_of_scipy(successes: int, n: int, alpha: float) -> None:
    above, below = (binomtest(successes, n, alternative=side) for side in ("greater", "less"))
    assert clopper_pearson_lower(successes, n, alpha) == pytest.approx(above.proportion_ci(1 - alpha).low, abs=1e-12)
    assert clopper_pearson_upper(successes, n, alpha) == pytest.approx(below.proportion_ci(1 - alpha).high, abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), CASES)
def test_the_interval_of_reviewed_labels_is_that_of_scipy(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(0.95)
    assert PrecisionEstimate(successes, n, 1).interval == pytest.approx((expected.low, expected.high), abs=1e-12)
