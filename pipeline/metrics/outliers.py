"""Which texts are least like those that a model was tested on: what a person should read first in the morning.

A text's surprise is the sum, over its length, its share of unknown words and the model's confidence, of -log of the
share of the reference's texts that lie in the same bin: what it would cost to tell of it in nats, were the three
independent. Nothing of the text itself is kept, only where it stands.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.drift import Histogram
from pipeline.metrics.profile import Profile

MAX_OUTLIERS = 10  # of each part, and of each night
NOTABLE = math.log(20)  # nats: of the reference's texts less than 5 % are like it


@dataclass(frozen=True)
class Outlier:
    """A row that is unlike the reference.

    Attributes:
        row: where it stands in its part, counting from 0.
        surprise: in nats.
        why: what is strange, in a few words.
    """

    row: int
    surprisal: float
    why: str

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(**value)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def find_outliers(
    rows: NDArray[np.integer],
    lengths: NDArray[np.integer],
    unknown: NDArray[np.integer],
    confidence: NDArray[np.floating],
    reference: Profile | None,
) -> list[Outlier]:
    """Return the most surprising texts of a part, the most surprising first, at most `MOST`.

    Among equals the least confident comes first. Without a reference the surprise is that of the confidence alone.

    Args:
        rows: [texts], where each of the different texts stands first.
        lengths: [texts], tokens of each, 0 for an empty text, which is never strange.
        unknown: [texts], how many of them are unknown.
        confidence: [texts], of empty ones whatever.
        reference: what the model saw and said of its validation and test texts, if that is known.
    """
    non_empty = np.flatnonzero(lengths > 0)
    values = [lengths[non_empty], unknown[non_empty] / lengths[non_empty], confidence[non_empty]]
    costs = _costs(values, reference)
    total = costs.sum(axis=0)
    least = -np.partition(-total, MAX_OUTLIERS)[MAX_OUTLIERS] if len(total) > MAX_OUTLIERS else -math.inf
    likely = np.flatnonzero(total >= least)
    order = likely[np.lexsort((values[2][likely], -total[likely]))][:MAX_OUTLIERS]
    return [
        Outlier(
            row=int(rows[non_empty[place]]),
            surprisal=round(float(total[place]), 4),
            why=_reasons([float(value[place]) for value in values], costs[:, place].tolist(), reference),
        )
        for place in order
    ]


def _costs(values: Sequence[NDArray[Any]], reference: Profile | None) -> NDArray[np.float64]:
    """Return the surprise of each value, [measures, texts]; without a reference that of the confidence alone."""
    if reference is None or not reference.non_empty:
        return -np.log(np.clip(values[2], 1e-12, 1.0))[None]
    return np.stack([_surprises(one, usual) for one, usual in zip(values, _usual(reference), strict=True)])


def _usual(reference: Profile) -> tuple[Histogram, Histogram, Histogram]:
    return reference.lengths, reference.unknown_words, reference.confidence


def _surprises(values: NDArray[Any], usual: Histogram) -> NDArray[np.float64]:
    """Return -log of the share of each value's bin, each bin counted once more so that none is impossible."""
    counts = np.array(usual.counts) + 1.0
    return -np.log(counts / counts.sum())[_bins(values, usual)]


def _bins(values: NDArray[Any], usual: Histogram) -> NDArray[np.intp]:
    return np.maximum(np.searchsorted(usual.bins, values, side="right") - 1, 0)


def _reasons(values: Sequence[float], costs: Sequence[float], reference: Profile | None) -> str:
    """Return what is strange about a text, the strangest first: its rare measures, or the rarest if none is rare."""
    length, unknown, confidence = values
    if reference is None or not reference.non_empty:
        return f"confidence {_percent(confidence)}"
    told = (_tell_length(int(length), reference.lengths), _tell_unknown(unknown), f"confidence {_percent(confidence)}")
    ranked = sorted(zip(costs, told, strict=True), key=lambda one: -one[0])
    return ", ".join(text for place, (cost, text) in enumerate(ranked) if not place or cost >= NOTABLE)


def _tell_length(length: int, usual: Histogram) -> str:
    place = int(_bins(np.array([length]), usual)[0])
    shorter = sum(usual.counts[:place]) / usual.size
    longer = sum(usual.counts[place + 1 :]) / usual.size
    manner, share = ("longer", shorter) if shorter >= longer else ("shorter", longer)
    than = "any" if share == 1 else f"{math.floor(100 * share)} %"
    return f"{length:,} token{'' if length == 1 else 's'}, {manner} than {than}"


def _tell_unknown(share: float) -> str:
    if share in (0, 1):
        return "all words unknown" if share else "no word unknown"
    return f"{_percent(share)} of the words unknown"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
