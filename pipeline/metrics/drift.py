"""Counts in fixed bins, and how far two of them are apart: what drift is measured by.

Population stability index (PSI) and Jensen-Shannon distance compare shares, not counts, so a small night and a
large reference can stand beside each other. Chance alone makes them differ: see `Distance`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

SMALLEST_SHARE = 0.005  # what an empty bin counts as: with 0 the index would be infinite
LEAST_BIN_SHARE = 0.025  # bins that hold less on average are merged; PSI is all noise in them
LEAST_BIN_ROWS = 10  # expected in each bin of the smaller side; with 5 the chi-square limit is passed too often
FALSE_ALARM_RATE = 1e-4  # how often chance alone may seem to be a change


@dataclass(frozen=True)
class Histogram:
    """How many values fell into each of some fixed bins; adds up over parts with `+`.

    Attributes:
        bins: the lower bound of each bin, ascending, or the names of classes.
        counts: values in each; a bin ends where the next begins, and the last has no end.
    """

    bins: tuple[float, ...] | tuple[str, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: NDArray[Any], bounds: tuple[float, ...]) -> Self:
        """Count values; what is below the first bound, as by rounding, belongs to the first bin."""
        places = np.maximum(np.searchsorted(bounds, values, side="right") - 1, 0)
        return cls(bounds, tuple(np.bincount(places, minlength=len(bounds)).tolist()))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(tuple(value["bins"]), tuple(value["counts"]))

    def __add__(self, other: "Histogram") -> "Histogram":
        assert self.bins == other.bins, "histograms of other bins do not add up"
        return Histogram(self.bins, tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    @property
    def size(self) -> int:
        return sum(self.counts)

    def share(self, number: int) -> float:
        """Return the share of the values that one bin holds; 0 where there are no values."""
        return self.counts[number] / max(self.size, 1)


@dataclass(frozen=True)
class Distance:
    """How far two histograms are apart, once sparse bins are merged.

    Even without drift the PSI of n rows beside m is about (bins - 1) (1/n + 1/m), and PSI / (1/n + 1/m) has a
    chi-square distribution with bins - 1 degrees of freedom (Yurdakul, "Statistical Properties of Population
    Stability Index", 2018). So that expectation is taken off, and what is within reach of chance is not significant.

    Attributes:
        index: the population stability index as it is.
        js: the Jensen-Shannon distance, 0 to 0.83.
        bins: after merging.
        noise: 1/n + 1/m.
    """

    index: float
    js: float
    bins: int
    noise: float

    @classmethod
    def between(cls, current: Histogram, other: Histogram) -> Self:
        """Compare two histograms of the same bins, neither of them empty."""
        counts, beside = merge_sparse_bins(current, other)
        return cls(
            index=population_stability_index(counts, beside),
            js=jensen_shannon_distance(counts, beside),
            bins=len(counts),
            noise=1 / current.size + 1 / other.size,
        )

    @property
    def psi(self) -> float:
        """The index less what chance gives on average, at least 0."""
        return max(0.0, self.index - (self.bins - 1) * self.noise)

    @property
    def significant(self) -> bool:
        """Whether chance gives as large an index less than once in 10,000 times."""
        from scipy.special import chdtri  # takes most of a second to import, and few nights need it

        return self.bins > 1 and self.index > float(chdtri(self.bins - 1, FALSE_ALARM_RATE)) * self.noise


def merge_sparse_bins(current: Histogram, other: Histogram) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the counts of both, neighbouring bins merged until each holds enough.

    What a bin holds is the mean of its two shares, so that a bin that only one side fills counts too. Classes keep
    their order: merging the rarest first would put those that are rare by chance together, and look like drift.
    """
    counts, beside = np.array(current.counts), np.array(other.counts)
    shares = (counts / counts.sum() + beside / beside.sum()) / 2
    least = max(LEAST_BIN_SHARE, LEAST_BIN_ROWS / min(counts.sum(), beside.sum()))
    starts = _group_starts(shares.tolist(), least)
    return np.add.reduceat(counts, starts), np.add.reduceat(beside, starts)


def _group_starts(shares: Sequence[float], least: float) -> list[int]:
    """Return where each group of bins begins that holds at least `least`; what is left joins the last."""
    starts, held = [0], 0.0
    for number, share in enumerate(shares):
        if held >= least:
            starts.append(number)
            held = 0.0
        held += share
    return starts if held >= least or len(starts) == 1 else starts[:-1]


def population_stability_index(counts: NDArray[np.integer], beside: NDArray[np.integer]) -> float:
    """Return the population stability index: the sum of (p - q) ln(p / q) over the bins.

    By custom 0.1 is a change worth a look and 0.25 a large one (Siddiqi, "Credit Risk Scorecards", 2006). Shares
    below half a percent count as half a percent, so that an empty bin is no infinity.

    Args:
        counts: [bins], not all 0.
        beside: [bins], likewise.
    """
    p, q = (np.maximum(side / side.sum(), SMALLEST_SHARE) for side in (counts, beside))
    return float(np.sum((p - q) * np.log(p / q)))


def jensen_shannon_distance(counts: NDArray[np.integer], beside: NDArray[np.integer]) -> float:
    """Return the square root of the Jensen-Shannon divergence in nats (natural logarithm).

    The divergence is the mean of what both sides diverge from their own mean (Lin, "Divergence Measures Based on the
    Shannon Entropy", 1991); an empty bin adds no infinity, and its root is a metric (Endres and Schindelin, "A New
    Metric for Probability Distributions", 2003) of at most sqrt(ln 2).

    Args:
        counts: [bins], not all 0.
        beside: [bins], likewise.
    """
    p, q = counts / counts.sum(), beside / beside.sum()
    middle = (p + q) / 2
    terms = [side[side > 0] * np.log(side[side > 0] / middle[side > 0]) for side in (p, q)]
    return float(np.sqrt(max(0.0, sum(term.sum() for term in terms) / 2)))
