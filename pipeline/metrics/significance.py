"""Paired significance tests: whether a challenger is better than the champion on the same documents.

Pairing removes the variance between documents, so that a difference shows long before either score is precise.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2_000
SIGNIFICANCE_LEVEL = 0.05
MAX_CELLS = 20_000_000  # multinomial weights in memory at once


@dataclass(frozen=True)
class IntervalEstimate:
    """A difference with its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Differences:
    """F1 of the challenger less that of the champion, on a scale of 0 to 1.

    Attributes:
        macro_f1: the difference of the means over all classes.
        lower_bound: the one-sided 95 % lower confidence bound of that difference.
        probability_worse: share of the resamples in which the challenger is worse.
        classes: the difference of each class.
    """

    macro_f1: IntervalEstimate
    lower_bound: float
    probability_worse: float
    classes: list[IntervalEstimate]


def paired_differences(
    truth: NDArray[np.bool_],
    before: NDArray[np.bool_],
    after: NDArray[np.bool_],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Differences:
    """Return the differences between two versions, by a paired bootstrap over documents (Efron 1979).

    Documents with the same truth and the same two predictions count as one outcome. How often each outcome is drawn
    is multinomial: the same distribution as drawing documents, and far faster.

    Args:
        truth: `[n, classes]`, the true classes; at least one document.
        before: `[n, classes]`, the predictions of the champion.
        after: `[n, classes]`, the predictions of the challenger.
        resamples: number of bootstrap samples.
        seed: the same seed and documents give the same values.
    """
    packed = np.packbits(np.concatenate([truth, before, after], axis=1), axis=1)
    _, first, counts = np.unique(packed, axis=0, return_index=True, return_counts=True)
    terms = _f1_terms(truth[first], before[first], after[first])
    measured = _f1_difference(counts[None] @ terms)[0]
    random, drawn = np.random.default_rng(seed), []
    rows = max(1, MAX_CELLS // len(counts))
    for start in range(0, resamples, rows):
        weights = random.multinomial(len(truth), counts / len(truth), size=min(rows, resamples - start))
        drawn.append(_f1_difference(weights.astype(np.float32) @ terms))
    differences = np.concatenate(drawn)
    means = differences.mean(axis=1)
    tails = [SIGNIFICANCE_LEVEL / 2, 1 - SIGNIFICANCE_LEVEL / 2]
    lows, highs = np.quantile(differences, tails, axis=0)
    low, high = np.quantile(means, tails)
    return Differences(
        macro_f1=IntervalEstimate(float(measured.mean()), float(low), float(high)),
        lower_bound=float(np.quantile(means, SIGNIFICANCE_LEVEL)),
        probability_worse=float((means < 0).mean()),
        classes=[IntervalEstimate(*map(float, values)) for values in zip(measured, lows, highs, strict=True)],
    )


def _f1_terms(truth: NDArray[np.bool_], before: NDArray[np.bool_], after: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return float32 [outcomes, 4 x classes]: for each version true positives, then predicted plus true documents.

    Their sums over documents are whole numbers, exact in single precision up to 16 million documents.
    """
    columns = [column for labels in (before, after) for column in (truth & labels, truth.astype(int) + labels)]
    return np.concatenate(columns, axis=1).astype(np.float32)


def _f1_difference(sums: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return F1 of the challenger less that of the champion, [resamples, classes], from sums of `_f1_terms`."""
    hits_before, sizes_before, hits_after, sizes_after = np.split(sums.astype(np.float64), 4, axis=1)
    after = 2 * hits_after / np.maximum(sizes_after, 1)
    difference: NDArray[np.float64] = after - 2 * hits_before / np.maximum(sizes_before, 1)
    return difference


def sign_test_p_values(
    truth: NDArray[np.bool_], before: NDArray[np.bool_], after: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return for each class the p-value of the hypothesis that the challenger is not worse, `[classes]`.

    The exact sign test (McNemar 1947) over the documents on which only one version is right about the class. The
    p-values are corrected for many classes (Tarone 1990): each is multiplied by the number of classes with enough
    such documents to reach significance, so that among all classes together at most 5 % of equally good challengers
    have one below 0.05. A class with four such documents cannot reach it.

    Args:
        truth: `[n, classes]`.
        before: `[n, classes]`.
        after: `[n, classes]`.
    """
    from scipy.special import betainc

    right_before, right_after = before == truth, after == truth
    worsened = (right_before & ~right_after).sum(axis=0)
    improved = (~right_before & right_after).sum(axis=0)
    smallest_p = 0.5 ** (worsened + improved)  # of a class whose documents all worsened
    classes = 1
    while np.count_nonzero(smallest_p * classes <= SIGNIFICANCE_LEVEL) > classes:
        classes += 1
    # The upper tail of a binomial distribution at 1/2, as an incomplete beta function; that of no document is 1.
    tail = np.where(worsened > 0, betainc(np.maximum(worsened, 1), improved + 1, 0.5), 1.0)
    p_values: NDArray[np.float64] = np.minimum(tail * classes, 1.0)
    return p_values
