"""Outliers: the texts least like the model's reference, which a person should read first in the morning.

The surprisal of a text is the sum, over its length, its share of unknown words and the model's confidence, of -log of
the share of reference texts in the same bin: in nats, as if the three were independent. Only row numbers are stored,
never texts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.drift import Histogram, bin_numbers
from pipeline.metrics.profile import Profile

MAX_OUTLIERS = 10  # of each part, and of each night
NOTABLE = math.log(20)  # nats: less than 5 % of the reference texts are in the same bin


@dataclass(frozen=True)
class Outlier:
    """A row that is unlike the reference.

    Attributes:
        row: its number in the part, from 0.
        surprisal: in nats.
        why: the rare measures, in a few words.
    """

    row: int
    surprisal: float
    why: str

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the outlier that `as_json` wrote."""
        return cls(value["row"], value["surprise"], value["why"])

    def as_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"row": self.row, "surprise": self.surprisal, "why": self.why}


def find_outliers(
    rows: NDArray[np.integer],
    lengths: NDArray[np.integer],
    unknown: NDArray[np.integer],
    confidence: NDArray[np.floating],
    reference: Profile | None,
) -> list[Outlier]:
    """Return the texts of a part with the highest surprisal, the highest first, at most `MAX_OUTLIERS`.

    Among equals the least confident comes first. Without a reference the surprisal is -log of the confidence.

    Args:
        rows: [texts], row number of each distinct text.
        lengths: [texts], number of tokens; an empty text (0) is never an outlier.
        unknown: [texts], number of unknown tokens.
        confidence: [texts]; ignored for empty texts.
        reference: profile of the validation and test texts.
    """
    if reference is not None and not reference.non_empty:
        reference = None
    non_empty = np.flatnonzero(lengths > 0)
    lengths, confidence = lengths[non_empty], confidence[non_empty]
    unknown_share = unknown[non_empty] / lengths
    if reference is None:
        surprisals = -np.log(np.clip(confidence, 1e-12, 1.0))[None]  # [measures, texts]
    else:
        length_surprisals = _surprisals(lengths, reference.lengths)
        unknown_surprisals = _surprisals(unknown_share, reference.unknown_words)
        surprisals = np.stack([length_surprisals, unknown_surprisals, _surprisals(confidence, reference.confidence)])
    total = surprisals.sum(axis=0)
    outliers = []
    for text in np.lexsort((confidence, -total))[:MAX_OUTLIERS]:
        values = int(lengths[text]), float(unknown_share[text]), float(confidence[text])
        why = _reasons(*values, surprisals[:, text].tolist(), reference)
        outliers.append(Outlier(int(rows[non_empty[text]]), round(float(total[text]), 4), why))
    return outliers


def _surprisals(values: NDArray[Any], reference: Histogram) -> NDArray[np.float64]:
    """Return -log of the share of each value's bin, [texts]; add-one smoothing, so that no bin is impossible."""
    counts = np.array(reference.counts) + 1.0
    return -np.log(counts / counts.sum())[bin_numbers(values, reference.bins)]


def _reasons(
    length: int, unknown_share: float, confidence: float, surprisals: Sequence[float], reference: Profile | None
) -> str:
    """Return the rare measures of a text, the rarest first; if none is rare, the rarest only."""
    confidence_reason = f"confidence {100 * confidence:.0f} %"
    if reference is None:
        return confidence_reason
    unknown_reason = f"{100 * unknown_share:.0f} % of the words unknown"
    if unknown_share in (0, 1):
        unknown_reason = "all words unknown" if unknown_share else "no word unknown"
    usual = reference.lengths
    number = int(bin_numbers(np.array([length]), usual.bins)[0])
    shorter, longer = sum(usual.counts[:number]) / usual.size, sum(usual.counts[number + 1 :]) / usual.size
    comparison, share = ("longer", shorter) if shorter >= longer else ("shorter", longer)
    than = "any" if share == 1 else f"{math.floor(100 * share)} %"
    length_reason = f"{length:,} token{'' if length == 1 else 's'}, {comparison} than {than}"
    ranked = sorted(
        zip(surprisals, (length_reason, unknown_reason, confidence_reason), strict=True), key=lambda pair: -pair[0]
    )
    return ", ".join(reason for rank, (surprisal, reason) in enumerate(ranked) if not rank or surprisal >= NOTABLE)
