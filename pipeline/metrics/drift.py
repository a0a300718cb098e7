"""Drift between two histograms: population stability index (PSI) and Jensen-Shannon distance.

Both compare shares, not counts, so a small night can be compared with a large reference. Sampling noise alone makes
them positive: see `Distance`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

MIN_SHARE = 0.005  # smaller shares of a bin are raised to this: with 0 the PSI would be infinite
MIN_BIN_SHARE = 0.025  # smaller bins (mean of both shares) are merged: their PSI is mostly noise
MIN_BIN_ROWS = 10  # expected in each bin of the smaller histogram; with 5 the chi-square limit is passed too often
FALSE_ALARM_RATE = 1e-4  # of the significance test


@dataclass(frozen=True)
class Histogram:
    """Counts of values in fixed bins; `+` adds the counts of two parts.

    Attributes:
        bins: the lower bound of each bin, ascending, or the names of classes. A bin ends where the next begins; the
            last is open.
        counts: number of values in each bin.
    """

    bins: tuple[float, ...] | tuple[str, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: NDArray[Any], bounds: tuple[float, ...]) -> Self:
        """Count values in bins with these lower bounds."""
        return cls(bounds, tuple(np.bincount(bin_numbers(values, bounds), minlength=len(bounds)).tolist()))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the histogram that `dataclasses.asdict` wrote."""
        return cls(tuple(value["bins"]), tuple(value["counts"]))

    def __add__(self, other: "Histogram") -> "Histogram":
        assert self.bins == other.bins, "histograms with different bins cannot be added"
        return Histogram(self.bins, tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    @property
    def size(self) -> int:
        """Number of values."""
        return sum(self.counts)

    def share(self, number: int) -> float:
        """Return the share of the values that are in a bin; 0 for an empty histogram."""
        return self.counts[number] / max(self.size, 1)


def bin_numbers(values: NDArray[Any], bounds: Sequence[Any]) -> NDArray[np.intp]:
    """Return the bin of each value; a value below the first bound, as by rounding, is in the first bin.

    Args:
        values: [n].
        bounds: [bins], the lower bound of each bin, ascending.
    """
    return np.maximum(np.searchsorted(bounds, values, side="right") - 1, 0)


@dataclass(frozen=True)
class Distance:
    """The distance between two histograms after merging sparse bins.

    Without drift the expected PSI of samples of n and m rows is about (bins - 1) (1/n + 1/m), and PSI / (1/n + 1/m)
    has a chi-square distribution with bins - 1 degrees of freedom (Yurdakul, "Statistical Properties of Population
    Stability Index", 2018). `psi` subtracts that expectation, and `significant` is the chi-square test.

    Attributes:
        raw_psi: the population stability index, uncorrected.
        js: the Jensen-Shannon distance, 0 to 0.83.
        bins: number of bins after merging.
        noise: 1/n + 1/m.
    """

    raw_psi: float
    js: float
    bins: int
    noise: float

    @classmethod
    def between(cls, current: Histogram, reference: Histogram) -> Self:
        """Compare two histograms with the same bins, both not empty."""
        counts, reference_counts = merge_sparse_bins(current, reference)
        return cls(
            raw_psi=population_stability_index(counts, reference_counts),
            js=jensen_shannon_distance(counts, reference_counts),
            bins=len(counts),
            noise=1 / current.size + 1 / reference.size,
        )

    @property
    def psi(self) -> float:
        """The population stability index less its expectation under noise, at least 0."""
        return max(0.0, self.raw_psi - (self.bins - 1) * self.noise)

    @property
    def significant(self) -> bool:
        """Whether the PSI is larger than noise explains, at `FALSE_ALARM_RATE`."""
        from scipy.special import chdtri

        return self.bins > 1 and self.raw_psi > float(chdtri(self.bins - 1, FALSE_ALARM_RATE)) * self.noise


def merge_sparse_bins(current: Histogram, reference: Histogram) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the counts of both histograms, neighbouring bins merged until each holds enough.

    The size of a bin is the mean of its two shares, so that a bin that only one histogram fills counts too. Classes
    keep their order: merging the rarest first would group those that are rare by chance, and look like drift.
    """
    counts, reference_counts = np.array(current.counts), np.array(reference.counts)
    shares = (counts / counts.sum() + reference_counts / reference_counts.sum()) / 2
    minimum = max(MIN_BIN_SHARE, MIN_BIN_ROWS / min(counts.sum(), reference_counts.sum()))
    starts, merged = [0], 0.0
    for number, share in enumerate(shares.tolist()):
        if merged >= minimum:
            starts.append(number)
            merged = 0.0
        merged += share
    if merged < minimum and len(starts) > 1:
        starts.pop()  # the last bins hold too little: they join those before
    return np.add.reduceat(counts, starts), np.add.reduceat(reference_counts, starts)


def population_stability_index(counts: NDArray[np.integer], reference: NDArray[np.integer]) -> float:
    """Return the population stability index: the sum of (p - q) ln(p / q) over the bins.

    By convention 0.1 is a moderate change and 0.25 a large one (Siddiqi, "Credit Risk Scorecards", 2006). Shares below
    `MIN_SHARE` are raised to it, so that an empty bin gives a finite value.

    Args:
        counts: [bins], not all 0.
        reference: [bins], not all 0.
    """
    p, q = (np.maximum(side / side.sum(), MIN_SHARE) for side in (counts, reference))
    return float(np.sum((p - q) * np.log(p / q)))


def jensen_shannon_distance(counts: NDArray[np.integer], reference: NDArray[np.integer]) -> float:
    """Return the square root of the Jensen-Shannon divergence in nats, a metric of at most sqrt(ln 2).

    See Lin, "Divergence Measures Based on the Shannon Entropy" (1991), and Endres and Schindelin, "A New Metric for
    Probability Distributions" (2003).

    Args:
        counts: [bins], not all 0.
        reference: [bins], not all 0.
    """
    from scipy.special import rel_entr  # scipy.spatial.distance has the same, and takes half a second more to import

    p, q = counts / counts.sum(), reference / reference.sum()
    middle = (p + q) / 2
    divergence = (rel_entr(p, middle).sum() + rel_entr(q, middle).sum()) / 2
    return float(np.sqrt(max(0.0, divergence)))
