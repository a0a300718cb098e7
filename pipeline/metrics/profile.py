"""Data profile: histograms of a model's inputs and outputs, for drift checks.

The profile of a night is stored with its labels. The profile of the validation and test texts is stored in the bundle
as the reference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import reduce
from operator import add
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.drift import Histogram

REFERENCE_FILE = "reference.json"
NO_CLASS_BIN = "(none of them)"  # a further bin of a multi-label model
LENGTHS: tuple[float, ...] = (
    *(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
    *(768, 1024, 1536, 2048, 3072, 4096),
)
UNKNOWN_SHARES = (0.0, 1e-9, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 0.95)  # the first: exactly 0
CONFIDENCES = tuple(number / 20 for number in range(20))
MEASURES = ("labels", "lengths", "unknown_words", "confidence")


@dataclass(frozen=True)
class Profile:
    """A model's inputs and outputs on some texts; `+` adds two parts.

    Attributes:
        rows: texts, empty ones included. All other attributes are of texts with tokens.
        empty: texts without tokens.
        tokens: tokens of all texts, after truncation.
        unknown_tokens: tokens that are not in the vocabulary.
        certainty: the sum of all confidences.
        labels: texts by class.
        lengths: texts by number of tokens, after truncation.
        unknown_words: texts by their share of unknown tokens.
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
        """Count lengths, unknown tokens and confidences.

        Args:
            lengths: [texts], number of tokens; 0 for an empty text.
            unknown: [texts], number of unknown tokens.
            confidence: [texts]; ignored for empty texts.
            labels: texts by class.
        """
        non_empty = lengths > 0
        rows = len(lengths)
        lengths, unknown, confidence = lengths[non_empty], unknown[non_empty], confidence[non_empty]
        return cls(
            rows=rows,
            empty=rows - len(lengths),
            tokens=int(lengths.sum(dtype=np.int64)),
            unknown_tokens=int(unknown.sum(dtype=np.int64)),
            certainty=float(confidence.sum(dtype=np.float64)),
            labels=labels,
            lengths=Histogram.of(lengths, LENGTHS),
            unknown_words=Histogram.of(unknown / lengths, UNKNOWN_SHARES),
            confidence=Histogram.of(confidence, CONFIDENCES),
        )

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return the profile that `as_json` wrote."""
        return cls(**{**value, **{name: Histogram.from_json(value[name]) for name in MEASURES}})

    def as_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def __add__(self, other: "Profile") -> "Profile":
        return Profile(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def comparable(self, other: "Profile") -> bool:
        """Return whether both profiles have the same bins."""
        return all(getattr(self, name).bins == getattr(other, name).bins for name in MEASURES)

    @property
    def non_empty(self) -> int:
        """Texts with tokens."""
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
    """Return the histogram of assigned classes.

    Args:
        counts_by_label: texts by class; a class without texts may be missing.
        classes: all classes, in the order of the model's outputs.
        no_class: texts without a class; None for a single-label model.
    """
    names, counts = [*classes], [counts_by_label.get(name, 0) for name in classes]
    if no_class is not None:
        names, counts = [*names, NO_CLASS_BIN], [*counts, no_class]
    return Histogram(tuple(names), tuple(counts))


def merge_profiles(profiles: Sequence[Profile]) -> Profile:
    """Return the profile of several parts or nights together: at least one, with the same bins."""
    return reduce(add, profiles)
