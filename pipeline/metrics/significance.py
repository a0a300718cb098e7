"""Two versions on the same documents: how much better the later one is, and how sure that is.

Paired, because what one document does to both cancels out: a difference is seen long before the scores
themselves are known as well.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

RESAMPLES = 2_000
SIGNIFICANCE_LEVEL = 0.05  # one minus the confidence with which something is said to be shown
MOST_CELLS = 20_000_000  # weights held in memory at once


@dataclass(frozen=True)
class IntervalEstimate:
    """A difference, and between which values it lies with 95 % confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Differences:
    """What the later version has more than the earlier one, all in F1 from 0 to 1.

    Attributes:
        macro_f1: the difference of the means over all classes.
        at_least: what that difference exceeds with 95 % confidence (one-sided).
        probability_worse: share of the resamples in which the later version is worse.
        classes: the difference of each class.
    """

    macro_f1: IntervalEstimate
    at_least: float
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

    Documents with the same truth and the same two answers count as one outcome: how often each is drawn is
    multinomial, which is the same as drawing documents, and far faster.

    Args:
        truth: `[n, classes]`, the true classes; at least one document.
        before: `[n, classes]`, what the earlier version gives.
        after: `[n, classes]`, what the later version gives.
        resamples: how often the documents are drawn again.
        seed: same seed, same documents: same values.
    """
    first, counts = _outcomes(np.concatenate([truth, before, after], axis=1))
    terms = _terms(truth[first], before[first], after[first])
    found = _difference(counts[None] @ terms)[0]
    random, drawn = np.random.default_rng(seed), []
    rows = max(1, MOST_CELLS // len(counts))
    for start in range(0, resamples, rows):
        weights = random.multinomial(len(truth), counts / len(truth), size=min(rows, resamples - start))
        drawn.append(_difference(weights.astype(np.float32) @ terms))
    differences = np.concatenate(drawn)
    means = differences.mean(axis=1)
    lows, highs = np.quantile(differences, [SIGNIFICANCE_LEVEL / 2, 1 - SIGNIFICANCE_LEVEL / 2], axis=0)
    low, least, high = np.quantile(means, [SIGNIFICANCE_LEVEL / 2, SIGNIFICANCE_LEVEL, 1 - SIGNIFICANCE_LEVEL / 2])
    return Differences(
        macro_f1=IntervalEstimate(float(found.mean()), float(low), float(high)),
        at_least=float(least),
        probability_worse=float((means < 0).mean()),
        classes=[IntervalEstimate(*map(float, values)) for values in zip(found, lows, highs, strict=True)],
    )


def _outcomes(rows: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return where each different row is first, and how many of it there are."""
    packed = np.packbits(rows, axis=1)
    _, first, counts = np.unique(packed, axis=0, return_index=True, return_counts=True)
    return first, counts


def _terms(truth: NDArray[np.bool_], before: NDArray[np.bool_], after: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return float32 [outcomes, 4 x classes]: hits, and documents given or true, of each version.

    Their sums over documents are whole numbers, exact in single precision up to 16 million documents.
    """
    columns = [column for given in (before, after) for column in (truth & given, truth.astype(int) + given)]
    return np.concatenate(columns, axis=1).astype(np.float32)


def _difference(sums: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return [resamples, classes], F1 of the later version less that of the earlier, from sums of `_terms`."""
    hits_before, sizes_before, hits_after, sizes_after = np.split(sums.astype(np.float64), 4, axis=1)
    after = 2 * hits_after / np.maximum(sizes_after, 1)
    difference: NDArray[np.float64] = after - 2 * hits_before / np.maximum(sizes_before, 1)
    return difference


def sign_test_p_values(
    truth: NDArray[np.bool_], before: NDArray[np.bool_], after: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return for each class how likely chance alone makes the later version look as much worse, `[classes]`.

    The exact sign test (McNemar 1947) over the documents on which one version is right about the class and the
    other is not. Many classes are many chances to look bad, so each value is multiplied by the number of classes
    that have enough such documents to fail at all (Tarone 1990): among all classes together, no more than 5 % of
    equally good versions have one below 0.05. A class of four documents never has.

    Args:
        truth: `[n, classes]`.
        before: `[n, classes]`.
        after: `[n, classes]`.
    """
    right_before, right_after = before == truth, after == truth
    lost = (right_before & ~right_after).sum(axis=0)
    differing = lost + (~right_before & right_after).sum(axis=0)
    chances = binom.sf(lost - 1, differing, 0.5) * _classes_that_can_fail(differing)
    capped: NDArray[np.float64] = np.minimum(chances, 1.0)
    return capped


def _classes_that_can_fail(differing: NDArray[np.integer]) -> int:
    smallest = 0.5**differing  # the chance of the class if all its documents were lost
    classes = 1
    while np.count_nonzero(smallest * classes <= SIGNIFICANCE_LEVEL) > classes:
        classes += 1
    return classes
