"""The health of some texts: what a model saw and said of them, in a few histograms.

Of a night it is kept beside the labels. Of the validation and test texts it is kept in the bundle, as the reference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.drift import Histogram

REFERENCE_FILE = "reference.json"
NO_CLASS_BIN = "(none of them)"  # counted beside the classes where a document can have several, or none
LENGTHS: tuple[float, ...] = (
    *(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    *(768, 1024, 1536, 2048, 3072, 4096),
)
UNKNOWN_SHARES = (0.0, 1e-9, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 0.95)  # the first: none at all
CONFIDENCES = tuple(number / 20 for number in range(20))
MEASURES = ("labels", "lengths", "unknown_words", "confidence")


@dataclass(frozen=True)
class Profile:
    """What a model saw and said of some texts; adds up over parts with `+`.

    Attributes:
        rows: texts, empty ones included; what follows is of the others.
        empty: texts without tokens.
        tokens: what the model read.
        unknown_tokens: how many of them are not in its vocabulary.
        certainty: the sum of all confidences.
        labels: texts by class.
        lengths: texts by their tokens, after truncation.
        unknown_words: texts by the share of their tokens that is unknown.
        confidence: texts by confidence.
    """

    rows: int
    empty: int
    tokens: int
    unknown_tokens: int
    certainty: float
    labels: Histogram
    lengths: Histogram
    unknown_words: Histogram
    confidence: Histogram

    @classmethod
    def of(
        cls,
        lengths: NDArray[np.integer],
        unknown: NDArray[np.integer],
        confidence: NDArray[np.floating],
        labels: Histogram,
    ) -> Self:
        """Count what a model saw and said.

        Args:
            lengths: [texts], tokens of each, 0 for an empty text.
            unknown: [texts], how many of them are unknown.
            confidence: [texts], of empty ones whatever.
            labels: texts by class.
        """
        non_empty = lengths > 0
        read, strange, sure = lengths[non_empty], unknown[non_empty], confidence[non_empty]
        return cls(
            rows=len(lengths),
            empty=len(lengths) - len(read),
            tokens=int(read.sum(dtype=np.int64)),
            unknown_tokens=int(strange.sum(dtype=np.int64)),
            certainty=float(sure.sum(dtype=np.float64)),
            labels=labels,
            lengths=Histogram.of(read, LENGTHS),
            unknown_words=Histogram.of(strange / read, UNKNOWN_SHARES),
            confidence=Histogram.of(sure, CONFIDENCES),
        )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        return cls(**{**value, **{name: Histogram.from_json(value[name]) for name in MEASURES}})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __add__(self, other: "Profile") -> "Profile":
        return Profile(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def comparable(self, other: "Profile") -> bool:
        """Whether both were counted in the same bins."""
        return all(getattr(self, name).bins == getattr(other, name).bins for name in MEASURES)

    @property
    def non_empty(self) -> int:
        return self.rows - self.empty

    @property
    def empty_share(self) -> float:
        return self.empty / max(self.rows, 1)

    @property
    def unknown_share(self) -> float:
        return self.unknown_tokens / max(self.tokens, 1)

    @property
    def mean_length(self) -> float:
        return self.tokens / max(self.non_empty, 1)

    @property
    def mean_confidence(self) -> float:
        return self.certainty / max(self.non_empty, 1)


def label_counts(counts_by_label: Mapping[str, int], classes: Sequence[str], no_class: int | None) -> Histogram:
    """Return texts by class.

    Args:
        given: how often each class was given; those that never were may be missing.
        classes: all of them, in the order of the model's outputs.
        nameless: texts that were given none of the classes; None where each is given one.
    """
    names, counts = [*classes], [counts_by_label.get(name, 0) for name in classes]
    if no_class is not None:
        names, counts = [*names, NO_CLASS_BIN], [*counts, no_class]
    return Histogram(tuple(names), tuple(counts))


def merge_profiles(healths: Sequence[Profile]) -> Profile:
    """Return the health of several parts, or nights, together: at least one, in the same bins."""
    total = healths[0]
    for profile in healths[1:]:
        total += profile
    return total
